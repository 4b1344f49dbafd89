"""The noise floor in standard errors over models, and what any floor is in words.

Axes: M models, N training examples.
"""

from collections.abc import Sequence

import numpy as np

from whence.score import LEAST_SCORES

__all__ = ["errors_floor", "floor_words", "mean_scores"]


def errors_floor(scores_MN: np.ndarray, errors: float) -> np.ndarray:
    """A number of standard errors of each example's mean score over models, shape (N,)."""
    num_models = len(scores_MN)
    variance_N = _summed((scores_MN - mean_scores(scores_MN)) ** 2) / (num_models - 1)
    return errors * np.sqrt(variance_N / num_models)


def floor_words(
    floor: float | str | None, errors: float | None, floors: Sequence[float], sizes: Sequence[int], unit: str
) -> str:
    """What the floor is and how it was found, in a sentence.

    Args:
        floor: As in `whence.settings.SharesConfig`.
        errors: Likewise.
        floors: The floor of each query; those of a number of standard errors differ by example and are left out.
        sizes: How many training examples there are, in each version of the store.
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
    fewest, most = min(sizes), max(sizes)
    if most < LEAST_SCORES:
        return (
            f"no noise floor: among {most:,} examples it cannot be told which scores are chance, {LEAST_SCORES} are needed; "
            "small scores count in full"
        )
    count = f"{most:,}" if fewest == most else f"N), with the N examples of each version of the store ({fewest:,} to {most:,}"
    low, high = min(floors), max(floors)
    ends = f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g} by query"
    return (
        f"scores nearer to zero than the largest of as many chance scores would be: {ends} ({unit}), which is 1.4826 x the median size of a "
        f"query's scores x sqrt(2 ln {count})"
    )


def mean_scores(scores_MN: np.ndarray) -> np.ndarray:
    """Mean over models, added up one after another so that it comes out the same everywhere; shape (N,)."""
    return _summed(scores_MN) / len(scores_MN)


def _summed(values_MN: np.ndarray) -> np.ndarray:
    total_N = values_MN[0].copy()
    for values_N in values_MN[1:]:
        total_N += values_N
    return total_N
