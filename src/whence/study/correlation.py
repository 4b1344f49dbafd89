"""Do queries rank the corpus alike? Every pair, and by set.

Axes: Q queries, N documents, R queries of a block, D draws.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any, Literal

import torch
from torch import Tensor

from whence.evaluate.ranks import ranks
from whence.evaluate.statistics import Interval, bootstrap_interval, drawn_counts, or_none
from whence.progress import Meter
from whence.study.kept_scores import StoredScores

__all__ = ["Block", "Correlation", "by_sets", "correlations"]

# Ranks held at a time, in float64: half a gibibyte for each of two blocks.
_NUMBERS = 1 << 26
_DRAWS = 1000
_TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True)
class Block:
    """Pairs of queries of two sets, or of one.

    Args:
        first: Name of a set.
        second: The other, or the same.
        mean: Mean rank correlation of the pairs with a 95 % bootstrap interval over queries; NaN for a set of one query with itself.
        pairs: How many there are.
    """

    first: str
    second: str
    mean: Interval
    pairs: int


@dataclass(frozen=True)
class Correlation:
    """How alike queries rank the whole corpus.

    Args:
        matrix_QQ: Spearman correlation of every pair, exact, over all documents; 0 for a query whose scores are all equal.
        blocks: By pair of sets.
        difference: Mean over pairs inside a set less the mean over pairs of different sets; NaN where one kind is missing.
        p_value: Share of random reassignments of queries to sets of the same sizes with so large a difference; NaN likewise.
    """

    matrix_QQ: Tensor
    blocks: tuple[Block, ...]
    difference: float
    p_value: float

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return {
            "matrix": self.matrix_QQ.tolist(),
            "blocks": [
                {"sets": [block.first, block.second], "mean": block.mean.to_dict(), "pairs": block.pairs}
                for block in self.blocks
            ],
            "difference": or_none(self.difference),
            "p_value": or_none(self.p_value),
        }


def correlations(
    scores: StoredScores, *, by_norm: bool, progress: Meter, of: Literal["ranks", "scores"] = "ranks", numbers: int = _NUMBERS
) -> Tensor:
    """Correlation of every pair of queries over all documents: Spearman's, of ranks, or Pearson's, of the scores themselves.

    Exact, with two blocks of queries' ranks in memory at a time; where there are several, ranks are made again for each pair of blocks.

    Args:
        scores: The scores.
        by_norm: Whether values are divided by the documents' norms.
        progress: Advanced by queries whose ranks are made.
        of: What is correlated.
        numbers: Ranks of a block.

    Returns:
        Shape (Q, Q), float64.
    """
    size = max(1, numbers // scores.num_documents)
    blocks = [range(start, min(start + size, scores.num_queries)) for start in range(0, scores.num_queries, size)]
    matrix_QQ = torch.zeros(scores.num_queries, scores.num_queries, dtype=torch.float64)
    for index, rows in enumerate(blocks):
        mine_RN = _unit_rows(scores, rows, by_norm, of, progress)
        for others in blocks[index:]:
            theirs_RN = mine_RN if others == rows else _unit_rows(scores, others, by_norm, of, progress)
            found_RR = mine_RN @ theirs_RN.T
            matrix_QQ[rows.start : rows.stop, others.start : others.stop] = found_RR
            matrix_QQ[others.start : others.stop, rows.start : rows.stop] = found_RR.T
    return matrix_QQ.clamp(-1.0, 1.0)


def by_sets(matrix_QQ: Tensor, sets: Mapping[str, Sequence[int]], *, seed: int) -> Correlation:
    """Means over pairs of sets with intervals, and whether sets matter at all.

    Intervals are from bootstrap draws of queries, in which a query drawn twice makes no pair with itself. The p-value is that of a
    permutation test of the queries' sets.

    Args:
        matrix_QQ: Of `correlations`.
        sets: Rows of the queries of each set.
        seed: Of the draws.

    Returns:
        All of it.
    """
    generator = torch.Generator().manual_seed(seed)
    # No query is a pair with itself.
    pairs_QQ = matrix_QQ.clone().fill_diagonal_(0.0)
    counts = {name: drawn_counts(len(rows), _DRAWS, generator) for name, rows in sets.items()}
    blocks = []
    for first, second in combinations_with_replacement(sets, 2):
        rows, columns = list(sets[first]), list(sets[second])
        part, first_count, second_count = pairs_QQ[rows][:, columns], counts[first], counts[second]
        pairs = first_count.sum(1) * second_count.sum(1)
        number = len(rows) * len(columns)
        if first == second:
            pairs, number = pairs - first_count.square().sum(1), number - len(rows)
        drawn_D = ((first_count @ part) * second_count).sum(1) / pairs
        mean = float(part.sum()) / number if number else math.nan
        # Of two queries, half of the draws have one query only, and no pair.
        interval = (
            bootstrap_interval(mean, drawn_D) if len(rows) > 2 and len(columns) > 2 else Interval(mean, math.nan, math.nan)
        )
        blocks.append(Block(first, second, interval, number // 2 if first == second else number))
    names_Q = torch.zeros(len(matrix_QQ), dtype=torch.long)
    for number, rows in enumerate(sets.values()):
        names_Q[list(rows)] = number
    difference = _difference(pairs_QQ, names_Q)
    if math.isnan(difference):
        return Correlation(matrix_QQ, tuple(blocks), difference, math.nan)
    shuffled = [_difference(pairs_QQ, names_Q[torch.randperm(len(names_Q), generator=generator)]) for _ in range(_DRAWS)]
    # Rounding apart, the very same assignment counts as one that is as large.
    larger = sum(value >= difference - 1e-12 for value in shuffled)
    return Correlation(matrix_QQ, tuple(blocks), difference, (1 + larger) / (1 + _DRAWS))


def _difference(pairs_QQ: Tensor, names_Q: Tensor) -> float:
    is_same_QQ = names_Q[:, None] == names_Q
    inside = int(is_same_QQ.sum()) - len(names_Q)
    between = is_same_QQ.numel() - int(is_same_QQ.sum())
    if not inside or not between:
        return math.nan
    return float(pairs_QQ[is_same_QQ].sum()) / inside - float(pairs_QQ[~is_same_QQ].sum()) / between


def _unit_rows(scores: StoredScores, rows: range, by_norm: bool, of: str, progress: Meter) -> Tensor:
    """Centred ranks or scores of unit length, 0 where all scores are equal; shape (R, N)."""
    unit_RN = torch.empty(len(rows), scores.num_documents, dtype=torch.float64)
    for index, query in enumerate(rows):
        values_N = scores.values(query, by_norm=by_norm)
        values_N = ranks(values_N) if of == "ranks" else values_N / values_N.abs().max().clamp_min(_TINY)
        values_N -= values_N.mean()
        length = float(values_N.norm())
        # Equal scores are equal up to rounding once their mean is taken away.
        unit_RN[index] = values_N / length if length > 1e-12 else 0.0
        progress.advance()
    return unit_RN
