"""The rules of `--robust`: near-duplicates count once, length alone earns nothing, one document and one question have a cap.

Axes: N training examples, K scores that are looked at one by one, Q queries.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from whence.shares.example_facts import ExampleFacts
from whence.shares.sources import Lines

__all__ = ["MOST_OF_A_QUERY", "MOST_OF_THE_WEIGHT", "Pools", "counted_weights", "pools_of", "robust_values", "robust_words"]

MOST_OF_A_QUERY = 0.25
"""Part of a query that one document, its near-duplicates included, can get."""

MOST_OF_THE_WEIGHT = 0.01
"""Part of all weight that near-identical queries have together at most, or that of the heaviest of them if it is more."""

_RULES = (
    "near-duplicates among the documents count once, with the mean of their scores, and for nobody where they are of several sources; "
    f"no document gets more than {MOST_OF_A_QUERY:.0%} of a query; "
    f"near-identical queries together count no more than {MOST_OF_THE_WEIGHT:.0%} of all, or than one of them"
)
_CONTROL = (
    "; the norm-only control is subtracted: of a score goes the noise floor times (length / median - 1), where the gradient is longer than "
    "the median one"
)


def robust_words(*, has_control: bool) -> str:
    """The rules in words for the report, the control's if it is subtracted."""
    return _RULES + (_CONTROL if has_control else "")


@dataclass(frozen=True)
class Pools:
    """Sets of near-duplicates.

    Args:
        of_examples: Number of the set of each example, shape (N,).
        sizes: Members of each set.
        is_disputed: Whether members of each set are on several lines.
        excess_N: By how much the gradient of each example is longer than the median one, over that; 0 for those that are not, or of which no
            length is known.
    """

    of_examples: np.ndarray
    sizes: np.ndarray
    is_disputed: np.ndarray
    excess_N: np.ndarray


def pools_of(train_ids: Sequence[str], lines: Lines, facts: ExampleFacts, *, has_control: bool = False) -> Pools:
    """Sort the training examples into sets of near-duplicates.

    Args:
        train_ids: Of the examples, in the table's order.
        lines: Whose each is.
        facts: What is known of them.
        has_control: Whether length has a price.

    Returns:
        The sets; every example is in one.
    """
    numbers: dict[str, int] = {}
    repeats = facts.repeats or {}
    of_examples = np.array([numbers.setdefault(repeats.get(name, name), len(numbers)) for name in train_ids], dtype=np.int64)
    sizes = np.bincount(of_examples)
    lines_of_sets = np.unique(np.stack([of_examples, lines.of_examples]), axis=1)[0]
    is_disputed = np.bincount(lines_of_sets, minlength=len(sizes)) > 1
    return Pools(of_examples, sizes, is_disputed, _excess(train_ids, facts.lengths if has_control else None))


def _excess(train_ids: Sequence[str], lengths: Mapping[str, float] | None) -> np.ndarray:
    """How far each gradient is above the median length, as a part of it, shape (N,)."""
    lengths_N = np.array([(lengths or {}).get(name, 0.0) for name in train_ids])
    positive_N = lengths_N[lengths_N > 0]
    return np.maximum(lengths_N / np.median(positive_N) - 1, 0.0) if len(positive_N) else np.zeros(len(train_ids))


def robust_values(
    placed: tuple[np.ndarray, np.ndarray, float], rows_K: np.ndarray, pools: Pools, lines: Lines
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of one query by which the rule "positive" pays, and the line that each counts on.

    The control is a question about nothing: a gradient then scores by chance, in proportion to its length. The noise floor is the largest of
    such scores where lengths are as the median one; a gradient that is longer by a part x gives up x floors of its score.

    Args:
        placed: Scores, float64, (K,); the line that each counts on under the noise floor, (K,); and that floor.
        rows_K: The training example of each; -1 for a sum of scores below the floor.
        pools: Sets of near-duplicates, and lengths.
        lines: All lines, with one for what is withheld.

    Returns:
        Two arrays, longer than the given ones by what control and cap take off.
    """
    scores_K, of_scores_K, floor = placed
    counts_K = (rows_K >= 0) & (of_scores_K != lines.noise)
    sets_K = pools.of_examples[rows_K]
    pooled_K = np.where(counts_K, scores_K / pools.sizes[sets_K], scores_K)
    of_K = np.where(counts_K & pools.is_disputed[sets_K], lines.withheld, of_scores_K)
    alone_K = floor * pools.excess_N[rows_K] / pools.sizes[sets_K]
    alone_K = np.where(counts_K & (of_K != lines.withheld), np.minimum(np.maximum(pooled_K, 0), alone_K), 0.0)
    values_K = pooled_K - alone_K

    gains_K = np.maximum(values_K, 0)
    most = MOST_OF_A_QUERY * float(np.maximum(pooled_K, 0).sum())
    is_capped_K = counts_K & (of_K != lines.withheld)
    sums = np.bincount(sets_K[is_capped_K], weights=gains_K[is_capped_K], minlength=len(pools.sizes))
    part_of_sets = np.where(sums > most, most / np.where(sums > 0, sums, 1.0), 1.0)
    parts_K = np.where(is_capped_K & (values_K > 0), part_of_sets[sets_K], 1.0)
    above_K, long_K = np.flatnonzero(parts_K < 1), np.flatnonzero(alone_K)
    taken = np.concatenate([values_K[above_K] * (1 - parts_K[above_K]), alone_K[long_K]])
    return (
        np.concatenate([values_K * parts_K, taken]),
        np.concatenate([of_K, np.full(len(taken), lines.withheld, dtype=of_K.dtype)]),
    )


def counted_weights(weights_Q: np.ndarray, leaders: Sequence[int]) -> np.ndarray:
    """What each query counts once near-identical ones are held to a part of all weight.

    Args:
        weights_Q: What each counts by itself.
        leaders: The first query that each is like, from `alike_queries`.

    Returns:
        Shape (Q,), not above the given weights.
    """
    sets_Q = np.asarray(leaders)
    sums = np.bincount(sets_Q, weights=weights_Q, minlength=len(weights_Q))
    largest = np.zeros(len(weights_Q))
    np.maximum.at(largest, sets_Q, weights_Q)
    most = np.maximum(largest, MOST_OF_THE_WEIGHT * float(weights_Q.sum()))
    parts = np.where(sums > most, most / np.where(sums > 0, sums, 1.0), 1.0)
    return weights_Q * parts[sets_Q]
