"""Dense per-example gradients by plain autograd, one example at a time."""

import copy

import torch
from torch import Tensor


def dense_gradients(task, examples, objective="loss") -> dict[str, Tensor]:
    """Gradient of every parameter for each example alone, by parameter name, shape (B, *parameter)."""
    model = copy.deepcopy(task.model).eval()
    named = {"loss": task.loss, "measurement": task.measurement}
    function = objective if callable(objective) else named[objective]
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    rows: dict[str, list[Tensor]] = {name: [] for name, _ in model.named_parameters()}
    for example in examples:
        model.zero_grad()
        function(model, task.collate([example])).sum().backward()
        for name, parameter in model.named_parameters():
            rows[name].append(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone())
    return {name: torch.stack(found) for name, found in rows.items()}


def unit_gradients(task, plan, gradients) -> list[Tensor]:
    """The same as one matrix per unit, shape (B, O, I), bias as last column, HF Conv1D weights turned."""
    found = []
    for unit in plan.units:
        weight, *rest = [gradients[name] for name in unit.parameters]
        batch = len(weight)
        if unit.outputs == 1:
            found.append(torch.cat([part.reshape(batch, 1, -1) for part in (weight, *rest)], 2))
            continue
        kind = type(task.model.get_submodule(unit.layers[0])).__name__
        matrix = weight.transpose(1, 2) if kind == "Conv1D" else weight.reshape(batch, weight.shape[1], -1)
        found.append(torch.cat([matrix, *(bias[..., None] for bias in rest)], 2))
    return found
