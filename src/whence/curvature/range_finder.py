"""Principal axes of more rows than fit in memory: two passes that keep sketches of the rows first, and then sums over rows only.

Axes: N rows in all, B rows of a chunk, M coordinates, R numbers of a sketch, K axes.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from whence.compress import SparseSketch
from whence.distributed import Ranks

__all__ = ["SKETCHED", "Chunks", "streamed_axes"]

Chunks = Callable[[], Iterable[tuple[Sequence[int], Tensor]]]
"""One pass over rows: places of some of them in the whole sample, and the rows, shape (B, M)."""
SKETCHED = 1 << 15
"""Numbers of a row's sketch, for which mixtures are found: with 16,384 axes of gradients of text are worth .01 less, with 65,536 as much."""
# Of a Gram matrix, the share of its largest eigenvalue below which one is rounding.
_NOISE = 1e-9
# Numbers that are multiplied at a time.
_BLOCK_NUMBERS = 1 << 24


def streamed_axes(
    chunks: Chunks,
    rows_N: int,
    coordinates_M: int,
    width_K: int,
    *,
    seed: int,
    device: torch.device,
    ranks: Ranks = Ranks(),
) -> Tensor:
    """Orthonormal axes that hold nearly as much of rows Z as the leading singular vectors do, in the order of what they hold.

    Y = Z^T O for mixtures O of the rows, then Q = orth(Y) (Halko, Martinsson and Tropp 2011, algorithm 4.1). Random mixtures would have to be
    several times as many as axes, or be followed by passes for a power, since the spectrum of gradients decays slowly. These are the leading
    eigenvectors of the Gram matrix of sketches of the rows, which are small enough to be kept: as many mixtures as axes then do. With as many
    axes as rows have directions, or rows no longer than sketches, they are the exact ones.

    Memory is N R numbers and then M K, never N M. Everything that is kept is a sum over rows: processes that each go through some of
    them get the same axes as one that goes through all.

    Args:
        chunks: The rows of this process, twice the same.
        rows_N: Of all processes.
        coordinates_M: Their length.
        width_K: Axes, at most.
        seed: Of the sketch.
        device: Where the sums live.
        ranks: Whose sums are added up.

    Returns:
        Shape (M, at most K), of the rows' precision, float32 at least.
    """
    sketch = None
    if coordinates_M > SKETCHED:
        sketch = SparseSketch.random(coordinates_M, SKETCHED, seed=seed, name="sketches of documents", device=device)
    sketches_NR = None
    for documents, rows_BM in chunks():
        wide_BM = rows_BM.to(device, torch.promote_types(rows_BM.dtype, torch.float32))
        sketched_BR = (wide_BM if sketch is None else sketch.times(wide_BM)).cpu()
        if sketches_NR is None:
            sketches_NR = sketched_BR.new_zeros(rows_N, sketched_BR.shape[1])
        sketches_NR[torch.tensor(list(documents))] = sketched_BR
    sketches = ranks.added_up({} if sketches_NR is None else {"sketches": sketches_NR})
    mix_NK = _mixtures(sketches["sketches"], width_K)
    del sketches, sketches_NR
    axes_MK = torch.zeros(coordinates_M, mix_NK.shape[1], device=device)
    for documents, rows_BM in chunks():
        wide_BM = rows_BM.to(device, torch.promote_types(rows_BM.dtype, torch.float32))
        axes_MK = axes_MK.to(wide_BM.dtype)
        axes_MK.addmm_(wide_BM.T, mix_NK[torch.tensor(list(documents))].to(wide_BM))
    axes_MK = ranks.added_up({"axes": axes_MK})["axes"]
    # Twice: rounding of the first round is gone after the second.
    for _ in range(2):
        _make_orthonormal(axes_MK)
    return axes_MK


def _mixtures(sketches_NR: Tensor, width_K: int) -> Tensor:
    """Leading eigenvectors of the sketches' Gram matrix over the roots of their eigenvalues: mixed rows are nearly of unit length."""
    gram_NN = torch.zeros(len(sketches_NR), len(sketches_NR), dtype=torch.float64)
    for block_NR in sketches_NR.split(max(1, _BLOCK_NUMBERS // len(sketches_NR)), 1):
        gram_NN += (block_NR @ block_NR.T).double()
    values_N, vectors_NN = torch.linalg.eigh(gram_NN)
    width = min(width_K, max(1, int((values_N > values_N[-1] * _NOISE).sum())))
    vectors_NK = vectors_NN.flip(1)[:, :width]
    # The sign of an eigenvector is free: make its largest entry positive, so that runs agree.
    largest_1K = vectors_NK.gather(0, vectors_NK.abs().argmax(0, keepdim=True))
    return vectors_NK * torch.where(largest_1K < 0, -1.0, 1.0) / values_N.flip(0)[:width].sqrt()


def _make_orthonormal(axes_MK: Tensor) -> None:
    """Columns made orthonormal one after the other (Cholesky QR), in the memory that they have: whole axes are there once only."""
    blocks = axes_MK.split(max(1, _BLOCK_NUMBERS // axes_MK.shape[1]))
    gram_KK = torch.zeros(axes_MK.shape[1], axes_MK.shape[1], dtype=torch.float64)
    for block_MK in blocks:
        gram_KK += (block_MK.T @ block_MK).double().cpu()
    lower_KK = torch.linalg.cholesky(gram_KK)
    one_KK = torch.eye(len(gram_KK), dtype=torch.float64)
    to_orthonormal_KK = torch.linalg.solve_triangular(lower_KK, one_KK, upper=False).T.to(axes_MK)
    for block_MK in blocks:
        block_MK.copy_(block_MK @ to_orthonormal_KK)
