"""Scores by the formulas as they are written, with every matrix formed."""

import torch
from torch import Tensor

from tests.reference.gradients import dense_gradients, unit_gradients


def projected_rows(task, plan, kronecker, examples, objective="loss") -> list[Tensor]:
    """Per unit the projected gradients, from dense ones times the Kronecker product of the two projections, shape (B, P * R)."""
    found = []
    for index, gradient_BOI in enumerate(unit_gradients(task, plan, dense_gradients(task, examples, objective))):
        unit = plan.units[index]
        left, right = kronecker.outputs[index], kronecker.inputs[index]
        left = torch.eye(unit.outputs).double() if left is None else left.double()
        right = torch.eye(unit.inputs).double() if right is None else right.double()
        found.append(gradient_BOI.flatten(1) @ torch.kron(left, right))
    return found


def truncated(rows_ND: Tensor, shape: tuple[int, int], rank: int | None) -> Tensor:
    """Every row cut to rank c by its singular value decomposition."""
    if rank is None or rank * sum(shape) >= shape[0] * shape[1]:
        return rows_ND
    u, s, vt = torch.linalg.svd(rows_ND.view(-1, *shape), full_matrices=False)
    return ((u[..., :rank] * s[:, None, :rank]) @ vt[:, :rank]).flatten(1)


def inverse_fisher(rows_ND: Tensor, damping: float, rank: int | None, *, has_tail: bool = False) -> Tensor:
    """(F + damping I)^-1 with F = G^T G / N, cut to its leading eigenvectors, the others zero or all their mean, formed."""
    values, vectors = torch.linalg.eigh(rows_ND.T @ rows_ND / len(rows_ND))
    if rank is not None and rank < len(values):
        left = values[:-rank].mean() if has_tail else torch.zeros(()).double()
        values = torch.cat([left.expand(len(values) - rank), values[-rank:]])
    return torch.linalg.inv(vectors @ torch.diag(values.clamp_min(0) + damping) @ vectors.T)


def scores(train: list[Tensor], queries: list[Tensor], inverses: list[Tensor]) -> Tensor:
    """-(1/N) grad m^T H^-1 grad loss_i summed over units, shape (Q, N)."""
    return sum(-(q @ inverse @ g.T) / len(g) for g, q, inverse in zip(train, queries, inverses, strict=True))
