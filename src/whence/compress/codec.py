"""How the rows of a shard lie in tensors: dense slabs for small units, factors for the rest.

Axes: N rows, P projected outputs, R projected inputs, C factors, Q queries, D = P x R numbers of a unit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from whence.compress.factors import factorize

__all__ = ["RowCodec"]

# Wider tensors scan two to three times slower than several of this width.
_SLAB = 4096
# A block of rows widened to float32 should stay in a core's second-level cache: 1 MiB.
_CACHE_NUMBERS = 1 << 18


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
        if self.factor_rank is None:
            return [None] * len(self.shapes)
        ranks = [min(self.factor_rank, *shape) for shape in self.shapes]
        return [rank if rank * (p + r) < p * r else None for rank, (p, r) in zip(ranks, self.shapes, strict=True)]

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
        found: dict[str, tuple[int, ...]] = {name: (stop - start,) for name, start, stop in self._slabs()}
        for index, (rank, (p, r)) in enumerate(zip(self.ranks, self.shapes, strict=True)):
            if rank is not None:
                found[f"left.{index}"] = (rank, p)
                found[f"right.{index}"] = (rank, r)
        return found

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

    def score(self, tensors: Mapping[str, Tensor], queries: Sequence[Tensor]) -> Tensor:
        """Inner products of all rows with preconditioned queries, summed over units.

        For a factored unit the sum over factors of u^T M v, which is the inner product with U V^T without writing that out.

        Args:
            tensors: A shard.
            queries: Per unit, shape (Q, P, R), full precision.

        Returns:
            Shape (Q, N), in the queries' type.
        """
        wide, count, num_queries = queries[0].dtype, len(next(iter(tensors.values()))), len(queries[0])
        scores_NQ = torch.zeros(count, num_queries, dtype=wide)
        if self._width:
            dense_WQ = torch.cat([queries[index].flatten(1) for index in self._columns], 1).T.contiguous()
            for name, start, stop in self._slabs():
                for rows in _blocks(count, stop - start):
                    scores_NQ[rows] += tensors[name][rows].to(wide) @ dense_WQ[start:stop]
        for index, rank in enumerate(self.ranks):
            if rank is None:
                continue
            score = _by_product if num_queries >= 4 * rank else _by_query
            p, r = self.shapes[index]
            for rows in _blocks(count, r * (p if score is _by_product else rank * num_queries)):
                left_NCP, right_NCR = tensors[f"left.{index}"][rows].to(wide), tensors[f"right.{index}"][rows].to(wide)
                scores_NQ[rows] += score(left_NCP, right_NCR, queries[index])
        return scores_NQ.T


def _by_query(left_NCP: Tensor, right_NCR: Tensor, query_QPR: Tensor) -> Tensor:
    """Sum over factors of u^T M v with M taken to the left factors first: least work for few queries; shape (N, Q)."""
    rows, rank, p = left_NCP.shape
    query_PQR = query_QPR.permute(1, 0, 2).reshape(p, -1)
    mixed_NCQR = (left_NCP.view(-1, p) @ query_PQR).view(rows, rank, len(query_QPR), -1)
    return mixed_NCQR.mul_(right_NCR[:, :, None]).sum((1, 3))


def _by_product(left_NCP: Tensor, right_NCR: Tensor, query_QPR: Tensor) -> Tensor:
    """The same with U V^T written out, a block of rows at a time: least work for many queries; shape (N, Q)."""
    return torch.bmm(left_NCP.transpose(1, 2), right_NCR).flatten(1) @ query_QPR.flatten(1).T


def _blocks(rows: int, numbers_per_row: int) -> list[slice]:
    """Rows at a time so that what is made of them stays in a core's cache."""
    step = max(16, _CACHE_NUMBERS // numbers_per_row)
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
