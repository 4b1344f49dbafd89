"""Which code to keep, by what it is worth on documents that nothing was learned from.

Axes: H held-out documents, K axes, largest first, R mixtures of what they leave.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from whence.compress import quantize, random_matrix, to_integers

__all__ = ["Code", "HeldOut", "correlation", "evened", "rest_share", "rotation", "rounded"]

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
class HeldOut:
    """Documents that axes were not learned from, and what a code would keep of them.

    Args:
        gram_HH: Their exact scores for each other, before any code.
        codes_HK: Numbers along the axes, not turned.
        sketch_HR: Sketches of the whole documents, of unit gain; the first R of them are a sketch of fewer, longer by root(all / R).
        axes_KR: The same sketches of the axes.
        seed: Of the rotation.
    """

    gram_HH: Tensor
    codes_HK: Tensor
    sketch_HR: Tensor
    axes_KR: Tensor
    seed: int

    def agreement(self, code: Code) -> tuple[float, float]:
        """What a code is worth: the correlation of its scores with exact ones, and the share of the rest that it was reached with.

        Args:
            code: Its size.

        Returns:
            Mean over documents, each as a query to the others, and the share, 0 without a rest.
        """
        codes_HK = self.codes_HK[:, : code.width].double()
        turned_HK = evened(codes_HK, self.seed)
        found_HH = turned_HK @ rounded(turned_HK, code.bits).T
        if not code.rest:
            return correlation(found_HH, self.gram_HH), 0.0
        rest_HR = self._rest(code)
        sketched_HH = rest_HR @ rounded(rest_HR, 1).T
        share = rest_share(sketched_HH, self.gram_HH - codes_HK @ codes_HK.T)
        return correlation(found_HH + share * sketched_HH, self.gram_HH), share

    def _rest(self, code: Code) -> Tensor:
        scale = (self.sketch_HR.shape[1] / code.rest) ** 0.5
        # Codes of a sample that is held come from its Gram matrix, in float64; sketches are of the rows' type.
        along_HR = self.codes_HK[:, : code.width] @ self.axes_KR[: code.width, : code.rest].to(self.codes_HK)
        return (self.sketch_HR[:, : code.rest] - along_HR).double() * scale


def rest_share(found_HH: Tensor, exact_HH: Tensor) -> float:
    """What inexact scores are to be multiplied with for the least squared error, S / (S + N) of signal and noise; between 0 and 1.

    Args:
        found_HH: Scores from sketches.
        exact_HH: What they stand for.
    """
    others_HH = ~torch.eye(len(found_HH), dtype=torch.bool)
    estimated, exact = found_HH[others_HH], exact_HH[others_HH]
    estimated, exact = estimated - estimated.mean(), exact - exact.mean()
    return float(((estimated * exact).sum() / estimated.square().sum().clamp_min(_TINY)).clamp(0, 1))


def correlation(found_HH: Tensor, exact_HH: Tensor) -> float:
    """Mean over documents, each as a query, of the correlation of found with exact scores of the others.

    An example's own score is far larger than all others, and nobody asks for it.
    """
    others_HH = ~torch.eye(len(exact_HH), dtype=torch.bool)
    a, b = (
        (part - (part * others_HH).sum(1, keepdim=True) / max(1, len(part) - 1)) * others_HH for part in (exact_HH, found_HH)
    )
    return float(((a * b).sum(1) / (a.square().sum(1) * b.square().sum(1)).clamp_min(_TINY).sqrt()).mean())


def rounded(rows_HK: Tensor, bits: int) -> Tensor:
    """Rows as they come back from a store; those of more than 8 bits as they are."""
    if bits > 8:
        return rows_HK
    integers, scales_H = quantize(rows_HK, bits)
    numbers_HK = to_integers(integers, bits)[:, : rows_HK.shape[1]]
    return numbers_HK.to(rows_HK) * scales_H.to(rows_HK)[:, None]


def evened(codes_HK: Tensor, seed: int) -> Tensor:
    """Codes turned among some of their numbers at a time: as good as `rotation` to judge rounding by, and found at once for any width."""
    chance = np.random.Generator(np.random.Philox(seed))
    # The first round spreads what is large over the numbers it is turned with, the second over all.
    for _ in range(2):
        parts = codes_HK[:, torch.from_numpy(chance.permutation(codes_HK.shape[1]))].split(_TOGETHER, 1)
        codes_HK = torch.cat([part_HK @ rotation(part_HK.shape[1], seed).to(part_HK) for part_HK in parts], 1)
    return codes_HK


@lru_cache(maxsize=4)
def rotation(width_K: int, seed: int) -> Tensor:
    """A random one of the axes among themselves: it keeps every inner product and spreads each row evenly over its numbers."""
    return torch.linalg.qr(random_matrix("gaussian", width_K, width_K, seed=seed, name="rotation of codes").double())[0]
