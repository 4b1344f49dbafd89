"""K-FAC and EK-FAC by the formulas: dense per-example, per-label gradients from plain autograd, one at a time."""

import copy

import torch
from torch import Tensor

from tests.reference.gradients import unit_gradients
from tests.reference.reflections import evened, written_out


def label_gradients(task, plan, examples) -> list[list[Tensor]]:
    """For every unit and example the gradients of the loss at every label, times the root of its probability, shape (labels, O, I).

    Categorical: the labels of one output row, or of every row in turn (cross terms of independent rows vanish in expectation). Gaussian: a
    unit residual in every output.
    """
    model = copy.deepcopy(task.model).eval().requires_grad_(True)
    found: list[list[Tensor]] = [[] for _ in plan.units]
    for example in examples:
        outputs = task.outputs(model, task.collate([example]))
        values = outputs.values_MC
        rows: dict[str, list[Tensor]] = {name: [] for name, _ in model.named_parameters()}
        for row in range(values.shape[0]):
            p = values[row].detach().softmax(-1)
            for label in range(values.shape[1]):
                one = torch.eye(values.shape[1]).double()[label]
                weight = one if outputs.likelihood == "gaussian" else p[label].sqrt() * (p - one)
                grads = torch.autograd.grad(
                    (values[row] * weight).sum(), list(model.parameters()), retain_graph=True, allow_unused=True
                )
                for (name, parameter), grad in zip(model.named_parameters(), grads, strict=True):
                    rows[name].append(torch.zeros_like(parameter) if grad is None else grad)
        for held, gradient in zip(found, unit_gradients(task, plan, {k: torch.stack(v) for k, v in rows.items()}), strict=True):
            held.append(gradient)
    return found


def fisher(gradients: list[Tensor]) -> Tensor:
    """(1/N) sum over examples and labels of g g^T, formed, shape (O I, O I)."""
    return sum(g.flatten(1).T @ g.flatten(1) for g in gradients) / len(gradients)


def corrected_values(gradients: list[Tensor], left: Tensor | None, right: Tensor | None) -> Tensor:
    """Mean over examples of the squares of left^T G right, one example and label at a time."""
    bases = left, right
    left, right = written_out(left), written_out(right)
    total = torch.zeros(gradients[0].shape[1:]).double()
    for labels in gradients:
        for gradient in labels:
            rotated = gradient if left is None else left.T @ gradient
            rotated = rotated if right is None else rotated @ right
            total += rotated**2
    return evened(evened(total, bases[0]).T, bases[1]).T / len(gradients)


def dense_inverse(block, damping: float) -> Tensor:
    """(sum over i, j of value_ij (l_i x r_j)(l_i x r_j)^T + damping)^-1, formed."""
    left, right = written_out(block.outputs_OO), written_out(block.inputs_II)
    left = torch.eye(block.unit.outputs).double() if left is None else left.double()
    right = torch.eye(block.unit.inputs).double() if right is None else right.double()
    basis = torch.kron(left, right)
    return torch.linalg.inv(basis @ torch.diag(block.values_OI.double().flatten() + damping) @ basis.T)


def objective_gradients(task, plan, examples, function) -> list[list[Tensor]]:
    """Gradients of a function of model and batch, one example at a time: per unit and example, shape (1, O, I)."""
    model = copy.deepcopy(task.model).eval().requires_grad_(True)
    found: list[list[Tensor]] = [[] for _ in plan.units]
    for example in examples:
        model.zero_grad()
        function(model, task.collate([example]), example).sum().backward()
        rows = {
            name: (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone())[None]
            for name, parameter in model.named_parameters()
        }
        for held, gradient in zip(found, unit_gradients(task, plan, rows), strict=True):
            held.append(gradient)
    return found


def linear_moments(task, layer: str, examples, sharing: str) -> tuple[Tensor, Tensor, int]:
    """Sums over labels of d d^T and a a^T of one Linear layer, and how many there were, from PyTorch's own hooks, one example at a time.

    "expand" takes every position as an example of its own, "reduce" the sum of d and the mean of a over an example's positions.
    """
    model = copy.deepcopy(task.model).eval().requires_grad_(True)
    module = model.get_submodule(layer)
    seen: dict[str, Tensor] = {}
    module.register_forward_pre_hook(lambda _, args: seen.update(inputs=args[0].detach()))
    module.register_full_backward_hook(lambda *args: seen.update(grad=args[2][0]))
    left = torch.zeros(module.out_features, module.out_features).double()
    right = torch.zeros(module.in_features + 1, module.in_features + 1).double()
    count = 0
    for example in examples:
        classes = task.outputs(model, task.collate([example])).values_MC.shape[1]
        for label in range(classes):
            values = task.outputs(model, task.collate([example])).values_MC[0]
            p = values.detach().softmax(-1)
            weight = p[label].sqrt() * (p - torch.eye(classes).double()[label])
            (values * weight).sum().backward()
            inputs, grad = seen["inputs"].flatten(0, -2), seen["grad"].flatten(0, -2)
            inputs = torch.cat([inputs, torch.ones(len(inputs), 1).double()], 1)
            if sharing == "reduce":
                inputs, grad = inputs.mean(0, keepdim=True), grad.sum(0, keepdim=True)
            left += grad.T @ grad
            right += inputs.T @ inputs
            count += len(inputs)
    return left, right, count
