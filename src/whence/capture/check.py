"""Checks of a task on real examples before anything long runs: wrong scores must not be silent.

A few examples, chosen to differ, go through capture as one padded batch and through plain autograd one at a time; every unit must agree.
Their values are also looked at in a larger batch.
"""

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from whence.capture.batch_values import are_equal, check_values, mixes, narrowest_type, unchanging
from whence.capture.halves import is_out_of_memory
from whence.capture.hooks import Objective
from whence.capture.one_by_one import Trial
from whence.capture.telling_examples import companions, telling_examples
from whence.capture.units import LayerUse, Plan, listed, way_out
from whence.data import Example
from whence.errors import BadInput, Unsupported
from whence.sharded_weights import is_sharded
from whence.tasks import AbstractTask
from whence.tasks.base import precision

__all__ = ["check_task"]

_TOLERANCE = {torch.float64: 1e-7, torch.float32: 2e-3}
_HALF_TOLERANCE = 0.1
# What rounding makes of a gradient that is zero, in units of the last bit of the largest.
_ROUNDINGS = 30


def check_task(
    task: AbstractTask,
    plan: Plan,
    examples: Sequence[Example],
    *,
    objective: Objective = "loss",
    autocast: torch.dtype | None = None,
) -> list[str]:
    """Hold the captured gradients of a few examples against autograd.

    Args:
        task: Model and loss.
        plan: Its units.
        examples: Where they are taken from; see `whence.capture.telling_examples`.
        objective: Loss or measurement.
        autocast: As in `capture`.

    Returns:
        Names of units whose gradient is zero on all of these.

    Raises:
        BadInput: If the objective mixes the examples of a batch, is mean-reduced, changes from call to call, or cannot be had of one of them.
        NonFinite: If the objective is NaN or infinite.
        Unsupported: If a unit's captured gradient is not the true one, and the task does not let the functional twin make it instead.
    """
    parameters = sum(parameter.numel() for parameter in task.model.parameters())
    chosen = telling_examples(examples, parameters)
    task.collate(chosen)  # says which of them do not go together
    trial = Trial(task, plan, chosen, objective, autocast)
    # One at a time first: what is wrong with one example is said of that one.
    alone, expected, norms = trial.one_by_one()
    is_known, plan.route.is_checked = plan.route.is_checked, False
    captured, together = trial.captured()
    plain = unchanging(trial)
    tolerance = _TOLERANCE.get(autocast or precision(task.model), _HALF_TOLERANCE)
    shared = [layer for layer in plan.layers if plan.route.uses.get(layer.name, set()) & {"shared", "bare"}]
    if shared and not any(are_equal(trial, together, plain, by) for by in (tolerance, _widened(trial, tolerance))):
        captured, together = _unshared(trial, shared)
    others = companions(examples, chosen, parameters)
    try:
        check_values(trial, others, together, alone, tolerance)
    except BadInput:
        tolerance = _widened(trial, tolerance)
        check_values(trial, others, together, alone, tolerance)
    if bool(_wrong(captured, expected, norms, tolerance).any()):
        _settle(trial, captured, expected, norms, _widened(trial, tolerance))
    plan.route.is_checked = is_known or len(chosen) > 1
    _doubt_shared(plan, norms)
    return [unit.name for unit, norm in zip(plan.units, norms, strict=True) if float(norm.max()) == 0.0]


def _settle(trial: Trial, captured: Tensor, expected: Tensor, norms: Tensor, tolerance: float) -> None:
    """Have wrong gradients made in other ways until all are right, or say what is wrong; arguments as of `_wrong`."""
    plan, tried = trial.plan, set[str]()
    while bool((wrong := _wrong(captured, expected, norms, tolerance)).any()):
        units = wrong.any(1).nonzero()[:, 0].tolist()
        tables = {layer.name for layer in plan.layers if layer.units & {*units}} & plan.route.flat - plan.route.bare - tried
        tried |= tables
        again = _with_bare(trial, tables) if tables else None
        if again is not None and not bool(_wrong(again, expected, norms, tolerance)[_fed_by(plan, tables)].any()):
            captured = again
            continue
        plan.route.bare -= tables
        if not _rerouted(plan, units):
            _refuse(trial, units, captured, expected, norms, tolerance)
        captured, _ = trial.captured()


def _wrong(captured: Tensor, expected: Tensor, norms: Tensor, tolerance: float) -> Tensor:
    """Which units of which examples differ by more than rounding, shape (units, B)."""
    # Half precision rounds every layer's gradient with the noise of the whole backward pass, so the largest norm is its scale.
    scale = norms if tolerance < _HALF_TOLERANCE else norms.amax(0, keepdim=True)
    # A gradient that is zero but for rounding has the noise of the largest one.
    least = _ROUNDINGS * torch.finfo(torch.float32).eps / tolerance if tolerance >= _TOLERANCE[torch.float32] else 1e-6
    apart = (captured - expected).square().mean(2).sqrt()
    return ~(apart <= tolerance * scale.clamp_min(1e-12 + least * norms.amax().item()))


