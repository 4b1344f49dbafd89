"""Gradients whitened by half of a Kronecker-factored curvature, and learned codes of them.

Axes: B batch, T positions, O x I a unit's coordinates in the curvature's bases, U coordinates kept of a unit, M of all units,
K numbers of a code, R mixtures of what the axes leave.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from whence.compress.encoder import Encoder
from whence.compress.kronecker import Kronecker
from whence.compress.quantize import INT4_CUTS, quantize, to_integers, unpack
from whence.compress.residual import Residual
from whence.compress.turn import TURNED, turn, turn_back
from whence.compress.whole import joined_unit
from whence.records import Pair, Unit

__all__ = ["REST", "Aligned", "Axes", "Whitened", "numbers_held"]

REST = "what the axes leave"
"""Name of a code's second part."""

# Numbers of the axes written out at a time.
_BLOCK_NUMBERS = 1 << 22
# Many mixed axes are normal numbers, for which one cut is as good as the best of several.
_CUTS, _MANY_AXES = (0.75,), 64
# Of gradients written out at a time.
_GRADIENT_NUMBERS = 1 << 23


@dataclass(frozen=True)
class Whitened:
    """(H + damping)^-1/2 g in the bases of H, coordinate by coordinate: inner products of two such rows are preconditioned ones.

    Half of the inverse on either side leaves rows whose plain inner product is the influence under EK-FAC (Heo et al. 2026, equation 5),
    so that what is lost in shrinking them is lost where it matters least.

    Args:
        bases: The curvature's bases, as projections that keep all directions.
        weights: Per unit (eigenvalue + damping)^-1/2, shape (O, I).
        coordinates_kept: Per unit which of its O x I coordinates are kept, ascending; None for all.
    """

    bases: Kronecker
    weights: tuple[Tensor, ...]
    coordinates_kept: tuple[Tensor | None, ...]

    @property
    def units(self) -> tuple[Unit, ...]:
        """The plan's."""
        return self.bases.units

    def shapes(self) -> list[tuple[int, int]]:
        """One row of coordinates per unit."""
        return [
            (1, len(kept_K) if kept_K is not None else w.numel())
            for kept_K, w in zip(self.coordinates_kept, self.weights, strict=True)
        ]

    def gains(self) -> list[float]:
        """Damping is inside."""
        return [1.0] * len(self.weights)

    def rows(self, num_examples: int) -> "_Rows":
        """A fresh consumer for a batch."""
        return _Rows(self, num_examples)

    def coordinates(self, index: int, rows_BOI: Tensor) -> Tensor:
        """From a unit's gradients in the bases to what is kept of them, shape (B, U)."""
        rows_BU = (rows_BOI * self.weights[index].to(rows_BOI)).flatten(1)
        kept_K = self.coordinates_kept[index]
        return rows_BU if kept_K is None else rows_BU[:, kept_K]

    def position_scores(self, index: int, pair: Pair, queries: Sequence[Tensor]) -> Tensor:
        """Each position's part of the inner product of one example's row with a query, shape (T,); see `Encoder`."""
        weights_OI, kept_K = self.weights[index], self.coordinates_kept[index]
        query_U = queries[index].flatten()
        if kept_K is not None:
            query_U = torch.zeros(weights_OI.numel(), dtype=query_U.dtype).index_copy(0, kept_K.cpu(), query_U)
        back_OI = query_U.view(weights_OI.shape) * weights_OI.to(query_U)
        return self.bases.position_scores(index, pair.wide(), {index: back_OI})


