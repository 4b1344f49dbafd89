"""Per-example gradient pairs from one forward and one backward pass with the weights frozen.

Each tracked layer's output passes through a tap: an identity for the model, whose backward step sees the layer's input and output
gradient together. Nothing else needs a gradient, so autograd multiplies for the layers' inputs only: two thirds of a training step.
Because a tap keeps its input the way any autograd function does, gradient checkpointing recomputes it and in-place changes are caught.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from whence.capture.frozen import frozen
from whence.capture.functional import functional_pairs
from whence.capture.halves import is_out_of_memory
from whence.capture.units import LayerUse, Plan, Route
from whence.errors import BadInput, Unsupported
from whence.records import Pair
from whence.sharded_weights import is_sharded
from whence.tasks import AbstractTask, Batch

__all__ = ["Consume", "Objective", "TapMode", "capture", "not_reached", "objective_function", "taps"]

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
            do=_way_out(layer),
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
    """How taps are put in, and what they have met.

    Args:
        copies: Whether each is put on a copy of the layer's output, which models may then change in place.
        scale: What gradients are multiplied with before they are handed out.
        has_twin: Whether units whose layers do not keep the examples apart are left to the functional twin, instead of being an error.
        odd: These units, by index, with the layer; complete when the forward pass is over.
        repeated: The last layer whose one row was taken as shared by all examples.
    """

    copies: bool = False
    scale: float = 1.0
    has_twin: bool = False
    odd: dict[int, LayerUse] = field(default_factory=dict)
    repeated: LayerUse | None = None


@contextmanager
def taps(
    plan: Plan, consume: Consume, num_examples: int, device: torch.device, *, rows: int | None = None
) -> Iterator[TapMode]:
    """Taps on the layers of a plan, for a forward and a backward pass of whoever runs one meanwhile.

    The passes compute what they would without, weights that are trained among them.

    Args:
        plan: The units.
        consume: As in `capture`.
        num_examples: Examples in the batch that is run.
        device: Where pairs are handed out.
        rows: Inputs that the model sees, several for an example; None for one each.

    Yields:
        What can be changed about the taps.
    """
    # The anchor makes every tap part of the graph, even the first one, whose layer sees nothing that needs a gradient.
    anchor = torch.zeros((), device=device, requires_grad=True)
    mode = TapMode()
    handles = [
        layer.module.register_forward_hook(
            _hook(layer, plan, consume, (num_examples, rows or num_examples), anchor, mode, device), with_kwargs=True
        )
        for layer in plan.layers
        if not layer.units <= plan.route.twin
    ]
    try:
        yield mode
    finally:
        for handle in handles:
            handle.remove()


def _hook(
    layer: LayerUse,
    plan: Plan,
    consume: Consume,
    counts: tuple[int, int],
    anchor: Tensor,
    mode: TapMode,
    device: torch.device,
):
    num_examples, rows = counts

    def hand_out(unit: int | None, make: Callable[[], Pair]) -> None:
        if unit is not None and unit not in mode.odd and unit not in plan.route.twin:
            consume(unit, make().folded(num_examples))

    def emit(inputs: Tensor, grad: Tensor) -> None:
        # A model may be spread over devices; what is made of the pairs is in one place.
        inputs, grad = inputs.to(device), grad.to(device)
        if mode.scale != 1.0:
            grad = grad * mode.scale
        for unit in layer.units & mode.odd.keys() if not mode.has_twin else ():
            other = mode.odd[unit]
            raise Unsupported(
                found=f"layer {other.name!r} with {len(grad) if other is layer else 'other'} leading entries for a batch of {num_examples} "
                f"examples{', unlike in the check of two' if plan.route.is_checked else ''}",
                needed="the same number of entries for every example",
                do=_way_out(other),
            )
        inputs, grad = (_per_example(layer, values, num_examples, rows) for values in (inputs, grad))
        joined = layer.bias_unit == layer.weight_unit
        hand_out(layer.weight_unit, lambda: layer.rule.weight(layer.module, inputs, grad, joined))
        if not joined:
            hand_out(layer.bias_unit, lambda: layer.rule.bias(layer.module, grad))

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
        inputs = args[0] if args else next(iter(kwargs.values()))
        use = _use_of(layer, output, num_examples, rows)
        if not _is_known(plan.route, layer, use, num_examples):
            mode.odd.update(dict.fromkeys(layer.units, layer))
        if not torch.is_grad_enabled():  # the first, recording-free pass of reentrant checkpointing
            return None
        if use == "none" or (mode.has_twin and layer.units <= mode.odd.keys()):
            return None
        if use == "shared" and not layer.units & mode.odd.keys():
            mode.repeated = layer
            # A position embedding runs once for the whole batch: expanded before the tap, each example gets its own gradient.
            output = output.expand(rows, *output.shape[1:])
        return _Tap.apply(output, anchor, inputs, emit, mode.copies)

    return hook


def _use_of(layer: LayerUse, output: Tensor, num_examples: int, num_rows: int) -> str:
    """How the rows of a layer's output belong to the examples of a batch; "odd" if they cannot be told apart."""
    rows = len(output) if output.ndim >= layer.rule.fewest_axes else -1
    if rows == 1 < num_rows:
        return "shared"
    if rows in (0, num_examples, num_rows):
        return "own" if rows else "none"
    return "folded" if rows > 0 and rows % num_examples == 0 else "odd"


def _is_known(route: Route, layer: LayerUse, use: str, num_examples: int) -> bool:
    """Whether the check has seen a layer used so; before and in the check, whether it could be right.

    What a layer is given may depend on the data, as with the experts of a mixture, and by chance look like something else.
    """
    if use in ("none", "odd") or num_examples == 1:
        return use != "odd"
    seen = route.uses.setdefault(layer.name, set())
    if not route.is_checked:
        seen.add(use)
    return use in seen or (use == "own" and "folded" in seen)


def _per_example(layer: LayerUse, values: Tensor, num_examples: int, num_rows: int) -> Tensor:
    """The same values with one leading entry per example, or, for layers whose positions are not leading axes, several.

    A model that folds (B, T) into one axis keeps the positions of an example together; the check before a build proves it.
    """
    rows = values.shape[0]
    if rows == 1 < num_rows:
        values, rows = values.expand(num_rows, *values.shape[1:]), num_rows
    if rows == num_examples:
        return values
    # A convolution's positions are not leading axes: its pair is folded instead.
    return values.reshape(num_examples, rows // num_examples, *values.shape[1:]) if layer.rule.foldable else values


def _way_out(layer: LayerUse) -> str:
    names = f"'{layer.name}.*'"
    return (
        f"pass functional=True, or {names} in functional beside what is there, as for an expert of a mixture, which is given some of the "
        f"positions; or leave its parameters out with ignore=[{names}]"
    )


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
