"""Per-example gradient pairs from one forward and one backward pass with the weights frozen.

Each tracked layer's output passes through a tap: an identity for the model, whose backward step sees the layer's input and output
gradient together. Nothing else needs a gradient, so autograd multiplies for the layers' inputs only: two thirds of a training step.
Because a tap keeps its input the way any autograd function does, gradient checkpointing recomputes it and in-place changes are caught.
"""

import warnings
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Literal

import torch
from torch import Tensor, nn

from whence.capture.frozen import frozen
from whence.capture.functional import functional_pairs
from whence.capture.halves import is_out_of_memory
from whence.capture.taps import Consume, TapMode, taps, way_out_of
from whence.capture.units import LayerUse, Plan
from whence.errors import BadInput, Unsupported
from whence.sharded_weights import is_sharded
from whence.tasks import AbstractTask, Batch

__all__ = ["Objective", "capture", "not_reached", "objective_function"]

Objective = Literal["loss", "measurement", "negated output"] | Callable[[nn.Module, Batch], Tensor]
"""What is differentiated: one of the task's own, or a function of model and batch that gives one value per example."""


def capture(
    task: AbstractTask,
    plan: Plan,
    batch: Batch,
    consume: Consume,
    *,
    num_examples: int,
    alone: Callable[[int], Batch] | None = None,
    objective: Objective = "loss",
    autocast: torch.dtype | None = None,
) -> Tensor:
    """Run one batch and hand out the gradient pairs of every unit.

    Args:
        task: Model and loss.
        plan: Its units.
        batch: What `task.collate` made.
        consume: Called during the backward pass with (unit index, pair), several times for a unit that is used several times.
        num_examples: Examples in the batch.
        alone: Gives the batch of one example alone, by its place in the batch: what the functional twin runs on. Needed by tasks with
            `functional`.
        objective: Differentiate the loss (training examples), the measurement (queries), or a function of one's own.
        autocast: Run the model in this type under autocast.

    Returns:
        The objective's value for each example, shape (B,), in its own unit.

    Raises:
        BadInput: If the objective does not give one value per example.
        IndexError: Like RuntimeError, whatever else the model raises.
        RuntimeError: Whatever else the model raises.
        Unsupported: If a layer does not keep the examples apart, or does not reach the objective.
    """
    function = objective_function(task, objective)
    device = task.device.type
    with frozen(task.model), ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        if is_sharded(task.model):
            # A tap is a view, and changing it in place an error, which is dealt with below.
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        if autocast is not None:
            stack.enter_context(torch.autocast(device, dtype=autocast))
        # A function of one's own may have a batch of its own form.
        rows = num_examples * task.draws if callable(objective) else task.num_rows(batch, num_examples)
        with taps(plan, consume, num_examples, task.device, rows=rows) as mode:
            mode.has_twin = plan.route.has_twin
            values = _values(function, task.model, batch, mode)
            _check_values(values, num_examples, objective)
            units = sorted({*plan.twin_units, *(mode.odd if mode.has_twin else ())})
            if mode.has_twin and not plan.route.is_checked:
                plan.route.twin.update(mode.odd)
            if values.grad_fn is not None:
                values.sum().backward()
            # Later, examples need not reach what those of the check did.
            elif not plan.route.is_checked and not mode.has_twin and not all(layer.units <= {*units} for layer in plan.layers):
                raise Unsupported(**not_reached(objective))
        if units:
            assert alone is not None
            functional_pairs(function, task.model, plan, units, [alone(index) for index in range(num_examples)], consume)
    return values.detach()


def _values(function: Callable[[nn.Module, Batch], Tensor], model: nn.Module, batch: Batch, mode: "TapMode") -> Tensor:
    """The function's values, with taps that the model can stand.

    Raises:
        Unsupported: If it cannot stand one and there is no twin for that layer.
        error: Whatever else it raises.
    """
    refused: tuple[LayerUse, Exception] | None = None
    while True:
        try:
            values = function(model, batch)
            break
        except Exception as error:
            if "modified inplace" in str(error) and not mode.copies:
                mode.copies = True  # such as x += y on a layer's output: tap a copy of it
            elif (
                mode.repeated is None or is_out_of_memory(error) or is_sharded(model)
            ):  # all processes of a sharded one run equally often
                raise error
            else:  # perhaps because of the repeated row; if not, it fails without as well
                refused, mode.repeated = (mode.repeated, error), None
                mode.odd.update(dict.fromkeys(refused[0].units, refused[0]))
    if refused is not None and not mode.has_twin:
        layer, error = refused
        raise Unsupported(
            found=f"layer {layer.name!r} with one row for the whole batch, which the model cannot take once per example "
            f"({' '.join(str(error).split()) or type(error).__name__})",
            needed="a row for every example, or one that all share",
            do=way_out_of(layer),
        ) from error
    return values


def not_reached(objective: Objective) -> dict[str, str]:
    """Found, needed and do of a function that no tracked layer has a part in."""
    return {
        "found": f"a {objective if isinstance(objective, str) else 'function'} that does not depend on any tracked layer",
        "needed": "a differentiable function of the model's outputs",
        "do": "check for no_grad or detach in the loss and the model; pass functional=True if weights are used without their layers; or "
        "track parameters that the losses of the first examples reach",
    }


def objective_function(task: AbstractTask, objective: Objective) -> Callable[[nn.Module, Batch], Tensor]:
    """An objective by name as a function of model and batch that gives one value per example, shape (B,)."""
    if not isinstance(objective, str):
        return objective
    # Negated, so that it falls where the loss falls: the gradient of the loss is this one's times a positive weight.
    return {
        "loss": task.loss,
        "measurement": task.measurement,
        "negated output": lambda model, batch: -task.output_function(model, batch),
    }[objective]


def _check_values(values: Any, num_examples: int, objective: Objective) -> None:
    name = objective if isinstance(objective, str) else "objective"
    shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
    if shape == (num_examples,):
        return
    hint = "use reduction='none' and sum over positions only" if shape == () else "sum over everything but the batch axis"
    raise BadInput(
        found=f"a {name} of shape {shape} for {num_examples} examples",
        needed=f"one value per example, shape ({num_examples},), never a mean over the batch",
        do=hint,
    )
