"""How quantised rows lie in tensors: codes per unit and side, and all scales of a row together.

Axes: N rows, P projected outputs, R projected inputs, C factors, Q queries, B bytes, S scales of a row, D = P x R numbers of a unit.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from whence.compress.factors import factor_ranks, factorize, score_factors
from whence.compress.integers import IntegerScorer
from whence.compress.quantize import packed_width, quantize, to_integers

__all__ = ["QuantizedCodec"]

_SCALE_BYTES = 2


@dataclass(frozen=True)
class QuantizedCodec:
    """Between rows, one matrix per unit, and the tensors of a shard whose numbers are small integers.

    Dense and factored units are told apart as in `RowCodec`. Each dense unit of a row has a scale of its own, and so has each factor vector.

    Args:
        names: Names of the units.
        shapes: Projected (outputs, inputs) of each.
        factor_rank: Factors kept per row and unit; None keeps everything dense.
        bits: 8, 4, 2 or 1 per number, for each unit.
        seed: The run's seed, for the factors' start.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...]
    factor_rank: int | None
    bits: tuple[int, ...]
    seed: int

    @cached_property
    def ranks(self) -> list[int | None]:
        """Factors per unit; None for a dense unit."""
        return factor_ranks(self.shapes, self.factor_rank)

    @cached_property
    def _sides(self) -> list[tuple[str, tuple[int, ...], int, int]]:
        """Name of each tensor of codes, its leading axes after the rows, the numbers coded together, and bits of each."""
        sides: list[tuple[str, tuple[int, ...], int, int]] = []
        for index, (rank, (p, r), bits) in enumerate(zip(self.ranks, self.shapes, self.bits, strict=True)):
            sides += [(f"dense.{index}", (), p * r, bits)] if rank is None else []
            sides += [(f"left.{index}", (rank,), p, bits), (f"right.{index}", (rank,), r, bits)] if rank is not None else []
        return sides

    @cached_property
    def _scales(self) -> dict[str, slice]:
        """Where in a row's scales those of each tensor of codes are."""
        slices, at = {}, 0
        for name, leading, _, _ in self._sides:
            slices[name] = slice(at, at + prod(leading))
            at = slices[name].stop
        return slices

    def row_bytes(self) -> int:
        """Bytes that one row takes, its scales counted in."""
        return sum(prod(leading) * (packed_width(width, bits) + _SCALE_BYTES) for _, leading, width, bits in self._sides)

    def layout(self) -> dict[str, tuple[int, ...]]:
        """Name and shape per row of every tensor of a shard, in the order they are written."""
        codes: dict[str, tuple[int, ...]] = {
            name: (*leading, packed_width(width, bits)) for name, leading, width, bits in self._sides
        }
        return {**codes, "scales": (max(chosen.stop for chosen in self._scales.values()),)}

    def types(self) -> dict[str, torch.dtype]:
        """Type of every tensor of a shard."""
        codes = {name: torch.int8 if bits == 8 else torch.uint8 for name, _, _, bits in self._sides}
        return {name: codes.get(name, torch.bfloat16) for name in self.layout()}

    def encode(self, rows: Sequence[Tensor]) -> dict[str, Tensor]:
        """Tensors of a shard.

        Args:
            rows: Per unit, shape (N, P, R), float32 or wider.

        Returns:
            The tensors that `layout` announces, on the CPU.
        """
        numbers: dict[str, Tensor] = {}
        for index, rank in enumerate(self.ranks):
            if rank is None:
                numbers[f"dense.{index}"] = rows[index].flatten(1)
            else:
                factors = factorize(rows[index], rank, seed=self.seed, name=self.names[index])
                numbers[f"left.{index}"], numbers[f"right.{index}"] = factors
        tensors, scales = {}, []
        for name, leading, width, bits in self._sides:
            codes, scale = quantize(numbers[name].reshape(-1, width), bits)
            tensors[name] = codes.view(len(rows[0]), *leading, -1)
            scales.append(scale.view(len(rows[0]), -1))
        return {**tensors, "scales": torch.cat(scales, 1)}

    def decode(self, tensors: Mapping[str, Tensor], index: int) -> Tensor:
        """The rows of one unit, shape (N, D), in float32, as they were stored."""
        if self.ranks[index] is None:
            return self._numbers(tensors, f"dense.{index}", self.shapes[index][0] * self.shapes[index][1])
        left_NCP = self._numbers(tensors, f"left.{index}", self.shapes[index][0])
        return (left_NCP.transpose(1, 2) @ self._numbers(tensors, f"right.{index}", self.shapes[index][1])).flatten(1)

    def tensors_of(self, index: int) -> list[str]:
        """Names of the tensors that `decode` reads for a unit."""
        return [f"dense.{index}" if self.ranks[index] is None else f"left.{index}", *self._right_of(index), "scales"]

    def right_factors(self, tensors: Mapping[str, Tensor], index: int) -> Tensor:
        """Right factors V of a factored unit, shape (N, C, R), in float32, each shortened to the root of its length.

        Factors are made with unit length and lose some of it as codes. Shortened so, V^T V is the stored factor times its direction,
        which is what takes a gradient to the row that is stored of it.
        """
        right_NCR = self._numbers(tensors, f"right.{index}", self.shapes[index][1])
        return right_NCR / right_NCR.norm(dim=-1, keepdim=True).sqrt().clamp_min(torch.finfo(torch.float32).tiny)

    def scorer(self, queries: Sequence[Tensor]) -> Callable[[Mapping[str, Tensor]], Tensor]:
        """Inner products of rows with preconditioned queries, summed over units.

        Dense units are multiplied as integers; factors, which take far more arithmetic per byte, are widened block by block.

        Args:
            queries: Per unit, shape (Q, P, R), full precision.

        Returns:
            From a shard's tensors to scores of shape (Q, N), in the queries' type.
        """
        wide, num_queries = queries[0].dtype, len(queries[0])
        dense = [self._dense_of(bits, queries) for bits in sorted({*self.bits}, reverse=True)]

        def score(tensors: Mapping[str, Tensor]) -> Tensor:
            count = len(tensors["scales"])
            scores_NQ = torch.zeros(count, num_queries, dtype=wide)
            for names, scorer in dense:
                if scorer is not None:
                    scales_UN = tensors["scales"].T[[self._scales[name].start for name in names]].to(wide)
                    scores_NQ += scorer([tensors[name] for name in names], scales_UN)
            for index, rank in enumerate(self.ranks):
                if rank is not None:
                    read = {name: tensors[name] for name in self.tensors_of(index)}

                    def factors(rows: slice, index: int = index, read: dict[str, Tensor] = read) -> tuple[Tensor, Tensor]:
                        block = {name: tensor[rows] for name, tensor in read.items()}
                        left, right = (self._numbers(block, f"{side}.{index}", width) for side, width in self._widths(index))
                        return left.to(wide), right.to(wide)

                    score_factors(count, rank, factors, queries[index], scores_NQ)
            return scores_NQ.T

        return score

    def _dense_of(self, bits: int, queries: Sequence[Tensor]) -> tuple[list[str], IntegerScorer | None]:
        """Names of the codes of dense units of so many bits, and what multiplies them."""
        indices = [index for index, rank in enumerate(self.ranks) if rank is None and self.bits[index] == bits]
        scorer = IntegerScorer([queries[index].flatten(1) for index in indices], bits) if indices else None
        return [f"dense.{index}" for index in indices], scorer

    def _widths(self, index: int) -> tuple[tuple[str, int], tuple[str, int]]:
        return ("left", self.shapes[index][0]), ("right", self.shapes[index][1])

    def _right_of(self, index: int) -> list[str]:
        return [] if self.ranks[index] is None else [f"right.{index}"]

    def _numbers(self, tensors: Mapping[str, Tensor], name: str, width: int) -> Tensor:
        """Codes times scales, in float32, in the shape of the codes but for the last axis."""
        codes, scales_NS = tensors[name], tensors["scales"][:, self._scales[name]].float()
        bits = self.bits[int(name.split(".")[1])]
        integers = to_integers(codes.reshape(-1, codes.shape[-1]), bits)[:, :width]
        numbers = integers * scales_NS.reshape(-1, 1)
        return numbers.view(*codes.shape[:-1], width)
