"""How many of the best documents a shortlist by inexact scores holds.

Axes: X places in an integral.
"""

import torch

__all__ = ["expected_recall", "shortlist_for"]

_POINTS = 2001
# Standard deviations beyond which there is nothing.
_FARTHEST = 9.0


def expected_recall(correlation: float, documents: int, best: int, shortlist: int) -> float:
    """Share of the documents with the highest exact scores that are among those with the highest inexact ones.

    Of scores that are together normal, which those of real documents are about: the mean over exact scores above the threshold of the best
    of the probability that the inexact score is above the threshold of the shortlist.

    Args:
        correlation: Of inexact with exact scores.
        documents: In all.
        best: How many are sought.
        shortlist: How many are kept.

    >>> round(expected_recall(0.0, 1000, 100, 200), 3), expected_recall(1.0, 1000, 100, 100)
    (0.2, 1.0)
    """
    if shortlist >= documents:
        return 1.0
    normal = torch.distributions.Normal(torch.tensor(0.0).double(), torch.tensor(1.0).double())
    share, kept_share = min(1.0, best / documents), shortlist / documents
    if correlation >= 1 - 1e-12:
        return min(1.0, kept_share / share)
    # Quantiles of the exact scores of the best, each as likely as any other: the middle of as many parts.
    parts_X = (torch.arange(_POINTS).double() + 0.5) / _POINTS
    exact_X = -normal.icdf(parts_X * share).clamp(-_FARTHEST, _FARTHEST)
    threshold = -normal.icdf(torch.tensor(kept_share).double())
    return float(normal.cdf((correlation * exact_X - threshold) / (1 - correlation**2) ** 0.5).mean())


def shortlist_for(recall: float, correlation: float, documents: int, best: int) -> int:
    """The shortest shortlist that is expected to hold such a share of the best documents.

    >>> shortlist_for(0.945, 1.0, 1000, 100), shortlist_for(0.9445, 0.0, 1000, 100)
    (95, 945)
    """
    shortest, longest = 0, documents
    while longest - shortest > 1:
        middle = (shortest + longest) // 2
        shortest, longest = (
            (shortest, middle) if expected_recall(correlation, documents, best, middle) >= recall else (middle, longest)
        )
    return longest
