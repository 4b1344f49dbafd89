"""Gradients whitened by half of a Kronecker-factored curvature, and learned codes of them.

Axes: B batch, T positions, O x I a unit's coordinates in the curvature's bases, U coordinates kept of a unit, M of all units,
K numbers of a code, R mixtures of what the axes leave.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from whence.compress.encoder import Encoder
from whence.compress.integers import has_integer_product, integer_product
from whence.compress.kronecker import Kronecker
from whence.compress.quantize import INT4_CUTS, quantize, to_integers
from whence.compress.residual import Residual
from whence.compress.turn import TURNED, turn, turn_back
from whence.compress.whole import joined_unit
from whence.records import Pair, Unit
from whence.reflections import Basis, Reflected

__all__ = ["REST", "Aligned", "Axes", "Whitened", "numbers_held"]

REST = "what the axes leave"
"""Name of a code's second part."""

# Numbers of the axes written out at a time, and squares of coordinates: integer products of more would not add up to an int32.
_BLOCK_NUMBERS, _MOST_SQUARES = 1 << 22, 8
# Many mixed axes are normal numbers, for which one cut is as good as the best of several.
_CUTS, _MANY_AXES = (0.75,), 64
# Of a basis' columns, as many at most are copied to be multiplied with alone.
_WORTH_COPYING = 0.75
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

    @cached_property
    def narrowed(self) -> "_Narrowed":
        """What makes rows: of the bases the directions that a kept coordinate has."""
        units = zip(self.bases.outputs, self.bases.inputs, self.weights, self.coordinates_kept, strict=True)
        outputs, inputs, weights, chosen = zip(*(_narrow(*parts) for parts in units), strict=True)
        return _Narrowed(Kronecker(self.units, outputs, inputs), weights, chosen)

    def position_scores(self, index: int, pair: Pair, queries: Sequence[Tensor]) -> Tensor:
        """Each position's part of the inner product of one example's row with a query, shape (T,); see `Encoder`."""
        weights_OI, kept_K = self.weights[index], self.coordinates_kept[index]
        query_U = queries[index].flatten()
        if kept_K is not None:
            query_U = torch.zeros(weights_OI.numel(), dtype=query_U.dtype).index_copy(0, kept_K.cpu(), query_U)
        back_OI = query_U.view(weights_OI.shape) * weights_OI.to(query_U)
        return self.bases.position_scores(index, pair.wide(), {index: back_OI})


@dataclass(frozen=True)
class _Narrowed:
    """Bases without directions that no kept coordinate has: fewer than all coordinates are made, and the kept ones taken from them.

    Args:
        bases: The directions, O' of outputs and I' of inputs.
        weights: Per unit those of the kept coordinates, or of all, shape (U,).
        columns: Per unit the kept coordinates' places among O' x I'; None for all.
    """

    bases: Kronecker
    weights: tuple[Tensor, ...]
    columns: tuple[Tensor | None, ...]

    def numbers(self, index: int) -> int:
        """Of an example's gradient before the kept ones are taken from it."""
        return math.prod(self.bases.shapes()[index])

    def rows(self, index: int, pair: Pair) -> Tensor:
        """What is kept of a unit's whitened gradients, shape (B, U)."""
        rows_BU, columns_U = self.bases.project(index, pair).flatten(1), self.columns[index]
        rows_BU = rows_BU if columns_U is None else rows_BU[:, columns_U]
        return rows_BU * self.weights[index].to(rows_BU)


def _narrow(
    outputs: Basis | None, inputs: Basis | None, weights_OI: Tensor, kept_U: Tensor | None
) -> tuple[Basis | None, Basis | None, Tensor, Tensor | None]:
    """Bases (O, O') and (I, I'), the weights of what is kept, (U,), and its places among O' x I', (U,); None for all."""
    if kept_U is None:
        return outputs, inputs, weights_OI.flatten(), None
    rows_U, columns_U = kept_U // weights_OI.shape[1], kept_U % weights_OI.shape[1]
    outputs, rows_U, _ = _side(outputs, rows_U, weights_OI.shape[0])
    inputs, columns_U, width = _side(inputs, columns_U, weights_OI.shape[1])
    return outputs, inputs, weights_OI.flatten()[kept_U], rows_U * width + columns_U


