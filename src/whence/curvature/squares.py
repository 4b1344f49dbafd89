"""Squares of per-example gradients in a unit's eigenbasis, summed over the positions and the uses of each example first.

Axes: B examples of a batch, T positions, O outputs, I inputs, U pairs of an example and a row of a table that it looks up.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from whence.capture import Plan
from whence.curvature.eigenbasis import KroneckerBlock
from whence.matmul import times_transposed
from whence.records import OneHot, Pair, Side
from whence.reflections import Basis

__all__ = ["SquaredGradients", "Taker", "held_examples", "shared_units"]

# Numbers of per-example gradients that are formed at a time, and that are held until an example's every use is in.
_CHUNK_NUMBERS = 1 << 20
_HELD_NUMBERS = 1 << 28


class Taker(Protocol):
    """What is done with squared gradients, in the three forms in which they are cheap to make."""

    def dense(self, index: int, start: int, squares_BOI: Tensor) -> None:
        """Written out, for the examples from `start` on."""
        ...

    def products(self, index: int, outputs_BO: Tensor, inputs_BI: Tensor) -> None:
        """Outer products of two vectors per example, for all examples: what a layer with one position has."""
        ...

    def rows(self, index: int, examples_U: Tensor, rows_U: Tensor, squares_UI: Tensor) -> None:
        """Single rows of the gradients of a table; all others are zero."""
        ...


class SquaredGradients:
    """Hands out squared gradients, to be passed to `capture` as its consumer.

    A unit that is used once per example is done with at once. The uses of a shared one are added up before they are squared, so its gradients
    are held until the pass is over. Which units are shared shows on the way: `finish` says so when a batch has to be run again.

    Args:
        blocks: The units' bases, by index of the unit.
        num_examples: Examples in the batch.
        shared: Indices of units that are used more than once; added to.
        taker: What is done with the squares.
    """

    def __init__(
        self, blocks: Sequence[KroneckerBlock] | Mapping[int, KroneckerBlock], num_examples: int, shared: set[int], taker: Taker
    ):
        self.blocks, self.num_examples, self.shared, self.taker = blocks, num_examples, shared, taker
        self.units_seen: set[int] = set()
        self.partial: dict[int, Tensor] = {}
        self.must_repeat = False

    def __call__(self, index: int, pair: Pair) -> None:
        """Take one pair."""
        pair = pair.wide()
        if index in self.shared:
            partial = self.partial.get(index)
            rotated_BOI = _rotated(self.blocks[index], pair)
            self.partial[index] = rotated_BOI if partial is None else partial.add_(rotated_BOI)
        elif index in self.units_seen:
            self.shared.add(index)
            self.must_repeat = True
        else:
            self.units_seen.add(index)
            self._take(index, pair)

    def finish(self) -> bool:
        """Hand out what was held; False if a unit turned out to be shared, so that what was handed out is wrong."""
        for index, rotated_BOI in self.partial.items():
            self.taker.dense(index, 0, rotated_BOI.square_())
        self.partial.clear()
        return not self.must_repeat

    def _take(self, index: int, pair: Pair) -> None:
        block = self.blocks[index]
        examples, positions = pair.shape
        if isinstance(pair.outputs, OneHot) and block.outputs_OO is None:
            self.taker.rows(index, *_looked_up(block, pair, pair.outputs))
        elif positions == 1:
            left_BTO, right_BTI = _sides(block, pair)
            self.taker.products(index, left_BTO[:, 0].square(), right_BTI[:, 0].square())
        else:
            for start, stop in _chunks(examples, block.unit.outputs * block.unit.inputs):
                self.taker.dense(index, start, _rotated(block, pair.examples(start, stop)).square_())


def shared_units(plan: Plan) -> set[int]:
    """Units that several layers use; one layer that is applied twice shows only when it runs."""
    return {index for index, unit in enumerate(plan.units) if len(unit.layers) > 1}


def held_examples(plan: Plan, shared: set[int]) -> int:
    """Examples per batch for which the gradients of shared units may be held, at least 1 and at most 256."""
    numbers = sum(plan.units[index].outputs * plan.units[index].inputs for index in shared)
    return max(1, min(256, _HELD_NUMBERS // max(numbers, 1)))


def _chunks(examples: int, numbers: int) -> Iterator[tuple[int, int]]:
    size = max(1, _CHUNK_NUMBERS // numbers)
    return ((start, min(start + size, examples)) for start in range(0, examples, size))


def _rotated(block: KroneckerBlock, pair: Pair) -> Tensor:
    """Per-example gradients in the basis, shape (B, O, I), in the cheaper of two orders."""
    outputs, inputs = block.unit.outputs, block.unit.inputs
    width_left, width_right = _operations(block.outputs_OO), _operations(block.inputs_II)
    sides_first = pair.shape[1] * (outputs * width_left + inputs * width_right)
    if sides_first > outputs * inputs * (width_left + width_right):
        return block.into(pair.gradient())
    if isinstance(pair.outputs, OneHot) and block.outputs_OO is None:
        rows_BOI = pair.gradient()
        return block.into(rows_BOI)
    left_BTO, right_BTI = _sides(block, pair)
    return torch.bmm(left_BTO.transpose(1, 2), right_BTI)


def _sides(block: KroneckerBlock, pair: Pair) -> tuple[Tensor, Tensor]:
    return _turned(pair.outputs, block.outputs_OO), _turned(pair.inputs, block.inputs_II)


def _operations(basis: Basis | None) -> int:
    """What turning a vector into a basis takes, per number of it."""
    return 0 if basis is None else len(basis) if isinstance(basis, Tensor) else 2 * basis.directions


def _turned(side: Side, basis_NN: Basis | None) -> Tensor:
    """A side's vectors in a basis, shape (B, T, N)."""
    if basis_NN is None:
        return side.dense()
    if not isinstance(basis_NN, Tensor):
        return basis_NN.rows(side.ids_BT, side.dtype) if isinstance(side, OneHot) else basis_NN.after(side.dense())
    if isinstance(side, OneHot):
        return side.times(basis_NN)
    columns_NN = basis_NN.to(side.values_BTN).T
    if not side.has_one:
        return times_transposed(side.values_BTN, columns_NN)
    return times_transposed(side.values_BTN, columns_NN[:, :-1]) + columns_NN[:, -1]


def _looked_up(block: KroneckerBlock, pair: Pair, outputs: OneHot) -> tuple[Tensor, Tensor, Tensor]:
    """The rows of a table's gradient that are not zero, squared: their examples, their places in the table, and they themselves."""
    right_BTI = _turned(pair.inputs, block.inputs_II)
    first_B1 = torch.arange(len(right_BTI), device=right_BTI.device)[:, None] * outputs.size
    keys_U, place_BT = torch.unique(outputs.ids_BT + first_B1, return_inverse=True)
    rows_UI = right_BTI.new_zeros(len(keys_U), right_BTI.shape[2])
    rows_UI.index_add_(0, place_BT.flatten(), right_BTI.flatten(0, 1))
    return keys_U // outputs.size, keys_U % outputs.size, rows_UI.square_()
