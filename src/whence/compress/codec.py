"""How the rows of a shard lie in tensors: dense slabs for small units, factors for the rest.

Axes: N rows, P projected outputs, R projected inputs, C factors, Q queries, D = P x R numbers of a unit, W of all dense units.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from whence.compress.factors import factor_ranks, factorize, score_factors
from whence.compress.stored import room_for, score_rows

__all__ = ["RowCodec"]

# Wider tensors scan two to three times slower than several of this width.
_SLAB = 4096


@dataclass(frozen=True)
class RowCodec:
    """Between rows, one matrix per unit, and the tensors of a shard.

    A unit is stored as rank-c factors where that takes fewer numbers than its matrix, and dense otherwise. Dense units lie side by side
    in slabs of at most 4096 columns.

    Args:
        names: Names of the units.
        shapes: Projected (outputs, inputs) of each.
        factor_rank: Factors kept per row and unit; None keeps everything dense.
        dtype: Stored type.
        seed: The run's seed, for the factors' start.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...]
    factor_rank: int | None
    dtype: torch.dtype
    seed: int

    @cached_property
    def ranks(self) -> list[int | None]:
        """Factors per unit; None for a dense unit."""
        return factor_ranks(self.shapes, self.factor_rank)

    @cached_property
    def _columns(self) -> dict[int, tuple[int, int]]:
        """First and last column of each dense unit in the row of slabs."""
        columns, at = {}, 0
        for index, (rank, (p, r)) in enumerate(zip(self.ranks, self.shapes, strict=True)):
            if rank is None:
                columns[index] = (at, at + p * r)
                at += p * r
        return columns

    @property
    def _width(self) -> int:
        return max((stop for _, stop in self._columns.values()), default=0)

    def _slabs(self) -> list[tuple[str, int, int]]:
        return [(f"slab.{i}", at, min(at + _SLAB, self._width)) for i, at in enumerate(range(0, self._width, _SLAB))]

    def row_bytes(self) -> int:
        """Bytes that one row takes."""
        factors = sum(rank * (p + r) for rank, (p, r) in zip(self.ranks, self.shapes, strict=True) if rank is not None)
        return (self._width + factors) * self.dtype.itemsize

    def layout(self) -> dict[str, tuple[int, ...]]:
        """Name and shape per row of every tensor of a shard, in the order they are written."""
        widths: dict[str, tuple[int, ...]] = {name: (stop - start,) for name, start, stop in self._slabs()}
        for index, (rank, (p, r)) in enumerate(zip(self.ranks, self.shapes, strict=True)):
            if rank is not None:
                widths[f"left.{index}"] = (rank, p)
                widths[f"right.{index}"] = (rank, r)
        return widths

    def types(self) -> dict[str, torch.dtype]:
        """Type of every tensor of a shard."""
        return dict.fromkeys(self.layout(), self.dtype)

    def encode(self, rows: Sequence[Tensor]) -> dict[str, Tensor]:
        """Tensors of a shard.

        Args:
            rows: Per unit, shape (N, P, R), float32 or wider.

        Returns:
            The tensors that `layout` announces, on the CPU in the stored type.
        """
        tensors: dict[str, Tensor] = {}
        if self._width:
            wide = torch.cat([rows[index].flatten(1) for index in self._columns], 1).to(self.dtype).cpu()
            tensors |= {name: wide[:, start:stop].contiguous() for name, start, stop in self._slabs()}
        for index, rank in enumerate(self.ranks):
            if rank is not None:
                left, right = factorize(rows[index], rank, seed=self.seed, name=self.names[index])
                tensors[f"left.{index}"] = left.to(self.dtype).cpu()
                tensors[f"right.{index}"] = right.to(self.dtype).cpu()
        return tensors

    def decode(self, tensors: Mapping[str, Tensor], index: int) -> Tensor:
        """The rows of one unit, shape (N, D), in float32 or wider, as they were stored."""
        wide = torch.promote_types(self.dtype, torch.float32)
        if self.ranks[index] is not None:
            left_NCP, right_NCR = tensors[f"left.{index}"].to(wide), tensors[f"right.{index}"].to(wide)
            return (left_NCP.transpose(1, 2) @ right_NCR).flatten(1)
        start, stop = self._columns[index]
        parts = [
            tensors[name][:, max(start, first) - first : min(stop, last) - first]
            for name, first, last in self._slabs()
            if first < stop and start < last
        ]
        return torch.cat(parts, 1).to(wide)

    def tensors_of(self, index: int) -> list[str]:
        """Names of the tensors that `decode` reads for a unit."""
        if self.ranks[index] is not None:
            return [f"left.{index}", f"right.{index}"]
        start, stop = self._columns[index]
        return [name for name, first, last in self._slabs() if first < stop and start < last]

    def right_factors(self, tensors: Mapping[str, Tensor], index: int) -> Tensor:
        """Right factors of a factored unit, shape (N, C, R), in float32 or wider."""
        return tensors[f"right.{index}"].to(torch.promote_types(self.dtype, torch.float32))

    def scorer(self, queries: Sequence[Tensor]) -> Callable[[Mapping[str, Tensor]], Tensor]:
        """Inner products of rows with preconditioned queries, summed over units.

        Args:
            queries: Per unit, shape (Q, P, R), full precision.

        Returns:
            From a shard's tensors to scores of shape (Q, N), in the queries' type.
        """
        wide, num_queries = queries[0].dtype, len(queries[0])
        nothing = queries[0].new_empty(num_queries, 0)
        dense_QW = torch.cat([nothing, *(queries[index].flatten(1) for index in self._columns)], 1)
        slabs = [(name, dense_QW[:, start:stop].contiguous()) for name, start, stop in self._slabs()]
        room = room_for(wide)

        def score(tensors: Mapping[str, Tensor]) -> Tensor:
            count = len(next(iter(tensors.values())))
            scores_NQ = torch.zeros(count, num_queries, dtype=wide)
            for name, query_QD in slabs:
                score_rows(tensors[name], query_QD, scores_NQ, room)
            for index, rank in enumerate(self.ranks):
                if rank is not None:
                    pair_NCP, pair_NCR = tensors[f"left.{index}"], tensors[f"right.{index}"]

                    def factors(rows: slice, left: Tensor = pair_NCP, right: Tensor = pair_NCR) -> tuple[Tensor, Tensor]:
                        return left[rows].to(wide), right[rows].to(wide)

                    score_factors(count, rank, factors, queries[index], scores_NQ)
            return scores_NQ.T

        return score