class _Rows:
    """One batch of whitened gradients."""

    def __init__(self, encoder: Whitened, num_examples: int):
        self.encoder, self.num_examples = encoder, num_examples
        self.widths = [width for _, width in encoder.shapes()]
        self.joined_BM: Tensor | None = None

    def __call__(self, index: int, pair: Pair) -> None:
        # Whitening is linear, so uses of a weight add up after it: only what is kept of a few gradients at a time is ever whole.
        step = max(1, _GRADIENT_NUMBERS // self.encoder.weights[index].numel())
        first = sum(self.widths[:index])
        for start in range(0, self.num_examples, step):
            stop = min(start + step, self.num_examples)
            rows_BU = self.encoder.coordinates(index, self.encoder.bases.project(index, pair.examples(start, stop).wide()))
            if self.joined_BM is None:
                self.joined_BM = rows_BU.new_zeros(self.num_examples, sum(self.widths))
            self.joined_BM = self.joined_BM.to(torch.promote_types(self.joined_BM.dtype, rows_BU.dtype))
            self.joined_BM[start:stop, first : first + self.widths[index]] += rows_BU

    def joined(self) -> Tensor:
        """Of all units one after the other, shape (B, M); zeros for a unit that the loss did not reach."""
        return torch.zeros(self.num_examples, sum(self.widths)) if self.joined_BM is None else self.joined_BM

    def finished(self) -> list[Tensor]:
        """Per unit, shape (B, 1, U)."""
        return [part_BU[:, None] for part_BU in self.joined().split(self.widths, 1)]


@dataclass(frozen=True)
class Axes:
    """Directions of whitened coordinates, those of all units one after the other, one scale per coordinate.

    Args:
        codes: For 32 bits the numbers themselves, shape (M, K); else integers packed as in `quantize`, M rounded up and turned (`turn`).
        scales_M: What each coordinate's integers are multiplied with; ones for 32 bits.
        bits: Bits per number.
        width_K: Axes.
    """

    codes: Tensor
    scales_M: Tensor
    bits: int
    width_K: int

    @classmethod
    def of(cls, axes_MK: Tensor, bits: int, first: int, *, seed: int) -> "Axes":
        """Round some coordinates' axes to so many bits a number.

        Args:
            axes_MK: The axes.
            bits: 32, 8, 4 or 1.
            first: Place of the first coordinate.
            seed: Of the turning.
        """
        if bits == 32:
            return cls(axes_MK.contiguous(), torch.ones(len(axes_MK)), bits, axes_MK.shape[1])
        cuts = _CUTS if axes_MK.shape[1] >= _MANY_AXES else INT4_CUTS
        codes, scales_M = quantize(turn(axes_MK.T, first, seed=seed).T.contiguous(), bits, cuts=cuts)
        return cls(codes, scales_M.float(), bits, axes_MK.shape[1])

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """The axes written out, some coordinates at a time.

        Yields:
            Which coordinates, and their numbers (coordinates, K).
        """
        step = max(1, _BLOCK_NUMBERS // (TURNED * self.width_K)) * TURNED
        for start in range(0, len(self.codes), step):
            chosen = slice(start, min(start + step, len(self.codes)))
            if self.bits == 32:
                yield chosen, self.codes[chosen]
            else:
                numbers_MK = to_integers(unpack(self.codes[chosen], self.bits)[:, : self.width_K], self.bits)
                yield chosen, numbers_MK.mul_(self.scales_M[chosen, None])


@dataclass(frozen=True)
class Aligned:
    """A learned code of all whitened coordinates together: x = A^T z, and where there is room for it a sketch of z - A x.

    Args:
        whitened: Makes z.
        axes: A.
        dtype: How its numbers are to be stored.
        seed: Of the turning of coordinates.
        residual: What sketches the rest; None where it is left out.
        is_anchored: Whether the axes span the gradients of known queries.
        last_query: The last query, and what it is behind the axes per unit of the plan.
    """

    whitened: Whitened
    axes: Axes
    dtype: str
    seed: int
    residual: Residual | None = None
    is_anchored: bool = False
    last_query: list[Tensor] = field(default_factory=list, repr=False, compare=False)

    @property
    def units(self) -> tuple[Unit, ...]:
        """What lies along the axes, and what they leave: both of all parameters."""
        joined = joined_unit(self.whitened.units)
        return (joined,) if self.residual is None else (joined, replace(joined, name=f"{joined.name}: {REST}"))

    def shapes(self) -> list[tuple[int, int]]:
        """One row each."""
        widths = [self.axes.width_K] if self.residual is None else [self.axes.width_K, self.residual.width_R]
        return [(1, width) for width in widths]

    def gains(self) -> list[float]:
        """Damping is inside."""
        return [1.0] * len(self.shapes())

    def rows(self, num_examples: int) -> "_Codes":
        """A fresh consumer for a batch."""
        return _Codes(self, num_examples)

    def encode(self, rows_BM: Tensor) -> list[Tensor]:
        """Codes of whitened coordinates, those of all units one after the other.

        Args:
            rows_BM: The coordinates.

        Returns:
            Numbers along the axes, shape (B, K), and where there is a residual its mixtures, shape (B, R).
        """
        found_BK = rows_BM.new_zeros(len(rows_BM), self.axes.width_K)
        rest = self.residual
        sketched_BR = None if rest is None else rows_BM.new_zeros(len(rows_BM), rest.width_R)
        for chosen, block_MK in self.axes.blocks():
            part_BM = rows_BM[:, chosen]
            turned_BM = turn(part_BM, chosen.start, seed=self.seed) if self.axes.bits < 32 or rest is not None else part_BM
            found_BK.addmm_(turned_BM if self.axes.bits < 32 else part_BM, block_MK.to(rows_BM))
            if rest is not None and sketched_BR is not None:
                start = chosen.start
                sketched_BR += rest.part(slice(start, start + turned_BM.shape[1])).times(turned_BM)
        return [found_BK] if rest is None or sketched_BR is None else [found_BK, rest.less_axes(sketched_BR, found_BK)]

    def back(self, queries: Sequence[Tensor]) -> list[Tensor]:
        """A query taken back through the code: per unit of the plan, shape (1, U).

        Args:
            queries: Per stored unit, its numbers.
        """
        query_K, rest, parts = queries[0], self.residual, []
        query_R = None if rest is None else queries[1]
        if rest is not None and query_R is not None:
            query_K = query_K - rest.back(query_R)
        for chosen, block_MK in self.axes.blocks():
            part_1M = (block_MK.to(query_K) @ query_K)[None]
            if rest is not None and query_R is not None:
                size = -(-part_1M.shape[1] // TURNED) * TURNED
                left_1M = rest.root * rest.part(slice(chosen.start, chosen.start + size)).back(query_R)[None]
                if self.axes.bits == 32:
                    part_1M = part_1M + turn_back(left_1M, chosen.start, seed=self.seed)[:, : part_1M.shape[1]]
                else:
                    part_1M = part_1M + left_1M
            parts.append(part_1M if self.axes.bits == 32 else turn_back(part_1M, chosen.start, seed=self.seed))
        widths = [width for _, width in self.whitened.shapes()]
        return list(torch.cat(parts, 1)[:, : sum(widths)].split(widths, 1))

    def position_scores(self, index: int, pair: Pair, queries: Sequence[Tensor]) -> Tensor:
        """Each position's part of the inner product of one example's row with a query, shape (T,); see `Encoder`."""
        numbers = [query.flatten() for query in queries]
        # Going back through the axes takes longer than a pass over an example, and all hits of a query share it.
        if not self.last_query or not torch.equal(self.last_query[0], torch.cat(numbers)):
            self.last_query[:] = [torch.cat(numbers), *self.back(numbers)]
        return self.whitened.position_scores(index, pair, self.last_query[1:])


def numbers_held(encoder: Encoder) -> int:
    """Numbers of an example while its batch is encoded: of its row, or of the whitened gradient that its code is made of."""
    whole = encoder.whitened if isinstance(encoder, Aligned) else encoder
    return sum(left * right for left, right in whole.shapes())


class _Codes:
    """One batch of codes."""

    def __init__(self, encoder: Aligned, num_examples: int):
        self.encoder = encoder
        self.rows = encoder.whitened.rows(num_examples)

    def __call__(self, index: int, pair: Pair) -> None:
        self.rows(index, pair)

    def finished(self) -> list[Tensor]:
        """Per stored unit, shape (B, 1, K) and (B, 1, R)."""
        return [part[:, None] for part in self.encoder.encode(self.rows.joined())]
