"""Checks of a task on real examples before anything long runs: wrong scores must not be silent.

A few examples, chosen to differ, go through capture as one padded batch and through plain autograd one at a time; every unit must agree. Their
values are also looked at in a larger batch.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from whence.capture.batch_values import check_values, mixes, narrowest_type, refuse_batch_statistics
from whence.capture.blocks import as_block
from whence.capture.frozen import frozen
from whence.capture.hooks import Objective, capture, objective_function
from whence.capture.probed import companions, probed
from whence.capture.units import Plan
from whence.data import Example
from whence.errors import BadInput, Unsupported
from whence.records import Pair
from whence.sharded_weights import is_sharded, loaded_copies, whole
from whence.tasks import AbstractTask, Batch

__all__ = ["check_task"]

_TOLERANCE = {torch.float64: 1e-7, torch.float32: 2e-3}
_HALF_TOLERANCE = 0.1


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
        examples: Where they are taken from; see `whence.capture.probed`.
        objective: Loss or measurement.
        autocast: As in `capture`.

    Returns:
        Names of units whose gradient is zero on all of these.

    Raises:
        BadInput: If the objective mixes the examples of a batch, is mean-reduced or changes from call to call.
        NonFinite: If the objective is NaN or infinite.
        Unsupported: If a unit's captured gradient is not the true one.
    """
    refuse_batch_statistics(task.model)
    parameters = sum(parameter.numel() for parameter in task.model.parameters())
    chosen = probed(examples, parameters)
    probes = [_probes(unit.outputs, unit.inputs, index, task) for index, unit in enumerate(plan.units)]
    task.collate(chosen)  # says which of them do not go together
    # One at a time first: what is wrong with one example is said of that one.
    alone, expected, norms = _one_by_one(task, plan, chosen, probes, objective, autocast)
    found, values = _captured(task, plan, chosen, probes, objective, autocast)
    together = values.double().cpu()
    others = companions(examples, chosen, parameters)
    tolerance = _TOLERANCE.get(autocast or next(task.model.parameters()).dtype, _HALF_TOLERANCE)

    def check(tolerance: float) -> None:
        check_values(task, objective, chosen, others, together, alone, tolerance, autocast)
        wrong = (found - expected).abs() > tolerance * _scale(norms, tolerance)
        if bool(wrong.any()):
            _refuse(task, plan, chosen, probes, objective, autocast, found, expected, wrong, tolerance)

    try:
        check(tolerance)
    except (BadInput, Unsupported):
        # Is that rounding? The model may compute in a narrower type than its weights have.
        narrowest = _TOLERANCE.get(narrowest_type(task, objective, chosen[0], autocast), _HALF_TOLERANCE)
        if narrowest <= tolerance:
            raise
        check(narrowest)
    return [unit.name for unit, norm in zip(plan.units, norms, strict=True) if float(norm.max()) == 0.0]


def _captured(task, plan, chosen, probes, objective, autocast) -> tuple[Tensor, Tensor]:
    """Per unit and example the probed gradient u'Gv as it is captured; and the objective's values."""
    found = torch.zeros(len(plan.units), len(chosen), dtype=torch.float64)

    def consume(index: int, pair: Pair) -> None:
        left_O, right_I = probes[index]
        left = pair.outputs.times(left_O[:, None]).double()
        right = pair.inputs.times(right_I[:, None]).double()
        found[index] += (left * right).sum((1, 2)).cpu()

    batch = task.collate(chosen)
    values = capture(task, plan, batch, consume, num_examples=len(chosen), objective=objective, autocast=autocast)
    return found, values


def _scale(norms: Tensor, tolerance: float) -> Tensor:
    """What a difference is relative to, per unit and example."""
    # Half precision rounds every layer's gradient with the noise of the whole backward pass, so the largest norm is its scale.
    scale = norms if tolerance < _HALF_TOLERANCE else norms.amax(0, keepdim=True)
    return scale.clamp_min(1e-12 + 1e-6 * norms.amax().item())


def _refuse(task, plan, chosen, probes, objective, autocast, found, expected, wrong, tolerance) -> None:
    """Say why a captured gradient is wrong: is it also wrong in a batch of one, or only beside others?"""
    single = torch.cat([_captured(task, plan, [one], probes, objective, autocast)[0] for one in chosen], 1)
    index = int(wrong.any(1).nonzero()[0])
    if bool(((single - expected).abs() <= (found - expected).abs() / 2)[wrong].all()):
        told = mixes(f"gradient of {plan.units[index].name!r}", chosen, found[index], expected[index])
        raise BadInput(**told)
    unit = plan.units[index]
    raise Unsupported(
        found=f"a captured gradient of {unit.name!r} that differs from autograd's "
        f"({found[index].tolist()} against {expected[index].tolist()})",
        needed="a layer whose weight is used only through its own forward",
        do=f"pass functional=[{unit.name!r}] (slower, any use), or leave it out with ignore=[{unit.name!r}]; if the layer is an "
        "ordinary one, please report this",
    )


