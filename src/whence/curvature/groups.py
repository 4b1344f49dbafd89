"""A fit a few units at a time, where the factors of all of them at once are more than memory holds.

Every group of units costs a pass over the data for its factors and one for its eigenvalues. A pass is the same whatever it keeps, so the
numbers are those of a fit at once. Axes: O outputs, I inputs.
"""

from collections.abc import Callable, Container
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from whence.capture import Plan
from whence.capture.taps import Consume
from whence.curvature.sides import LONG_SIDE, directions_of, units_of_classes
from whence.curvature.stages import Stages
from whence.records import Pair
from whence.settings import FitConfig
from whence.tasks import AbstractTask

__all__ = ["POOLED", "Make", "UnitBytes", "in_groups", "number_bytes", "of_units", "unit_bytes"]

Make = Callable[[str, range], dict[str, Tensor]]
"""Makes the tensors of a group of units; also given what names its files end in."""

POOLED = 1.5
"""Times as much as a fit a pooled one takes: it adds up sums over sets of weights beside those of a pass."""

# Copies of a side's moment and the workspace of its eigendecomposition, in squares of the side; and of a sketch, in times the sketch.
_DECOMPOSITION, _SKETCH = 7, 5


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


def unit_bytes(task: AbstractTask, plan: Plan, config: FitConfig, classes: int = 0) -> list[UnitBytes]:
    """What the fit of every unit takes.

    Args:
        task: Model, for the type of its numbers.
        plan: Its units.
        config: Of the fit, resolved.
        classes: How many the task's outputs tell apart, if a side of them is cut; see `Probes`.

    Returns:
        One per unit.
    """
    number = number_bytes(task)
    modules = {layer.name: layer.module for layer in plan.layers}
    sizes_by_unit = []
    class_units = units_of_classes(plan.units, classes)
    for index, unit in enumerate(plan.units):
        kinds = {_is_lookup(modules[name]) for name in unit.layers} or {False}
        sizes = (unit.outputs, unit.inputs)
        direction_counts = [directions_of(size, config) for size in sizes]
        # Of a one-hot side there is a diagonal only, which is its own basis; of a sketched one the diagonal and the sketch.
        shapes = [
            size * size if width == size else size + size * width for size, width in zip(sizes, direction_counts, strict=True)
        ]
        numbers = [size * width for size, width in zip(sizes, direction_counts, strict=True)]
        is_block = index in class_units and 0 < direction_counts[0] < unit.outputs
        if is_block:
            shapes[0], numbers[0] = (
                unit.outputs + direction_counts[0] ** 2,
                direction_counts[0] ** 2 + unit.outputs + direction_counts[0],
            )
        factors = sum((unit.outputs if lookup else shapes[0]) + shapes[1] for lookup in kinds) + is_block * direction_counts[0]
        if kinds == {True}:
            direction_counts[0] = numbers[0] = 0
        bases = sum(numbers) + len(kinds) * sum(sizes)
        work = max(
            _work_bytes(direction_counts[0] if is_block else sizes[0], direction_counts[0]),
            _work_bytes(sizes[1], direction_counts[1]),
        )
        sizes_by_unit.append(UnitBytes(number * factors, number * bases, number * unit.outputs * unit.inputs, work))
    return sizes_by_unit


def _work_bytes(size: int, width: int) -> int:
    """What finding a side's basis takes besides the sums: copies, workspace and vectors."""
    if width == size:
        return (8 if size <= LONG_SIDE else 4) * _DECOMPOSITION * size * size
    return 8 * _SKETCH * size * width


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
    tensors: dict[str, Tensor] = {}
    for name, units in parts.items():
        tensors |= run.run(name, lambda name=name, units=units: make(name.removeprefix(stage), units))
    return tensors


def of_units(consume: Consume, units: Container[int]) -> Consume:
    """A consumer that is given the pairs of some units only."""

    def some(index: int, pair: Pair) -> None:
        if index in units:
            consume(index, pair)

    return some


def _is_lookup(module: nn.Module) -> bool:
    groups = getattr(module, "groups", 1)  # gradients of grouped convolutions are written out, row by row
    return isinstance(module, nn.Embedding) or groups > 1
