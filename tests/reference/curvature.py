"""Curvature matrices formed: Jacobians one output at a time, second derivatives one direction at a time."""

import copy

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.reference.gradients import dense_gradients, unit_gradients


def flat_rows(units: list[Tensor]) -> Tensor:
    """Per-unit matrices (B, O, I) as rows (B, D), units one after another."""
    return torch.cat([unit.flatten(1) for unit in units], 1)


def gauss_newton(task, plan, examples) -> Tensor:
    """Mean over examples of J^T H J, with J made row by row and H that of the likelihood, shape (D, D)."""
    total = 0
    for example in examples:
        model, outputs = _outputs(task, example)
        values_MC = outputs.values_MC
        for row_C in values_MC:
            jacobian_CD = torch.cat([_gradient(task, plan, model, value) for value in row_C])
            total = total + jacobian_CD.T @ _row_hessian(row_C.detach(), outputs.likelihood) @ jacobian_CD
    return total / len(examples)


def _row_hessian(row_C: Tensor, likelihood: str) -> Tensor:
    if likelihood == "bernoulli":
        return torch.diag(row_C.sigmoid() * (1 - row_C.sigmoid()))
    p_C = row_C.softmax(0)
    return torch.diag(p_C) - torch.outer(p_C, p_C) if likelihood == "categorical" else torch.eye(len(p_C)).to(p_C)


def hessian_times(task, plan, examples, rows_QD: Tensor) -> Tensor:
    """Second derivative of the mean loss times each row, by differentiating the gradient's product with it, shape (Q, D)."""
    found = torch.zeros_like(rows_QD)
    with sdpa_kernel(SDPBackend.MATH):
        for example in examples:
            model, outputs = _outputs(task, example)
            gradient_D = _gradient(task, plan, model, outputs.losses(1).sum(), create_graph=True)[0]
            found += torch.cat([_gradient(task, plan, model, gradient_D @ row_D) for row_D in rows_QD])
    return found / len(examples)


def hessian(task, plan, examples) -> Tensor:
    """The same as a matrix, shape (D, D)."""
    size_D = sum(unit.outputs * unit.inputs for unit in plan.units)
    return hessian_times(task, plan, examples, torch.eye(size_D, dtype=torch.float64))


def empirical_fisher(task, plan, examples) -> Tensor:
    """Mean over examples of g g^T, shape (D, D)."""
    rows_ND = flat_rows(unit_gradients(task, plan, dense_gradients(task, examples)))
    return rows_ND.T @ rows_ND / len(rows_ND)


def _outputs(task, example):
    model = copy.deepcopy(task.model).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model, task.outputs(model, task.collate([example]))


def _gradient(task, plan, model, value: Tensor, create_graph: bool = False) -> Tensor:
    """One number's gradient as a row (1, D)."""
    parameters = dict(model.named_parameters())
    if not value.requires_grad:
        found = [torch.zeros_like(parameter) for parameter in parameters.values()]
    else:
        found = torch.autograd.grad(
            value,
            list(parameters.values()),
            retain_graph=True,
            create_graph=create_graph,
            allow_unused=True,
            materialize_grads=True,
        )
    rows = {name: gradient[None] for name, gradient in zip(parameters, found, strict=True)}
    return flat_rows(unit_gradients(task, plan, rows))