def _probes(outputs: int, inputs: int, index: int, task: AbstractTask) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(index)
    dtype = torch.float64 if next(task.model.parameters()).dtype == torch.float64 else torch.float32
    left = torch.randn(outputs, generator=generator, dtype=dtype).to(task.device)
    return left, torch.randn(inputs, generator=generator, dtype=dtype).to(task.device)


def _one_by_one(task, plan, chosen, probes, objective, autocast):
    """Per example: the objective, and per unit the probed gradient u'Gv and its Frobenius norm, which is u'Gv's scale."""
    function = objective_function(task, objective)
    alone = torch.zeros(len(chosen), dtype=torch.float64)
    expected = torch.zeros(len(plan.units), len(chosen), dtype=torch.float64)
    norms = torch.zeros_like(expected)
    for column, example in enumerate(chosen):
        with frozen(task.model), torch.enable_grad(), loaded_copies(task.model) as copies:
            # Asked each time: offloaded ones are other objects after a pass.
            parameters = {name: value for name, value in task.model.named_parameters() if name in task.tracked}
            held = {name: value.grad for name, value in parameters.items()}
            for parameter in parameters.values():
                parameter.requires_grad_(True)
                parameter.grad = None
            with torch.autocast(task.device.type, dtype=autocast, enabled=autocast is not None):
                value = _value(task, function, example)
            if value.requires_grad:
                _backward(value.sum())
        alone[column] = value.detach().sum().double().cpu()
        grads = {name: _gradients(name, parameter, copies) for name, parameter in parameters.items()}
        for name, parameter in parameters.items():
            parameter.grad = held[name]
        for index, unit in enumerate(plan.units):
            own = {name: _joined(grads.pop(name), parameters[name], task.device)[None] for name in unit.parameters}
            gradient = as_block(plan, unit, own)[0].double()
            left_O, right_I = probes[index]
            expected[index, column] = (left_O.double() @ gradient @ right_I.double()).cpu()
            norms[index, column] = gradient.norm().cpu()
    return alone, expected, norms


def _value(task: AbstractTask, function: Callable[[nn.Module, Batch], Tensor], example: Example) -> Tensor:
    """The objective of one example.

    Raises:
        BadInput: If there is none, with the example's id.
        RuntimeError: If memory does not suffice, or processes that a model is split over have lost each other.
    """
    batch = task.collate([example])
    try:
        return function(task.model, batch)
    except BadInput as error:
        raise BadInput(found=f"{error.found}, in the example {example.id!r}", needed=error.needed, do=error.do) from error
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        if is_sharded(task.model) or "memory" in str(error):
            raise error
        line = (str(error).strip().splitlines() or [""])[0][:200]
        raise BadInput(
            found=f"a model or a loss that fails on the example {example.id!r} alone ({type(error).__name__}: {line})",
            needed="inputs that it takes, and a batch of one among them",
            do="check this example; the error that this one comes from says where",
        ) from error


def _backward(value: Tensor) -> None:
    """Run backward, not `autograd.grad`, which reentrant checkpointing refuses.

    Raises:
        Unsupported: If an operation on the way has no derivative: PyTorch only warns and goes on as if it were constant.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*an autograd kernel was not registered")
        try:
            value.backward()
        except UserWarning as warning:
            raise Unsupported(
                found=f"a model with an operation that has no derivative ({str(warning).split(': an autograd')[0]})",
                needed="operations that gradients go through",
                do="for bitsandbytes on a CPU load the model anew, since one that was run in evaluation mode is packed for good",
            ) from None


def _gradients(name: str, parameter: Tensor, copies: dict[str, list[Any]]) -> list[Tensor]:
    """The gradients of a parameter, or of the copies of it that were loaded for the pass, which add up to it."""
    return [holder.grad for holder in copies.get(name, [parameter]) if holder.grad is not None]


def _joined(gradients: list[Tensor], parameter: Tensor, device: torch.device) -> Tensor:
    """A parameter's whole gradient, zeros if the loss did not reach it; of a sharded one all processes ask, unit by unit."""
    if not gradients:
        return torch.zeros(parameter.shape, dtype=parameter.dtype, device=device)
    return whole(sum(gradients[1:], gradients[0])).to(device)