def _side(basis: Basis | None, places_U: Tensor, size: int) -> tuple[Basis | None, Tensor, int]:
    """The directions that are needed, the kept coordinates' places among them, and how many there are.

    Columns are copied only where that saves a quarter of a product or more; those of reflections where they are no more than the vectors.
    """
    chosen_P, among_U = places_U.unique(return_inverse=True)
    if isinstance(basis, Tensor) and len(chosen_P) <= _WORTH_COPYING * size:
        return basis[:, chosen_P.to(basis.device)].contiguous(), among_U, len(chosen_P)
    if isinstance(basis, Reflected) and len(chosen_P) <= basis.directions:
        return basis.columns(chosen_P.to(basis.vectors_NK.device)), among_U, len(chosen_P)
    return basis, places_U, size


class _Rows:
    """One batch of whitened gradients."""

    def __init__(self, encoder: Whitened, num_examples: int):
        self.encoder, self.num_examples = encoder, num_examples
        self.widths = [width for _, width in encoder.shapes()]
        self.joined_BM: Tensor | None = None

    def __call__(self, index: int, pair: Pair) -> None:
        # Whitening is linear, so uses of a weight add up after it: only what is kept of a few gradients at a time is ever whole.
        if not self.widths[index]:
            return
        narrowed, first = self.encoder.narrowed, sum(self.widths[:index])
        step = max(1, _GRADIENT_NUMBERS // narrowed.numbers(index))
        for start in range(0, self.num_examples, step):
            stop = min(start + step, self.num_examples)
            rows_BU = narrowed.rows(index, pair.examples(start, stop).wide())
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

    def slices(self) -> list[slice]:
        """Coordinates that are taken at a time."""
        step = min(_MOST_SQUARES, max(1, _BLOCK_NUMBERS // (TURNED * self.width_K))) * TURNED
        return [slice(start, min(start + step, len(self.codes))) for start in range(0, len(self.codes), step)]

    def room(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Memory for the axes of one slice. Fresh memory for each would take longer than all that is written to it."""
        rows = 0 if self.bits == 32 else max((chosen.stop - chosen.start for chosen in self.slices()), default=0)
        return torch.empty(rows, self.codes.shape[1] * 8 // self.bits, dtype=dtype)

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """The axes written out, some coordinates at a time.

        Yields:
            Which coordinates, and their numbers (coordinates, K), which the next ones are written over.
        """
        room_MD = self.room()
        for chosen in self.slices():
            yield chosen, self.codes[chosen] if self.bits == 32 else self._written(chosen, room_MD)

    def product(self, rows_BM: Tensor, chosen: slice, room_MD: Tensor) -> Tensor:
        """Inner products of some coordinates of rows with the axes there, shape (B, K).

        Args:
            rows_BM: These coordinates, turned unless the axes have 32 bits.
            chosen: One of `slices`.
            room_MD: Memory to write the axes to; of int8 multiplies integers, which is several times as fast, and as exact for float32.
        """
        if self.bits == 32:
            return rows_BM @ self.codes[chosen].to(rows_BM)
        if room_MD.dtype != torch.int8:
            return rows_BM @ self._written(chosen, room_MD).to(rows_BM)
        return integer_product(rows_BM * self.scales_M[chosen], self._integers(chosen, room_MD))[:, : self.width_K]

    def _written(self, chosen: slice, room_MD: Tensor) -> Tensor:
        return self._integers(chosen, room_MD)[:, : self.width_K].mul_(self.scales_M[chosen, None])

    def _integers(self, chosen: slice, room_MD: Tensor) -> Tensor:
        return to_integers(self.codes[chosen], self.bits, room_MD[: chosen.stop - chosen.start])


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
        judge: How its size was chosen, in words; empty where there was no choice.
        last_query: The last query, and what it is behind the axes per unit of the plan.
    """

    whitened: Whitened
    axes: Axes
    dtype: str
    seed: int
    residual: Residual | None = None
    is_anchored: bool = False
    judge: str = ""
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

    def note(self) -> str:
        """What is to be said of the code in every answer; empty where all is as its rank says."""
        if self.is_anchored:
            return f"axes span the gradients of anchors, {self.axes.width_K:,} directions: exact for these queries"
        along = f"codes of {self.axes.width_K:,} numbers of {self.dtype} along axes"
        rest = "" if self.residual is None else f" and {self.residual.note()}"
        return f"{along}{rest}{self.judge and f', {self.judge}'}" if rest or self.judge else ""

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
        is_integer = rows_BM.dtype == torch.float32 and rows_BM.device.type == "cpu" and has_integer_product()
        room_MD = self.axes.room(torch.int8 if is_integer else torch.float32)
        for chosen in self.axes.slices():
            part_BM = rows_BM[:, chosen]
            turned_BM = turn(part_BM, chosen.start, seed=self.seed) if self.axes.bits < 32 or rest is not None else part_BM
            found_BK += self.axes.product(turned_BM if self.axes.bits < 32 else part_BM, chosen, room_MD)
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