def _with_bare(trial: Trial, tables: set[str]) -> Tensor | None:
    """What is captured where the one axis of these tables' ids is none of the examples, though by chance as long; None if it cannot be."""
    trial.plan.route.bare |= tables
    try:
        return trial.captured()[0]
    except Exception as error:
        if is_out_of_memory(error) or is_sharded(trial.task.model):
            raise
        return None


def _fed_by(plan: Plan, names: set[str]) -> list[int]:
    return sorted({unit for layer in plan.layers if layer.name in names for unit in layer.units})


def _widened(trial: Trial, tolerance: float) -> float:
    """The tolerance of the narrowest type that the model really computes in, which may not be that of its weights."""
    return max(tolerance, _TOLERANCE.get(narrowest_type(trial), _HALF_TOLERANCE))


def _unshared(trial: Trial, shared: list[LayerUse]) -> tuple[Tensor, Tensor]:
    """What is captured where a layer's one row, taken as that of all examples, made the model compute something else.

    Args:
        trial: The examples.
        shared: The layers that may be meant.

    Returns:
        As `Trial.captured`.

    Raises:
        Unsupported: If no twin may make these layers' gradients instead.
    """
    plan = trial.plan
    if not plan.route.has_twin:
        names = [name for layer in shared for unit in sorted(layer.units) for name in plan.units[unit].parameters]
        raise Unsupported(
            found=f"layer {shared[0].name!r} with one row for the whole batch, which is not that of all examples",
            needed="a row for every example, or one that all share",
            do=f"{way_out(trial.task, names)} (slower, any use), or leave them out with ignore={listed(trial.task, names)}",
        )
    plan.route.twin |= {unit for layer in shared for unit in layer.units}
    return trial.captured()


def _rerouted(plan: Plan, units: list[int]) -> bool:
    """Have wrong units made in a slower way, if there is one that the task allows."""
    route = plan.route
    if route.side_by_side and not set(units).isdisjoint(plan.twin_units):
        route.side_by_side = False
        return True
    if not route.has_twin:
        return False
    before = len(route.twin)
    route.twin |= {index for index in units if index not in plan.twin_units}
    # Layers that have the same place in other blocks are used alike, whether or not these examples show it.
    kinds = {_kind(layer.name) for layer in plan.layers if layer.units & route.twin}
    route.twin |= {unit for layer in plan.layers if _kind(layer.name) in kinds for unit in layer.units}
    return len(route.twin) > before


def _kind(name: str) -> str:
    return re.sub(r"\d+", "*", name)


def _refuse(trial: Trial, units: list[int], captured: Tensor, expected: Tensor, norms: Tensor, tolerance: float) -> None:
    """Say why captured gradients are wrong: are the examples' own not even those of their sum?

    Raises:
        BadInput: If not, since then the examples of a batch are mixed.
        Unsupported: If they are, and the layer is used in a way that its rule does not know.
    """
    task, plan, index = trial.task, trial.plan, units[0]
    total, added = trial.of_sum(), expected.sum(1)
    # Of the contractions the one that shows most.
    example = int((captured[index] - expected[index]).abs().amax(0).argmax())
    seen, true = captured[index, :, example], expected[index, :, example]
    if bool(((total - added).square().mean(1).sqrt() > tolerance * norms.sum(1))[units].any()):
        raise BadInput(**mixes(f"gradient of {plan.units[index].name!r}", trial.chosen, seen, true))
    names = [name for unit in units for name in plan.units[unit].parameters]
    more = f" (and of {len(units) - 1} more)" if len(units) > 1 else ""
    raise Unsupported(
        found=f"a captured gradient of {plan.units[index].name!r}{more} that differs from autograd's "
        f"({seen.tolist()} against {true.tolist()})",
        needed="layers whose weights are used only through their own forward",
        do=f"{way_out(task, names)} (slower, any use), or leave them out with ignore={listed(task, names)}; if they are ordinary layers, "
        "please report this",
    )


def _doubt_shared(plan: Plan, norms: Tensor) -> None:
    """A single row that only some of the examples' losses reach may be that of one of them, but for tables that make their ids themselves.

    What those look up is of no example, and a target of one token has no distances.
    """
    is_reached_E = norms.amax(0) > 0
    for layer in plan.layers:
        if (
            layer.owner is None
            and not layer.rule.finds_ids
            and any(bool((is_reached_E & (norms[unit] == 0)).any()) for unit in layer.units)
        ):
            plan.route.uses.get(layer.name, set()).difference_update(("shared", "bare"))
