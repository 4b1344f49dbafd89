"""Direct solvers by the formulas as they are written, with every matrix formed."""

import torch
from torch import Tensor


def datainf(rows_ND: Tensor, right_QD: Tensor, damping: float) -> Tensor:
    """Mean over examples of (g g^T + damping I)^-1, each inverted, applied to each right side."""
    eye_DD = torch.eye(rows_ND.shape[1]).to(rows_ND)
    inverses = [torch.linalg.inv(torch.outer(row_D, row_D) + damping * eye_DD) for row_D in rows_ND]
    return right_QD @ torch.stack(inverses).mean(0)


def leading_inverse(matrix_DD: Tensor, damping: float, rank: int) -> Tensor:
    """Sum of u u^T / (value + damping) over the eigenvectors of largest absolute value."""
    values, vectors = torch.linalg.eigh(matrix_DD)
    kept = values.abs().argsort(descending=True)[:rank]
    return vectors[:, kept] @ torch.diag(1 / (values[kept] + damping)) @ vectors[:, kept].T


def nystroem_inverse(matrix_DD: Tensor, damping: float, vectors_DK: Tensor) -> Tensor:
    """(A V (V^T A V)^+ V^T A + damping I)^-1."""
    product_DK = matrix_DD @ vectors_DK
    approximate_DD = product_DK @ torch.linalg.pinv(vectors_DK.T @ product_DK) @ product_DK.T
    return torch.linalg.inv(approximate_DD + damping * torch.eye(len(matrix_DD)).to(matrix_DD))
