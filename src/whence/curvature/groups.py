"""A fit a few units at a time, where the factors of all of them at once are more than memory holds.

Every group of units costs a pass over the data for its factors and one for its eigenvalues. A pass is the same whatever it keeps, so the
numbers are those of a fit at once. Axes: O outputs, I inputs.
"""

from collections.abc import Callable, Container
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from whence.capture import Plan
from whence.capture.hooks import Consume
from whence.curvature.stages import Stages
from whence.records import Pair
from whence.tasks import AbstractTask

__all__ = ["POOLED", "Make", "UnitBytes", "in_groups", "number_bytes", "of_units", "unit_bytes"]

Make = Callable[[str, range], dict[str, Tensor]]
"""Makes the tensors of a group of units; also given what names its files end in."""

POOLED = 1.5
"""Times as much as a fit a pooled one takes: it adds up sums over sets of weights beside those of a pass."""

# Double copies of a side's moment and the workspace of its eigendecomposition, in squares of the side.
_DECOMPOSITION = 6


@dataclass(frozen=True)
class UnitBytes:
    """What the fit of one unit takes.

    Args:
        factors: Second moments of both sides, of every kind of layer that uses it.
        bases: Eigenvectors, and K-FAC's eigenvalues.
        values: Eigenvalues of EK-FAC, as many as parameters.
        decomposition: What finding the eigenvectors takes besides, one unit at a time.
    """

    factors: int
    bases: int
    values: int
    decomposition: int

    def of_stage(self, stage: str) -> int:
        """Held for as long as a stage of the fit goes over a group with this unit: sums of the pass and of a batch."""
        return max(2 * self.factors, self.factors + self.bases) if stage == "bases" else self.bases + 2 * self.values


def unit_bytes(task: AbstractTask, plan: Plan, largest_side: int) -> list[UnitBytes]:
    """What the fit of every unit takes.

    Args:
        task: Model, for the type of its numbers.
        plan: Its units.
        largest_side: As in `FitConfig`.

    Returns:
        One per unit.
    """
    number = number_bytes(task)
    modules = {layer.name: layer.module for layer in plan.layers}
    found = []
    for unit in plan.units:
        kinds = {_is_lookup(modules[name]) for name in unit.layers} or {False}
        full = [size * size if 1 < size <= largest_side else 0 for size in (unit.outputs, unit.inputs)]
        factors = sum((unit.outputs if lookup or not full[0] else full[0]) + (full[1] or unit.inputs) for lookup in kinds)
        if kinds == {True}:  # one-hot sides have diagonal moments, so no basis
            full[0] = 0
        bases = sum(full) + len(kinds) * (unit.outputs + unit.inputs)
        work = 8 * (sum(full) + _DECOMPOSITION * max(full))
        found.append(UnitBytes(number * factors, number * bases, number * unit.outputs * unit.inputs, work))
    return found


def number_bytes(task: AbstractTask) -> int:
    """Bytes of a number in sums over positions: float32 or wider."""
    types = [parameter.dtype for name, parameter in task.model.named_parameters() if name in task.tracked]
    wide = torch.float32
    for kind in types:
        wide = torch.promote_types(wide, kind)
    return wide.itemsize


def in_groups(run: Stages, stage: str, costs: list[int], room_bytes: int | None, make: Make) -> dict[str, Tensor]:
    """One stage of a fit, all of its units at once or group by group, each group kept when it is done.

    Args:
        run: Where results are kept.
        stage: Its name.
        costs: Bytes, per unit.
        room_bytes: For a group; None takes all at once.
        make: Makes a group.

    Returns:
        The tensors of all units.
    """
    parts = run.parts(stage, costs, float("inf") if room_bytes is None else room_bytes)
    found: dict[str, Tensor] = {}
    for name, units in parts.items():
        found |= run.run(name, lambda name=name, units=units: make(name.removeprefix(stage), units))
    return found


def of_units(consume: Consume, units: Container[int]) -> Consume:
    """A consumer that is given the pairs of some units only."""

    def some(index: int, pair: Pair) -> None:
        if index in units:
            consume(index, pair)

    return some


def _is_lookup(module: nn.Module) -> bool:
    groups = getattr(module, "groups", 1)  # gradients of grouped convolutions are written out, row by row
    return isinstance(module, nn.Embedding) or groups > 1
