"""How far shares may move: with other models, and with other queries.

Axes: Q queries, L lines, M models, D draws.
"""

import random
from collections.abc import Sequence

import numpy as np

from whence.evaluate import t_quantile

__all__ = ["over_models", "over_queries", "weighted_mean"]

# Lines drawn at a time: as many sources as documents must not need the memory of all draws at once.
_LINES = 4096


def weighted_mean(shares_QL: np.ndarray, weights_Q: np.ndarray) -> np.ndarray:
    """Mean over queries, added up one query after another so that it comes out the same everywhere; shape (L,)."""
    total_L = np.zeros(shares_QL.shape[1])
    for shares_L, weight in zip(shares_QL, weights_Q, strict=True):
        total_L += weight * shares_L
    return total_L / float(sum(weights_Q.tolist()))


def over_models(shares_L: np.ndarray, without_ML: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval of shares made from the mean of several models, by the jackknife.

    Shares are made once more without each model. A mean of the models' own shares would not do: alone, a model's noise passes for
    influence and evens shares out. Standard error after Tukey 1958 (Efron and Tibshirani 1993, equation 11.5), times Student's t with
    M - 1 degrees of freedom, cut off at 0 and 1.

    Args:
        shares_L: Of all models.
        without_ML: Without each model in turn, two or more.

    Returns:
        Low and high ends, each (L,).
    """
    num_models = len(without_ML)
    left_ML = np.stack(without_ML)
    variance_L = ((left_ML - left_ML.mean(0)) ** 2).sum(0) * (num_models - 1) / num_models
    half_L = t_quantile(num_models - 1) * np.sqrt(variance_L)
    return np.clip(shares_L - half_L, 0.0, 1.0), np.clip(shares_L + half_L, 0.0, 1.0)


def over_queries(
    shares_QL: np.ndarray, weights_Q: np.ndarray, *, draws: int, seed: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """95 % percentile interval over bootstrap draws of the queries, each with its weight (Efron 1979).

    Args:
        shares_QL: Shares of each query.
        weights_Q: Weights, not all zero.
        draws: How many.
        seed: Of the draws, made by Python's own generator, which promises the same numbers in every version.

    Returns:
        Low and high ends, each (L,); None where every draw is of queries without weight, of which nothing can be said.
    """
    num_queries = len(weights_Q)
    generator = random.Random(seed)
    drawn_DQ = np.zeros((draws, num_queries))
    for counts_Q in drawn_DQ:
        for _ in range(num_queries):
            counts_Q[int(generator.random() * num_queries)] += 1.0
    drawn_DQ *= weights_Q
    # A draw of queries without weight says nothing.
    drawn_DQ = drawn_DQ[drawn_DQ.sum(1) > 0]
    if not len(drawn_DQ):
        return None
    drawn_DQ /= drawn_DQ.sum(1, keepdims=True)
    ends = []
    for first in range(0, shares_QL.shape[1], _LINES):
        means_DL = drawn_DQ @ shares_QL[:, first : first + _LINES]
        ends.append(np.quantile(means_DL, [0.025, 0.975], axis=0))
    low_L, high_L = np.clip(np.concatenate(ends, axis=1), 0.0, 1.0)
    return low_L, high_L
