"""Eigenvectors of second moments, and second moments in a basis.

Axes: N coordinates of a side of a unit, Z of its null space.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from whence.curvature.sides import LONG_SIDE, ROUNDING
from whence.reflections import Reflected

__all__ = ["SETTLED_SIDE", "diagonal", "diagonal_in", "eigenbasis", "eigenvectors", "wide"]

SETTLED_SIDE = 512
"""Sides up to this have a basis of their null space settled by a rule however large that is; a longer one that is mostly null has a rest."""


def eigenvectors(moments: Sequence[Tensor], weights: Sequence[float], dtype: torch.dtype) -> Tensor:
    """Eigenvectors of a weighted sum of second moments, some of them diagonal, shape (N, N); `dtype` is what they were summed in."""
    return _with_settled_null_space(*_decomposed(moments, weights), dtype)


def eigenbasis(moments: Sequence[Tensor], weights: Sequence[float], dtype: torch.dtype) -> tuple[Tensor | Reflected, Tensor]:
    """The basis of a side, and the diagonal of each of its second moments there, shape (roles, N).

    Eigenvectors of a weighted sum of the moments; on a side of which most is a null space those of the range only, and a rest that is
    isotropic. A rule's basis of so large a null space takes longer than all eigenvectors, and with the directions that float32 sums have lost
    in it, it is further from exact arithmetic than their mean.

    Args:
        moments: Matrices or diagonals.
        weights: Of each in the sum.
        dtype: What they were summed in.
    """
    values_N, vectors_NN = _decomposed(moments, weights)
    size = len(values_N)
    is_null_N = values_N <= ROUNDING * torch.finfo(dtype).eps * values_N[-1]
    count = int(is_null_N.sum())
    if size <= SETTLED_SIDE or 2 * count < size or count == size:
        basis_NN = _with_settled_null_space(values_N, vectors_NN, dtype)
        return basis_NN, torch.stack([diagonal_in(moment, basis_NN) for moment in moments])
    range_NK = vectors_NN[:, ~is_null_N].flip(1)
    inside_K = torch.stack([diagonal_in(moment, range_NK) for moment in moments])
    traces = torch.stack([diagonal(moment).sum() for moment in moments])[:, None]
    rest = (traces - inside_K.sum(1, keepdim=True)).clamp_min(0) / count
    return Reflected.towards(range_NK), torch.cat([inside_K, rest.expand(-1, count)], 1)


def _decomposed(moments: Sequence[Tensor], weights: Sequence[float]) -> tuple[Tensor, Tensor]:
    total_NN = sum(
        weight * (moment if moment.ndim == 2 else torch.diag(moment)) for moment, weight in zip(moments, weights, strict=True)
    )
    assert isinstance(total_NN, Tensor)
    return torch.linalg.eigh((total_NN + total_NN.T) / 2)


def _with_settled_null_space(values_N: Tensor, vectors_NN: Tensor, dtype: torch.dtype) -> Tensor:
    """The same eigenvectors, but those of eigenvalue zero chosen by a rule where rounding would choose them.

    Where there are fewer gradients than a side is long, any basis of the null space will do for the factor. The corrected eigenvalues there
    are not zero where labels are drawn anew for them, and scores would differ between machines (by 2e-3 in a case of ours). The rule: the
    basis in which a fixed ramp over the coordinates is diagonal.
    """
    size = len(values_N)
    # Of the factor's own type, since that is what its sum was rounded to.
    is_null_N = values_N <= 8 * size**0.5 * torch.finfo(dtype).eps * values_N[-1]
    if is_null_N.sum() < 2:
        return vectors_NN
    null_NZ = vectors_NN[:, is_null_N]
    ramp_N = torch.arange(1, size + 1, dtype=null_NZ.dtype, device=null_NZ.device) / size
    turn_ZZ = torch.linalg.eigh(null_NZ.T @ (ramp_N[:, None] * null_NZ))[1]
    return torch.cat([null_NZ @ turn_ZZ, vectors_NN[:, ~is_null_N]], 1)


def diagonal(moment: Tensor) -> Tensor:
    """Of a second moment, shape (N,), which may be all there is of it."""
    return moment.diagonal() if moment.ndim == 2 else moment


def diagonal_in(moment: Tensor, basis_NN: Tensor | None) -> Tensor:
    """Diagonal of basis^T moment basis, clamped to what a second moment can have."""
    if basis_NN is None:
        return diagonal(moment)
    inside_NN = moment @ basis_NN if moment.ndim == 2 else moment[:, None] * basis_NN
    return (basis_NN * inside_NN).sum(0).clamp_min(0)


def wide(moments: Sequence[Tensor]) -> list[Tensor]:
    """The second moments of one side in one type: float64, but for a long side with a whole moment."""
    whole = next((moment for moment in moments if moment.ndim == 2), None)
    if whole is not None and len(whole) > LONG_SIDE:
        # A tied embedding's own moment is a diagonal, the head's is not.
        return [moment.to(whole.dtype) for moment in moments]
    return [moment.double() for moment in moments]
