"""What learned axes leave of whitened coordinates, as a few random mixtures of it.

Axes: B batch, M whitened coordinates, filled up to a multiple of TURNED, K numbers of the axes' code, R mixtures.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from whence.compress.quantize import quantize, to_integers
from whence.compress.sparse import SparseSketch
from whence.compress.turn import TURNED

__all__ = ["Residual"]

# Rows of the axes' mixtures that are written out at a time.
_BLOCK_NUMBERS = 1 << 24


@dataclass(frozen=True)
class Residual:
    """r = root (S z - S A x): a sparse sketch S of turned coordinates z less their part along the axes, x = A^T z.

    The residual z - A x itself is never there: S is linear, and S A is small. Documents and queries are both multiplied with `root`, so the
    inner product of two sketches is the residual's part of their score times root^2, the share of its variance that is signal: with all of it
    a small sketch adds more error than score.

    Args:
        sketch: S, of turned coordinates.
        axes_codes: S A, integers packed as in `quantize` for 8 and 4 bits, the numbers for 32; one row per mixture.
        scales_R: What each row's integers are multiplied with; ones for 32 bits.
        bits: Bits per number of S A.
        width_K: Axes.
        root: Root of the share.
    """

    sketch: SparseSketch
    axes_codes: Tensor
    scales_R: Tensor
    bits: int
    width_K: int
    root: float

    @staticmethod
    def rounded(axes_RK: Tensor, bits: int) -> tuple[Tensor, Tensor]:
        """S A in so many bits a number, 32, 8 or 4: its codes, and a scale for each of its rows."""
        if bits == 32:
            return axes_RK.contiguous(), torch.ones(len(axes_RK))
        codes, scales_R = quantize(axes_RK, bits)
        return codes, scales_R.float()

    @staticmethod
    def sketch_of(coordinates_M: int, slots: int, width_R: int, *, seed: int, device: torch.device) -> SparseSketch:
        """The first mixtures of a sketch of so many slots: coordinates of the other slots are left out, and the rest is longer for it.

        So the sketches of all widths are parts of one, and what a narrower one is worth is known from the widest (as in a subsampled Hadamard
        transform, Ailon and Chazelle 2009: coordinates are turned, and none is much larger than others). Nothing but a seed says it.
        """
        size = -(-coordinates_M // TURNED) * TURNED
        whole = SparseSketch.random(size, slots, seed=seed, name="what the axes leave", device=device)
        is_kept_N = whole.slots_N < width_R
        signs_N = whole.signs_N * is_kept_N * (slots / width_R) ** 0.5
        return SparseSketch(torch.where(is_kept_N, whole.slots_N, 0), signs_N, width_R)

    def note(self) -> str:
        """What is to be said of what is kept beside the axes."""
        return f"signs of {self.width_R:,} mixtures of what they leave, weighed {self.root**2:.2f}"

    @property
    def width_R(self) -> int:
        """Mixtures."""
        return self.sketch.width_K

    def part(self, chosen: slice) -> SparseSketch:
        """The sketch of some turned coordinates."""
        return SparseSketch(self.sketch.slots_N[chosen], self.sketch.signs_N[chosen], self.width_R)

    def less_axes(self, sketched_BR: Tensor, codes_BK: Tensor) -> Tensor:
        """From sketches of whole coordinates and their codes to those of what the axes leave, shape (B, R)."""
        along_BR = torch.cat([codes_BK @ block_RK.to(codes_BK).T for block_RK in self._blocks()], 1)
        return (sketched_BR - along_BR) * self.root

    def back(self, query_R: Tensor) -> Tensor:
        """Root (S A)^T u: what a query of mixtures takes from each number of the code, shape (K,)."""
        blocks = zip(self._blocks(), query_R.split(self._step()), strict=True)
        return self.root * sum((part_R @ block_RK.to(query_R) for block_RK, part_R in blocks), query_R.new_zeros(self.width_K))

    def _step(self) -> int:
        return max(1, _BLOCK_NUMBERS // self.width_K)

    def _blocks(self):
        for codes, scales_R in zip(self.axes_codes.split(self._step()), self.scales_R.split(self._step()), strict=True):
            if self.bits == 32:
                yield codes
            else:
                numbers_RK = to_integers(codes.cpu(), self.bits)[:, : self.width_K]
                yield numbers_RK.mul_(scales_R.cpu()[:, None])
