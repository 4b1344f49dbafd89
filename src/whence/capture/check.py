"""Checks of a task on real examples before anything long runs: wrong scores must not be silent.

Two examples go through capture as one padded batch and through plain autograd one at a time; every unit must agree.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from whence.capture.blocks import as_block
from whence.capture.frozen import frozen
from whence.capture.hooks import Objective, capture, objective_function
from whence.capture.units import Plan
from whence.data import Example
from whence.errors import BadInput, NonFinite, Unsupported
from whence.records import Pair
from whence.sharded_weights import loaded_copies, whole
from whence.tasks import AbstractTask

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
    """Hold the captured gradients of two examples against autograd.

    Args:
        task: Model and loss.
        plan: Its units.
        examples: Where the two are taken from: the shortest and one of middle length, so that padding is exercised.
        objective: Loss or measurement.
        autocast: As in `capture`.

    Returns:
        Names of units whose gradient is zero on both examples.

    Raises:
        BadInput: If the objective mixes the examples of a batch, is mean-reduced or changes from call to call.
        NonFinite: If the objective is NaN or infinite.
        Unsupported: If a unit's captured gradient is not the true one.
    """
    chosen = _two(examples)
    batch = task.collate(chosen)
    probes = [_probes(unit.outputs, unit.inputs, index, task) for index, unit in enumerate(plan.units)]
    found = torch.zeros(len(plan.units), len(chosen), dtype=torch.float64)

    def consume(index: int, pair: Pair) -> None:
        left_O, right_I = probes[index]
        left = pair.outputs.times(left_O[:, None]).double()
        right = pair.inputs.times(right_I[:, None]).double()
        found[index] += (left * right).sum((1, 2)).cpu()

    values = capture(task, plan, batch, consume, num_examples=len(chosen), objective=objective, autocast=autocast)
    dtype = autocast or next(task.model.parameters()).dtype
    tolerance = _TOLERANCE.get(dtype, _HALF_TOLERANCE)
    alone, expected, norms = _one_by_one(task, plan, chosen, probes, objective, autocast)
    _check_values(task, values.double().cpu(), alone, chosen, objective, tolerance, autocast)

    # Half precision rounds every layer's gradient with the noise of the whole backward pass, so the largest norm is its scale.
    scale = norms if tolerance < _HALF_TOLERANCE else norms.amax(0, keepdim=True)
    wrong = (found - expected).abs() > tolerance * scale.clamp_min(1e-12 + 1e-6 * norms.amax().item())
    if bool(wrong.any()):
        index = int(wrong.any(1).nonzero()[0])
        unit = plan.units[index]
        raise Unsupported(
            found=f"a captured gradient of {unit.name!r} that differs from autograd's "
            f"({found[index].tolist()} against {expected[index].tolist()})",
            needed="a layer whose weight is used only through its own forward",
            do=f"pass functional=[{unit.name!r}] (slower, any use), or leave it out with ignore=[{unit.name!r}]; if the layer is an "
            "ordinary one, please report this",
        )
    return [unit.name for unit, norm in zip(plan.units, norms, strict=True) if float(norm.max()) == 0.0]


def _two(examples: Sequence[Example]) -> list[Example]:
    head = sorted(examples[:256], key=lambda example: example.length)
    return [head[0]] if len(head) == 1 else [head[0], head[max(1, len(head) // 2)]]


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
                value = function(task.model, task.collate([example]))
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


def _check_values(task, together, alone, chosen, objective, tolerance, autocast) -> None:
    for example, value in zip(chosen, together.tolist(), strict=True):
        if value != value or value in (float("inf"), float("-inf")):
            raise NonFinite(
                found=f"a {objective} of {value} for the example {example.id!r}",
                needed="a finite number",
                do="check this example and the model's weights",
            )
    function = objective_function(task, objective)
    with frozen(task.model), torch.no_grad(), torch.autocast(task.device.type, autocast, enabled=autocast is not None):
        again = function(task.model, task.collate(chosen)).double().cpu()
    if not torch.allclose(again, together, rtol=tolerance, atol=1e-6):
        raise BadInput(
            found=f"a {objective} that changes from call to call on the same examples",
            needed="a deterministic one",
            do="switch off functional dropout and random augmentation, or seed them by example",
        )
    if torch.allclose(together, alone, rtol=5 * tolerance, atol=1e-5):
        return
    if torch.allclose(together * len(chosen), alone, rtol=5 * tolerance, atol=1e-5):
        raise BadInput(
            found=f"a {objective} divided by the number of examples in the batch",
            needed="each example's own loss, independent of the batch",
            do="use reduction='none' and sum over positions only",
        )
    raise BadInput(
        found=f"a {objective} that depends on the other examples of its batch ({together.tolist()} together, {alone.tolist()} alone)",
        needed="each example's own loss",
        do="look for statistics over the batch (a norm over axis 0, in-batch negatives) and for attention over padding",
    )
