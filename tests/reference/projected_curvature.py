"""Curvature of rows that are P x R matrices, every matrix formed."""

import torch
from torch import Tensor


def fisher(rows_NPR: Tensor, structure: str) -> Tensor:
    """The second moment of the flattened rows, or what K-FAC and EK-FAC make of it, shape (PR, PR)."""
    flat_ND = rows_NPR.flatten(1)
    full_DD = flat_ND.T @ flat_ND / len(flat_ND)
    if structure == "full":
        return full_DD
    left_PP = sum(row @ row.T for row in rows_NPR) / len(rows_NPR)
    right_RR = sum(row.T @ row for row in rows_NPR) / len(rows_NPR)
    if structure == "kfac":
        return torch.kron(left_PP, right_RR) / max(float(left_PP.trace()), 1e-300)
    basis_DD = torch.kron(torch.linalg.eigh(left_PP)[1], torch.linalg.eigh(right_RR)[1])
    return basis_DD @ torch.diag((basis_DD.T @ full_DD @ basis_DD).diagonal()) @ basis_DD.T


def damped(fisher_DD: Tensor, relative: float) -> Tensor:
    """With a share of the mean eigenvalue on its diagonal."""
    return fisher_DD + max(relative * float(fisher_DD.diagonal().mean()), 1e-30) * torch.eye(len(fisher_DD)).to(fisher_DD)


def inner_products(rows: list[Tensor], queries: list[Tensor], fishers: list[Tensor]) -> Tensor:
    """q^T F^-1 g over all units, shape (Q, N)."""
    units = zip(rows, queries, fishers, strict=True)
    return sum(q.flatten(1) @ torch.linalg.solve(f, g.flatten(1).T) for g, q, f in units)
