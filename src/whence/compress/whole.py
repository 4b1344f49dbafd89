"""One random projection of the whole gradient, all units together (TRAK).

Axes: B batch, T positions, O outputs, I inputs, S some of the outputs, K numbers of a row.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

import torch
from torch import Tensor

from whence.compress.projection import Random, random_matrix
from whence.compress.sparse import SparseSketch
from whence.records import OneHot, Pair, Side, Unit

__all__ = ["WholeProjection", "joined_unit"]

# Numbers of a projection made at a time, dense and sparse: they decide where one block's random stream ends and the next begins, so rows
# of stores depend on them.
_DENSE_NUMBERS = 1 << 22
_SPARSE_NUMBERS = 1 << 20
# Of a projection that is kept between batches instead of being drawn again.
_KEPT_BYTES = 512 << 20
# Of gradients written out at a time.
_GRADIENT_NUMBERS = 1 << 23


def joined_unit(units: Sequence[Unit]) -> Unit:
    """All parameters as the one unit that a row of the whole gradient stands for.

    >>> joined_unit([Unit("a", 2, 3, ("a",)), Unit("b", 1, 4, ("b",))]).inputs
    10
    """
    size = sum(unit.outputs * unit.inputs for unit in units)
    return Unit("all parameters", 1, size, tuple(name for unit in units for name in unit.parameters))


@dataclass(frozen=True)
class _Dense:
    """A block of a dense projection, with the verbs of a sparse one."""

    matrix_NK: Tensor

    def times(self, rows_BN: Tensor) -> Tensor:
        return rows_BN @ self.matrix_NK.to(rows_BN.dtype)

    def back(self, query_K: Tensor) -> Tensor:
        return self.matrix_NK.to(query_K) @ query_K


@dataclass(frozen=True)
class WholeProjection:
    """phi = P^T g for the whole gradient g, P random with E[P P^T] = 1 (Park et al. 2023, section 3).

    P is never there as a whole: a block of it belongs to some rows of one unit's gradient and is drawn from the unit's name and the
    block's place.

    Args:
        plan_units: The units that are joined.
        width_K: Numbers of a row.
        kind: Dense entries of either distribution, or one random sign per parameter.
        seed: The run's seed.
        device: Where it works.
        blocks_drawn: Blocks drawn so far, if all of them fit.
    """

    plan_units: tuple[Unit, ...]
    width_K: int
    kind: Random | Literal["sparse"]
    seed: int
    device: torch.device
    blocks_drawn: dict[tuple[int, int], _Dense | SparseSketch] = field(default_factory=dict, repr=False, compare=False)

    @property
    def units(self) -> tuple[Unit, ...]:
        """The one stored unit."""
        return (joined_unit(self.plan_units),)

    def shapes(self) -> list[tuple[int, int]]:
        """(1, K)."""
        return [(1, self.width_K)]

    def gains(self) -> list[float]:
        """Parameters over K, the expected mean diagonal of P^T P."""
        return [self.units[0].inputs / self.width_K]

    def rows(self, num_examples: int) -> "JoinedRows":
        """A fresh consumer for a batch."""
        return JoinedRows(self.project, num_examples, self.width_K, self.device)

    def project(self, index: int, pair: Pair) -> Tensor:
        """One pair's part of the rows, shape (B, K)."""
        pair = pair.wide()
        found_BK = torch.zeros(pair.shape[0], self.width_K, device=self.device) if pair.shape[1] == 0 else None
        for start, stop in self._blocks(index) if found_BK is None else ():
            if not _reaches(pair.outputs, start, stop):
                continue
            block = self._block(index, start, stop)
            step = max(1, _GRADIENT_NUMBERS // ((stop - start) * pair.inputs.size))
            parts = [
                block.times(_gradient_rows(pair.examples(at, at + step), start, stop).flatten(1))
                for at in range(0, pair.shape[0], step)
            ]
            found_BK = torch.cat(parts) if found_BK is None else found_BK + torch.cat(parts)
        assert found_BK is not None, "every pair has outputs within its unit"
        return found_BK

    def position_scores(self, index: int, pair: Pair, queries: Sequence[Tensor]) -> Tensor:
        """Each position's part of the inner product of one example's row with a query, shape (T,); see `Encoder`."""
        query_K = queries[0].flatten().to(self.device)
        inputs_TI = pair.inputs.dense()[0].to(query_K)
        scores_T = query_K.new_zeros(len(inputs_TI))
        for start, stop in self._blocks(index):
            if _reaches(pair.outputs, start, stop):
                weights_SI = self._block(index, start, stop).back(query_K).view(stop - start, -1)
                outputs_TS = pair.outputs.columns(torch.arange(start, stop, device=self.device))[0].to(query_K)
                scores_T += torch.einsum("ts,si,ti->t", outputs_TS, weights_SI, inputs_TI)
        return scores_T

    def _blocks(self, index: int) -> Iterator[tuple[int, int]]:
        unit = self.plan_units[index]
        step = _SPARSE_NUMBERS if self.kind == "sparse" else _DENSE_NUMBERS // self.width_K
        step = max(1, step // unit.inputs)
        for start in range(0, unit.outputs, step):
            yield start, min(start + step, unit.outputs)

    def _block(self, index: int, start: int, stop: int) -> "_Dense | SparseSketch":
        if (index, start) in self.blocks_drawn:
            return self.blocks_drawn[index, start]
        unit = self.plan_units[index]
        size, name = (stop - start) * unit.inputs, f"{unit.name}:rows from {start}"
        if self.kind == "sparse":
            block = SparseSketch.random(size, self.width_K, seed=self.seed, name=name, device=self.device)
        else:
            matrix_NK = random_matrix(cast(Random, self.kind), size, self.width_K, seed=self.seed, name=name)
            block = _Dense(matrix_NK.to(self.device))
        # 12 bytes a parameter for a slot and its sign.
        if self.units[0].inputs * (12 if self.kind == "sparse" else 4 * self.width_K) <= _KEPT_BYTES:
            self.blocks_drawn[index, start] = block
        return block


class JoinedRows:
    """Adds up the parts that all units of one batch have in a single row.

    Args:
        project: From a unit's index and a pair to its part, shape (B, K).
        num_examples: Examples in the batch.
        width_K: Numbers of a row.
        device: Where rows of zeros go if no unit is reached.
    """

    def __init__(self, project, num_examples: int, width_K: int, device: torch.device):
        self.project = project
        self.rows_BK = torch.zeros(num_examples, width_K, device=device)

    def __call__(self, index: int, pair: Pair) -> None:
        """Add one pair."""
        # Not in place: the sum takes the wider of the two types.
        self.rows_BK = self.rows_BK + self.project(index, pair)

    def finished(self) -> list[Tensor]:
        """The one unit's rows, shape (B, 1, K)."""
        return [self.rows_BK[:, None]]


def _reaches(side: Side, start: int, stop: int) -> bool:
    """Whether any position has an output in that range: a table of tokens has few."""
    return not isinstance(side, OneHot) or bool(((side.ids_BT >= start) & (side.ids_BT < stop)).any())


def _gradient_rows(pair: Pair, start: int, stop: int) -> Tensor:
    """Some rows of every example's gradient, shape (B, S, I)."""
    inputs_BTI = pair.inputs.dense()
    if not isinstance(pair.outputs, OneHot):
        return torch.bmm(pair.outputs.dense()[..., start:stop].transpose(1, 2), inputs_BTI)
    rows_BSI = inputs_BTI.new_zeros(len(inputs_BTI), stop - start, inputs_BTI.shape[2])
    inside_BT = (pair.outputs.ids_BT >= start) & (pair.outputs.ids_BT < stop)
    owners_R = inside_BT.nonzero()[:, 0]
    return rows_BSI.index_put_((owners_R, pair.outputs.ids_BT[inside_BT] - start), inputs_BTI[inside_BT], accumulate=True)
