"""Bases of reflections written out, and the directions of a sketched side, by dense matrices."""

import torch
from torch import Tensor

from whence.reflections import Blocked, Reflected


def written_out(basis) -> Tensor | None:
    """Orthonormal columns as a matrix: one reflection after the other, I - 2 v v^T / |v|^2."""
    if isinstance(basis, Blocked):
        found = torch.eye(len(basis.bands_N), dtype=torch.float64)
        for place, column in zip(basis.places_K, basis.block_KK.T, strict=True):
            found[:, place] = 0
            found[basis.places_K, place] = column.double()
        return found
    if not isinstance(basis, Reflected):
        return basis
    found = torch.eye(len(basis.vectors_NK), dtype=torch.float64)
    for vector in basis.vectors_NK.double().T:
        found = found - 2 * torch.outer(found @ vector, vector) / vector.dot(vector)
    return found


def evened(values: Tensor, basis) -> Tensor:
    """Rows of a matrix, those of the rest of a cut basis (or of each band of it) replaced with their mean, one band after the other."""
    found = values.clone()
    if isinstance(basis, Reflected):
        rest = range(basis.vectors_NK.shape[1], len(values))
        for row in rest:
            found[row] = sum(values[other] for other in rest) / len(rest)
    if isinstance(basis, Blocked):
        for row in set(range(len(values))) - set(basis.places_K.tolist()):
            band = [other for other in range(len(values)) if basis.bands_N[other] == basis.bands_N[row]]
            found[row] = sum(values[other] for other in band) / len(band)
    return found


def sketched(moment: Tensor, omega: Tensor) -> Tensor:
    """The Nystroem approximation of a second moment: S Omega (Omega^T S Omega)^+ Omega^T S."""
    product = moment @ omega
    return product @ torch.linalg.pinv(omega.T @ product, hermitian=True) @ product.T
