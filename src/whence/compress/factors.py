"""Rank-c factors of many small matrices at once (LoRIF).

Axes: N matrices, P rows, R columns, C factors.
"""

import torch
from torch import Tensor

from whence.compress.projection import random_matrix

__all__ = ["factorize"]


def factorize(matrices_NPR: Tensor, rank_C: int, *, seed: int, name: str) -> tuple[Tensor, Tensor]:
    """The best rank-c approximation U V^T of each matrix, by block power iteration.

    From a random block V: repeat U = orth(G V), V = orth(G^T U); at last U = G V, so the singular values sit in U (Li et al. 2026,
    section 3.1). 8 rounds for c = 1, 16 otherwise; every matrix starts from the same block, so a row depends on nothing but itself.

    Args:
        matrices_NPR: The matrices.
        rank_C: Factors to keep; at most min(P, R).
        seed: The run's seed.
        name: What the matrices are; every name has its own start.

    Returns:
        U of shape (N, C, P) and V of shape (N, C, R), factors first so that each is contiguous.
    """
    count, _, width_R = matrices_NPR.shape
    start_RC = random_matrix("gaussian", width_R, rank_C, seed=seed, name=f"factors of {name}")
    right_NRC = _orthonormal(start_RC.to(matrices_NPR).expand(count, -1, -1))
    for _ in range(8 if rank_C == 1 else 16):
        left_NPC = _orthonormal(matrices_NPR @ right_NRC)
        right_NRC = _orthonormal(matrices_NPR.transpose(1, 2) @ left_NPC)
    left_NPC = matrices_NPR @ right_NRC
    return left_NPC.transpose(1, 2).contiguous(), right_NRC.transpose(1, 2).contiguous()


def _orthonormal(columns_NRC: Tensor) -> Tensor:
    """Gram-Schmidt twice over a few columns, all matrices at once; batched QR takes one matrix after the other.

    A column that vanishes (a matrix of lower rank) becomes zero and stays so, which is right: it has nothing to hold.
    """
    tiny = torch.finfo(columns_NRC.dtype).tiny
    kept: list[Tensor] = []
    for column_NR in columns_NRC.unbind(2):
        before = column_NR.norm(dim=1, keepdim=True)
        for _ in range(2):
            for other_NR in kept:
                column_NR = column_NR - (column_NR * other_NR).sum(1, keepdim=True) * other_NR
        norm = column_NR.norm(dim=1, keepdim=True)
        # Below this share of the column only rounding is left, and its direction means nothing.
        real = norm > 10 * torch.finfo(columns_NRC.dtype).eps * before
        kept.append(torch.where(real, column_NR / norm.clamp_min(tiny), torch.zeros_like(column_NR)))
    return torch.stack(kept, 2)
