"""Principal axes of more rows than fit in memory: a randomised range finder that goes through them twice and keeps sums only.

Axes: B rows of a chunk, M coordinates, P probes.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from whence.compress import random_matrix
from whence.distributed import Ranks

__all__ = ["Chunks", "streamed_axes"]

Chunks = Callable[[], Iterable[tuple[Sequence[int], Tensor]]]
"""One pass over rows: places of some of them in the whole sample, and the rows, shape (B, M)."""

# Of a Gram matrix, the share of its largest eigenvalue below which one is rounding.
_NOISE = 1e-12
# Numbers of the axes that are multiplied at a time.
_BLOCK_NUMBERS = 1 << 24


def streamed_axes(
    chunks: Chunks, coordinates_M: int, probes_P: int, *, seed: int, device: torch.device, ranks: Ranks = Ranks()
) -> tuple[Tensor, Tensor]:
    """Orthonormal principal axes of rows Z, by Y = Z^T O, Q = orth(Y), and the eigenvectors of (Z Q)^T (Z Q).

    Memory is M P numbers however many rows there are (Halko, Martinsson and Tropp 2011, algorithm 5.1, without a pass for a power). With
    at least as many probes as rows have directions the axes are the exact ones; else the last of them are worth less than exact ones would
    be, so a code takes the first of them only. Everything that is kept is a sum over rows: processes that each go through some of them get
    the same axes as one that goes through all.

    Args:
        chunks: The rows of this process, twice the same.
        coordinates_M: Their length.
        probes_P: Random mixtures of rows that are kept.
        seed: Of the mixtures; the part of a row in them depends on its place only.
        device: Where the sums live.
        ranks: Whose sums are added up.

    Returns:
        Axes (M, at most P), of the rows' precision, and the sum of squares of the rows along each, largest first, float64.
    """
    dtype, axes_MP = torch.float32, torch.zeros(coordinates_M, probes_P, device=device)
    for places, rows_BM in chunks():
        if torch.promote_types(rows_BM.dtype, dtype) != dtype:
            dtype = rows_BM.dtype
            axes_MP = axes_MP.to(dtype)
        rows_BM = rows_BM.to(device, dtype)
        axes_MP.addmm_(rows_BM.T, _probes(places, probes_P, seed).to(rows_BM))
    axes_MP = ranks.added_up({"axes": axes_MP})["axes"]
    # Twice: what the first round leaves of the steep spectrum of the mixtures, the second makes orthonormal to rounding.
    for _ in range(2):
        axes_MP = _turned(axes_MP, _to_orthonormal(_gram(axes_MP)))
    gram_PP = torch.zeros(axes_MP.shape[1], axes_MP.shape[1], dtype=torch.float64)
    for _, rows_BM in chunks():
        found_BP = (rows_BM.to(axes_MP) @ axes_MP).double().cpu()
        gram_PP.addmm_(found_BP.T, found_BP)
    gram_PP = ranks.added_up({"gram": gram_PP})["gram"]
    values_P, vectors_PP = torch.linalg.eigh(gram_PP)
    return _turned(axes_MP, vectors_PP.flip(1)), values_P.flip(0).clamp_min(0)


def _probes(places: Sequence[int], probes_P: int, seed: int) -> Tensor:
    """What some rows are multiplied with in every mixture, shape (B, P)."""
    rows = [random_matrix("rademacher", 1, probes_P, seed=seed, name=f"probes of document {place}") for place in places]
    return torch.cat(rows)


def _gram(axes_MP: Tensor) -> Tensor:
    found_PP = torch.zeros(axes_MP.shape[1], axes_MP.shape[1], dtype=torch.float64)
    for block_MP in axes_MP.split(max(1, _BLOCK_NUMBERS // axes_MP.shape[1])):
        found_PP += (block_MP.T @ block_MP).double().cpu()
    return found_PP


def _to_orthonormal(gram_PP: Tensor) -> Tensor:
    """What makes columns with this Gram matrix orthonormal, directions of rounding left out, shape (P, at most P)."""
    values_P, vectors_PP = torch.linalg.eigh(gram_PP)
    is_kept_P = values_P > values_P[-1].clamp_min(torch.finfo(torch.float64).tiny) * _NOISE
    return (vectors_PP[:, is_kept_P] / values_P[is_kept_P].sqrt()).flip(1)


def _turned(axes_MP: Tensor, turn_PK: Tensor) -> Tensor:
    """Columns mixed, in the memory that they have: whole axes are there once only."""
    turn_PK = turn_PK.to(axes_MP)
    width = turn_PK.shape[1]
    for block_MP in axes_MP.split(max(1, _BLOCK_NUMBERS // axes_MP.shape[1])):
        block_MP[:, :width] = block_MP @ turn_PK
    return axes_MP[:, :width]
