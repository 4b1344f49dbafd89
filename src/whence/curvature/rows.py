"""Per-example gradients of one unit, written out a few examples at a time.

Axes: B examples, T positions, O x I a unit's matrix.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from whence.capture import Plan, capture
from whence.data import Example
from whence.records import Dense, OneHot, Pair, Side
from whence.tasks import AbstractTask

__all__ = ["gradient_pairs", "unit_rows"]

# Numbers written out at once.
_NUMBERS = 1 << 23


def gradient_pairs(
    task: AbstractTask, plan: Plan, examples: Sequence[Example], *, autocast: torch.dtype | None = None
) -> dict[int, list[Pair]]:
    """The pairs of a batch's loss gradients, kept: as much memory as the inputs and output gradients of all layers.

    Args:
        task: Model and loss.
        plan: Its units.
        examples: The batch.
        autocast: As in `capture`.

    Returns:
        By index of the unit.
    """
    pairs: dict[int, list[Pair]] = {index: [] for index in range(len(plan.units))}

    def keep(index: int, pair: Pair) -> None:
        pairs[index].append(Pair(_detached(pair.outputs), _detached(pair.inputs)))

    capture(
        task,
        plan,
        task.collate(examples),
        keep,
        num_examples=len(examples),
        alone=lambda number: task.collate([examples[number]]),
        autocast=autocast,
    )
    return pairs


def unit_rows(pairs: Sequence[Pair]) -> Iterator[tuple[slice, Tensor]]:
    """The gradients that a batch's pairs of one unit stand for.

    Args:
        pairs: All pairs that capture gave for the unit; those of several uses add up.

    Yields:
        Which examples, and their gradients (B, O, I).
    """
    count = _values(pairs[0].outputs).shape[0]
    step = max(1, _NUMBERS // (pairs[0].outputs.size * pairs[0].inputs.size))
    for start in range(0, count, step):
        chosen = slice(start, min(start + step, count))
        yield chosen, sum((_gradient(_cut(pair, chosen)) for pair in pairs[1:]), start=_gradient(_cut(pairs[0], chosen)))


def _detached(side: Side) -> Side:
    """Without the graph, which would live as long as the pair and grow with what is done to it."""
    return replace(side, values_BTN=side.values_BTN.detach()) if isinstance(side, Dense) else side


def _gradient(pair: Pair) -> Tensor:
    if not isinstance(pair.outputs, OneHot):
        return pair.gradient()
    # A scatter of the inputs: writing out the one-hot side would cost a multiplication per row of the table.
    inputs_BTI = pair.inputs.dense()
    rows_BOI = inputs_BTI.new_zeros(len(inputs_BTI), pair.outputs.size, pair.inputs.size)
    return rows_BOI.scatter_add_(1, pair.outputs.ids_BT[..., None].expand_as(inputs_BTI), inputs_BTI)


def _cut(pair: Pair, chosen: slice) -> Pair:
    return Pair(_cut_side(pair.outputs, chosen), _cut_side(pair.inputs, chosen))


def _cut_side(side: Side, chosen: slice) -> Side:
    if isinstance(side, Dense):
        return replace(side, values_BTN=side.values_BTN[chosen])
    return replace(side, ids_BT=side.ids_BT[chosen])


def _values(side: Side) -> Tensor:
    return side.values_BTN if isinstance(side, Dense) else side.ids_BT
