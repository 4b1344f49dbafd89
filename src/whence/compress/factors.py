"""Rank-c factors of many small matrices at once (LoRIF).

Axes: N matrices, P rows, R columns, C factors, Q queries.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from whence.compress.projection import random_matrix

__all__ = ["factor_ranks", "factorize", "row_blocks", "score_factors"]

# A block of rows widened to float32 should stay in a core's second-level cache: 1 MiB.
_CACHE_NUMBERS = 1 << 18


def factor_ranks(shapes: Sequence[tuple[int, int]], factor_rank: int | None) -> list[int | None]:
    """Factors per unit; None for one that is dense, since its matrix takes no more numbers than its factors.

    Args:
        shapes: (P, R) of each unit.
        factor_rank: Factors wanted; None keeps everything dense.
    """
    if factor_rank is None:
        return [None] * len(shapes)
    ranks = [min(factor_rank, *shape) for shape in shapes]
    return [rank if rank * (p + r) < p * r else None for rank, (p, r) in zip(ranks, shapes, strict=True)]


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


def score_factors(
    count: int, rank_C: int, factors: Callable[[slice], tuple[Tensor, Tensor]], query_QPR: Tensor, scores_NQ: Tensor
) -> None:
    """Add the inner products of factored rows with queries: the sum over factors of u^T M v, which never writes U V^T out.

    Args:
        count: Rows.
        rank_C: Factors of each.
        factors: From some rows to their U (rows, C, P) and V (rows, C, R), in the queries' type.
        query_QPR: The queries.
        scores_NQ: What is added to.
    """
    queries, p, r = query_QPR.shape
    score = _by_product if queries >= 4 * rank_C else _by_query
    for rows in row_blocks(count, r * (p if score is _by_product else rank_C * queries)):
        scores_NQ[rows] += score(*factors(rows), query_QPR)


def row_blocks(rows: int, numbers_per_row: int) -> list[slice]:
    """Rows at a time so that what is made of them stays in a core's cache."""
    step = max(16, _CACHE_NUMBERS // numbers_per_row)
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def _by_query(left_NCP: Tensor, right_NCR: Tensor, query_QPR: Tensor) -> Tensor:
    """With M taken to the left factors first: least work for few queries; shape (N, Q)."""
    rows, rank, p = left_NCP.shape
    query_PQR = query_QPR.permute(1, 0, 2).reshape(p, -1)
    mixed_NCQR = (left_NCP.reshape(-1, p) @ query_PQR).view(rows, rank, len(query_QPR), -1)
    return mixed_NCQR.mul_(right_NCR[:, :, None]).sum((1, 3))


def _by_product(left_NCP: Tensor, right_NCR: Tensor, query_QPR: Tensor) -> Tensor:
    """With U V^T written out after all, a block of rows at a time: least work for many queries; shape (N, Q)."""
    return torch.bmm(left_NCP.transpose(1, 2), right_NCR).flatten(1) @ query_QPR.flatten(1).T


def _orthonormal(columns_NRC: Tensor) -> Tensor:
    """Gram-Schmidt twice over a few columns, all matrices at once; batched QR takes one matrix after the other.

    A column that vanishes (a matrix of lower rank) becomes zero and stays so, which is right: it has nothing to hold.
    """
    tiny = torch.finfo(columns_NRC.dtype).tiny
    columns: list[Tensor] = []
    for column_NR in columns_NRC.unbind(2):
        before = column_NR.norm(dim=1, keepdim=True)
        for _ in range(2):
            for other_NR in columns:
                column_NR = column_NR - (column_NR * other_NR).sum(1, keepdim=True) * other_NR
        norm = column_NR.norm(dim=1, keepdim=True)
        # Below this share of the column only rounding is left, and its direction means nothing.
        real = norm > 10 * torch.finfo(columns_NRC.dtype).eps * before
        columns.append(torch.where(real, column_NR / norm.clamp_min(tiny), torch.zeros_like(column_NR)))
    return torch.stack(columns, 2)
