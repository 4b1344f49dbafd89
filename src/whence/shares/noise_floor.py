"""The noise floor: how large a query's score has to be before anybody is paid for it.

Axes: M models, N training examples.
"""

import math
from collections.abc import Sequence

import numpy as np

__all__ = ["LEAST_EXAMPLES", "errors_floor", "floor_words", "mean_scores", "spread_floor"]

# The spread of so many normal draws is known to a sixth from their median: its relative standard error is 1.16 / sqrt(N).
LEAST_EXAMPLES = 50
# Standard deviation of normal draws over the median of their sizes.
_NORMAL = 1.482602218505602


def spread_floor(scores_N: np.ndarray) -> float:
    """The size that chance alone gives the largest of a query's scores, learned from the scores themselves.

    Most training examples have nothing to do with a query, and their scores scatter around zero. The median of all sizes is hardly moved by
    the few that matter, so it tells the spread of that scatter, 1.4826 median(abs(score)); of N normal draws of this spread the largest stays
    below sqrt(2 ln N) times it but for one query in four or fewer (Donoho and Johnstone 1994, the universal threshold).

    >>> scores = np.tile([1.0, -1.0], 50)
    >>> round(spread_floor(scores), 4), spread_floor(scores[:8])
    (4.4995, 0.0)

    Args:
        scores_N: Scores of one query.

    Returns:
        In the unit of the scores; 0 for fewer than 50 examples, of which it cannot be told which are chance.
    """
    count = len(scores_N)
    if count < LEAST_EXAMPLES:
        return 0.0
    return _NORMAL * float(np.median(np.abs(scores_N))) * math.sqrt(2 * math.log(count))


def errors_floor(scores_MN: np.ndarray, errors: float) -> np.ndarray:
    """A number of standard errors of each example's mean score over models, shape (N,)."""
    num_models = len(scores_MN)
    variance_N = _summed((scores_MN - mean_scores(scores_MN)) ** 2) / (num_models - 1)
    return errors * np.sqrt(variance_N / num_models)


def floor_words(floor: float | str | None, errors: float | None, floors: Sequence[float], num_examples: int, unit: str) -> str:
    """What the floor is and how it was found, in a sentence.

    Args:
        floor: As in `whence.settings.SharesConfig`.
        errors: Likewise.
        floors: The floor of each query; those of a number of standard errors differ by example and are left out.
        num_examples: How many training examples there are.
        unit: Of the scores.

    Returns:
        The sentence.
    """
    if errors is not None:
        return f"scores within {errors:g} standard errors of zero, over the models"
    if floor == "off":
        return "no noise floor was set, so small scores count in full: many small ones add up, also where each is chance"
    if floor is not None:
        return f"scores nearer to zero than {floor:g} ({unit})"
    if num_examples < LEAST_EXAMPLES:
        return (
            f"no noise floor: among {num_examples:,} examples it cannot be told which scores are chance, {LEAST_EXAMPLES} are needed; "
            "small scores count in full"
        )
    low, high = min(floors), max(floors)
    ends = f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g} by query"
    return (
        f"scores nearer to zero than the largest of as many chance scores would be: {ends} ({unit}), which is 1.4826 x the median size of a "
        f"query's scores x sqrt(2 ln {num_examples:,})"
    )


def mean_scores(scores_MN: np.ndarray) -> np.ndarray:
    """Mean over models, added up one after another so that it comes out the same everywhere; shape (N,)."""
    return _summed(scores_MN) / len(scores_MN)


def _summed(values_MN: np.ndarray) -> np.ndarray:
    total_N = values_MN[0].copy()
    for values_N in values_MN[1:]:
        total_N += values_N
    return total_N
