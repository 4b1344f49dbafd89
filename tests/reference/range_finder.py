"""Principal axes by the formulas: the singular vectors of all rows at once, or of all rows behind a basis of random mixtures of them."""

import torch
from torch import Tensor

from whence.compress import random_matrix


def exact_axes(rows_NM: Tensor) -> tuple[Tensor, Tensor]:
    """Right singular vectors as columns, and squared singular values."""
    _, values, right = torch.linalg.svd(rows_NM, full_matrices=False)
    return right.T, values.square()


def found_axes(rows_NM: Tensor, probes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Halko, Martinsson and Tropp 2011, algorithm 5.1: Y = Z^T O, Q = orth(Y), the SVD of Z Q; every row's part of O from its place."""
    mixes = [random_matrix("rademacher", 1, probes, seed=seed, name=f"probes of document {n}")[0] for n in range(len(rows_NM))]
    basis = torch.linalg.qr(rows_NM.T @ torch.stack(mixes).to(rows_NM))[0]
    _, values, right = torch.linalg.svd(rows_NM @ basis, full_matrices=False)
    return basis @ right.T, values.square()
