"""Which code to keep, by what it is worth to queries that nothing was learned from.

Axes: Q queries, N stored documents, P pairs of them, K axes, largest first, R mixtures of what they leave.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from whence.compress import quantize, random_matrix, to_integers

__all__ = ["Code", "Coded", "Trial", "best_code", "evened", "rest_share", "rotation", "rounded"]

# Axes that are mixed with each other where sizes of code are judged.
_TOGETHER = 256
_TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True)
class Code:
    """How large a code is.

    Args:
        width: Numbers along axes.
        dtype: How each is stored; see `whence.compress.quantize` for those of 8 bits and less.
        bits: The same in bits.
        rest: Mixtures of what the axes leave, of one bit each.
    """

    width: int
    dtype: str
    bits: int
    rest: int = 0


@dataclass(frozen=True)
class Coded:
    """What a code of any size would keep of some documents.

    Args:
        along_NK: Numbers along the axes, not turned, shape (N, K).
        sketch_NR: Sketches of the whole documents, of unit gain; the first R of them are a sketch of fewer, longer by root(all / R).
    """

    along_NK: Tensor
    sketch_NR: Tensor


@dataclass(frozen=True)
class Trial:
    """Documents that axes were not learned from, as queries to stored ones: what a code would score.

    Args:
        exact_QN: Exact scores, before any code.
        queries: What is asked.
        stored: Of the axes' sample or not; the queries themselves, if it is the same object, are not asked for their own scores.
        axes_KR: Sketches of the axes.
        seed: Of the rotation.
        width_share: Trial axes of a part of the sample are judged at as many fewer, so that as large a share of its directions is kept.
    """

    exact_QN: Tensor
    queries: Coded
    stored: Coded
    axes_KR: Tensor
    seed: int
    width_share: float = 1.0

    def agreement(self, code: Code, share: float | None = None) -> tuple[float, float]:
        """What a code is worth: the correlation of its scores with exact ones, and the share of the rest that it was reached with.

        Args:
            code: Its size.
            share: Of the rest; None takes the best for these documents.

        Returns:
            Mean over queries, and the share, 0 without a rest.
        """
        others_QN = torch.ones(self.exact_QN.shape, dtype=torch.bool)
        if self.queries is self.stored:
            others_QN.fill_diagonal_(False)
        coded_QN = self.scores(code)
        if not code.rest:
            return correlation(coded_QN, self.exact_QN, others_QN), 0.0
        sketched_QN = self._rest(self.queries, code) @ rounded(self._rest(self.stored, code), 1).T
        if share is None:
            queries_QK, stored_NK = self._along(code)
            share = rest_share(sketched_QN[others_QN], (self.exact_QN - queries_QK @ stored_NK.T)[others_QN])
        return correlation(coded_QN + share * sketched_QN, self.exact_QN, others_QN), share

    def scores(self, code: Code, errors: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """What a code gives without its rest, shape (Q, N).

        Args:
            code: Its size.
            errors: Lengths of the errors that rounded axes make in codes of queries and of stored documents; directions are random.
        """
        chance = torch.Generator().manual_seed(self.seed)

        def erring(codes_NK: Tensor, error_N: Tensor) -> Tensor:
            random_NK = torch.randn(codes_NK.shape, generator=chance, dtype=torch.float64)
            return codes_NK + random_NK * error_N[:, None] / codes_NK.shape[1] ** 0.5

        queries_QK, stored_NK = self._along(code)
        if errors is not None:
            queries_QK, stored_NK = erring(queries_QK, errors[0]), erring(stored_NK, errors[1])
        return evened(queries_QK, self.seed) @ rounded(evened(stored_NK, self.seed), code.bits).T

    def _along(self, code: Code) -> tuple[Tensor, Tensor]:
        """Numbers along the axes of queries and stored documents."""
        width = max(1, round(code.width * self.width_share))
        return self.queries.along_NK[:, :width].double(), self.stored.along_NK[:, :width].double()

    def _rest(self, documents: Coded, code: Code) -> Tensor:
        scale = (documents.sketch_NR.shape[1] / code.rest) ** 0.5
        # Codes of a sample that is held come from its Gram matrix, in float64; sketches are of the rows' type.
        along_NR = documents.along_NK[:, : code.width] @ self.axes_KR[: code.width, : code.rest].to(documents.along_NK)
        return (documents.sketch_NR[:, : code.rest] - along_NR).double() * scale


def best_code(
    choices: Sequence[Code], unseen: Trial | None, members: Trial | None, member_share: float
) -> tuple[Code, float, float]:
    """The choice whose scores agree best with exact ones, over documents of the sample and others, each for its share of what is stored.

    Args:
        choices: Sizes.
        unseen: Queries to documents that are stored and not in the sample; None where there are none.
        members: Queries to documents of the sample; None where they are too few of what is stored to matter.
        member_share: Of the stored documents.

    Returns:
        Size, the share of its rest's scores that is signal, and the agreement; 0 where there is nothing to judge by.
    """
    best, inside = None, 0.0
    for choice in choices:
        value, share = (0.0, 0.0) if unseen is None else unseen.agreement(choice)
        # Mixtures of which nothing is signal are left out.
        choice = choice if share > 0 else replace(choice, rest=0)
        if members is not None:
            inside, _ = members.agreement(choice, share)
            value = inside if unseen is None else member_share * inside + (1 - member_share) * value
        if best is None or value > best[2]:
            best = choice, share, value
    assert best is not None, "there is a choice"
    return best


def rest_share(sketched_P: Tensor, exact_P: Tensor) -> float:
    """What inexact scores are to be multiplied with for the least squared error, S / (S + N) of signal and noise; between 0 and 1.

    Args:
        sketched_P: Scores of pairs of documents, from sketches.
        exact_P: What they stand for.
    """
    estimated, exact = sketched_P - sketched_P.mean(), exact_P - exact_P.mean()
    return float(((estimated * exact).sum() / estimated.square().sum().clamp_min(_TINY)).clamp(0, 1))


def correlation(coded_QN: Tensor, exact_QN: Tensor, others_QN: Tensor) -> float:
    """Mean over queries of the correlation of scores by a code with exact ones.

    Args:
        coded_QN: Scores by the code.
        exact_QN: Exact ones.
        others_QN: False for a query's own score, which is far larger than all others, and which nobody asks for.
    """
    counts_Q1 = others_QN.sum(1, keepdim=True).clamp_min(1)
    a, b = ((part - (part * others_QN).sum(1, keepdim=True) / counts_Q1) * others_QN for part in (exact_QN, coded_QN))
    return float(((a * b).sum(1) / (a.square().sum(1) * b.square().sum(1)).clamp_min(_TINY).sqrt()).mean())


def rounded(rows_NK: Tensor, bits: int) -> Tensor:
    """Rows as they come back from a store; those of more than 8 bits as they are."""
    if bits > 8:
        return rows_NK
    integers, scales_N = quantize(rows_NK, bits)
    numbers_NK = to_integers(integers, bits)[:, : rows_NK.shape[1]]
    return numbers_NK.to(rows_NK) * scales_N.to(rows_NK)[:, None]


def evened(codes_NK: Tensor, seed: int) -> Tensor:
    """Codes turned among some of their numbers at a time: as good as `rotation` to judge rounding by, and found at once for any width."""
    chance = np.random.Generator(np.random.Philox(seed))
    # The first round spreads what is large over the numbers it is turned with, the second over all.
    for _ in range(2):
        parts = codes_NK[:, torch.from_numpy(chance.permutation(codes_NK.shape[1]))].split(_TOGETHER, 1)
        codes_NK = torch.cat([part_NK @ rotation(part_NK.shape[1], seed).to(part_NK) for part_NK in parts], 1)
    return codes_NK


@lru_cache(maxsize=4)
def rotation(width_K: int, seed: int) -> Tensor:
    """A random one of the axes among themselves: it keeps every inner product and spreads each row evenly over its numbers."""
    return torch.linalg.qr(random_matrix("gaussian", width_K, width_K, seed=seed, name="rotation of codes").double())[0]
