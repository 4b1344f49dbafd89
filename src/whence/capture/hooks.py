"""Per-example gradient pairs from one forward and one backward pass with the weights frozen.

Each tracked layer's output passes through a tap: an identity for the model, whose backward step sees the layer's input and output
gradient together. Nothing else needs a gradient, so autograd multiplies for the layers' inputs only: two thirds of a training step.
Because a tap keeps its input the way any autograd function does, gradient checkpointing recomputes it and in-place changes are caught.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from whence.capture.frozen import frozen
from whence.capture.functional import functional_pairs
from whence.capture.units import LayerUse, Plan
from whence.errors import BadInput, Unsupported
from whence.records import Pair
from whence.sharded_weights import is_sharded
from whence.tasks import AbstractTask, Batch

__all__ = ["Consume", "Objective", "TapMode", "capture", "objective_function", "taps"]

Consume = Callable[[int, Pair], None]
"""Takes the index of a unit and one pair of it, at once: pairs are not kept."""

Objective = Literal["loss", "measurement", "negated output"] | Callable[[nn.Module, Batch], Tensor]
"""What is differentiated: one of the task's own, or a function of model and batch that gives one value per example."""


def capture(
    task: AbstractTask,
    plan: Plan,
    batch: Batch,
    consume: Consume,
    *,
    num_examples: int,
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
        with taps(plan, consume, num_examples, task.device) as mode:
            try:
                values = function(task.model, batch)
            except (RuntimeError, IndexError) as error:
                mode.copies = "modified inplace" in str(error)  # such as x += y on a layer's output: tap a copy of it
                if not mode.copies:
                    if not is_sharded(task.model):  # there a process that is gone fails in the same way
                        _check_repeated(mode, error)
                    raise error
                values = function(task.model, batch)
            _check_values(values, num_examples, objective)
            if plan.layers:
                if values.grad_fn is None:
                    raise Unsupported(
                        found=f"a {objective if isinstance(objective, str) else 'function'} that does not depend on any tracked layer",
                        needed="a differentiable function of the model's outputs",
                        do="check for no_grad or detach in the loss and the model",
                    )
                values.sum().backward()
        if plan.functional:
            functional_pairs(function, task.model, plan, batch, consume, num_examples=num_examples)
    return values.detach()


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


class _Tap(torch.autograd.Function):
    """Identity on a layer's output; its backward step hands (input, output gradient) to `emit`."""

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, anchor: Tensor, inputs: Tensor, emit: Callable[[Tensor, Tensor], None], copies: bool
    ) -> Tensor:
        ctx.emit = emit
        ctx.save_for_backward(inputs)
        return output.clone() if copies else output.view_as(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (inputs,) = ctx.saved_tensors
        with torch.no_grad():
            ctx.emit(inputs, grad)
        return (grad if ctx.needs_input_grad[0] else None), None, None, None, None


@dataclass
class TapMode:
    """How taps are put in.

    Args:
        copies: Whether each is put on a copy of the layer's output, which models may then change in place.
        scale: What gradients are multiplied with before they are handed out.
        repeated: Name of the last layer whose one row was taken as shared by all examples; empty if there was none.
    """

    copies: bool = False
    scale: float = 1.0
    repeated: str = ""


@contextmanager
def taps(plan: Plan, consume: Consume, num_examples: int, device: torch.device) -> Iterator[TapMode]:
    """Taps on the layers of a plan, for a forward and a backward pass of whoever runs one meanwhile.

    The passes compute what they would without, weights that are trained among them.

    Args:
        plan: The units.
        consume: As in `capture`.
        num_examples: Examples in the batch that is run.
        device: Where pairs are handed out.

    Yields:
        What can be changed about the taps.
    """
    # The anchor makes every tap part of the graph, even the first one, whose layer sees nothing that needs a gradient.
    anchor = torch.zeros((), device=device, requires_grad=True)
    mode = TapMode()
    handles = [
        layer.module.register_forward_hook(_hook(layer, consume, num_examples, anchor, mode, device), with_kwargs=True)
        for layer in plan.layers
    ]
    try:
        yield mode
    finally:
        for handle in handles:
            handle.remove()


def _hook(layer: LayerUse, consume: Consume, num_examples: int, anchor: Tensor, mode: TapMode, device: torch.device):
    def emit(inputs: Tensor, grad: Tensor) -> None:
        # A model may be spread over devices; what is made of the pairs is in one place.
        inputs, grad = inputs.to(device), grad.to(device)
        if mode.scale != 1.0:
            grad = grad * mode.scale
        inputs, grad = (_per_example(layer, values, num_examples) for values in (inputs, grad))
        if layer.weight_unit is not None:
            joined = layer.bias_unit == layer.weight_unit
            consume(layer.weight_unit, layer.rule.weight(layer.module, inputs, grad, joined).folded(num_examples))
        if layer.bias_unit is not None and layer.bias_unit != layer.weight_unit:
            consume(layer.bias_unit, layer.rule.bias(grad).folded(num_examples))

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
        if not torch.is_grad_enabled():  # the first, recording-free pass of reentrant checkpointing
            return None
        if output.shape[0] == 1 and num_examples > 1:
            mode.repeated = layer.name
            # A position embedding runs once for the whole batch: expanded before the tap, each example gets its own gradient.
            output = output.expand(num_examples, *output.shape[1:])
        inputs = args[0] if args else next(iter(kwargs.values()))
        return _Tap.apply(output, anchor, inputs, emit, mode.copies)

    return hook


def _per_example(layer: LayerUse, values: Tensor, num_examples: int) -> Tensor:
    """The same values with one leading entry per example, or, for layers whose positions are not leading axes, several.

    A model that folds (B, T) into one axis keeps the positions of an example together; the check before a build proves it.

    Raises:
        Unsupported: If the leading axis does not divide into the examples.
    """
    rows = values.shape[0]
    if rows == num_examples:
        return values
    if rows == 1:
        return values.expand(num_examples, *values.shape[1:])
    if rows % num_examples == 0:
        # A convolution's positions are not leading axes: its pair is folded instead.
        return values.reshape(num_examples, rows // num_examples, *values.shape[1:]) if layer.rule.foldable else values
    raise Unsupported(
        found=f"layer {layer.name!r} with {rows} leading entries for a batch of {num_examples} examples",
        needed="the same number of entries for every example",
        do=f"pass functional=['{layer.name}.*'] if the layer is given some of the positions, as an expert of a mixture is; "
        "or leave its parameters out with ignore=[...]",
    )


def _check_repeated(mode: TapMode, error: Exception) -> None:
    if mode.repeated:
        raise Unsupported(
            found=f"layer {mode.repeated!r} with one row for the whole batch, which the model cannot take once per example ({error})",
            needed="a row for every example, or one that all share",
            do=f"pass functional=['{mode.repeated}.*'] if the layer is given some of the positions, as an expert of a mixture is",
        ) from error


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
