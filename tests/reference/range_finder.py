"""Principal axes by the formulas: the singular vectors of all rows at once, or a basis of mixtures of rows that sketches of them suggest."""

import torch
from torch import Tensor


def exact_axes(rows_NM: Tensor) -> Tensor:
    """Right singular vectors as columns."""
    return torch.linalg.svd(rows_NM, full_matrices=False).Vh.T


def mixed_axes(rows_NM: Tensor, sketch_MR: Tensor, width: int) -> Tensor:
    """Q of Z^T U, with U the leading left singular vectors of Z S."""
    left = torch.linalg.svd(rows_NM @ sketch_MR, full_matrices=False).U[:, :width]
    return torch.linalg.qr(rows_NM.T @ left)[0]


def share(rows_NM: Tensor, axes_MK: Tensor) -> float:
    """Of the rows' sum of squares, what lies along axes."""
    return float((rows_NM @ axes_MK).square().sum() / rows_NM.square().sum())
