"""Orthonormal bases of which a few directions were chosen, for sides of a weight that are too long for a whole matrix of eigenvectors.

Axes: N length of the vectors, K directions that were chosen, M columns of a matrix.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Basis", "Blocked", "Reflected"]

# Rows of the basis written out at a time.
_ROWS = 512


@dataclass(frozen=True)
class Reflected:
    """The coordinate axes, reflected so that the first K of them become given directions: Q = I - V T V^T (Schreiber and Van Loan 1989).

    The other N - K columns are an orthonormal basis of what is left, each as near to its axis as that allows. Products with Q take
    4 N K operations a vector instead of 2 N N, and Q takes N K numbers.

    Args:
        vectors_NK: V, the reflections' vectors. Q is orthonormal for any of them, rounding of V included.
        triangle_KK: T, which belongs to V.

    >>> basis = Reflected.towards(torch.tensor([[0.6], [0.8]], dtype=torch.float64))
    >>> basis.written_out()[:, 0].abs()
    tensor([0.6000, 0.8000], dtype=torch.float64)
    """

    vectors_NK: Tensor
    triangle_KK: Tensor

    @classmethod
    def of(cls, vectors_NK: Tensor) -> "Reflected":
        """The basis of these vectors of reflections."""
        wide = vectors_NK.double()
        inner_KK = wide.T @ wide
        inverse_KK = inner_KK.triu(1) + torch.diag(inner_KK.diagonal() / 2)
        one_KK = torch.eye(len(inner_KK), dtype=wide.dtype, device=wide.device)
        triangle_KK = torch.linalg.solve_triangular(inverse_KK, one_KK, upper=True)
        return cls(vectors_NK, triangle_KK.to(vectors_NK))

    @classmethod
    def towards(cls, directions_NK: Tensor) -> "Reflected":
        """The basis whose first columns are orthonormal directions, up to their signs (Householder 1958)."""
        packed_NK = torch.geqrf(directions_NK)[0]
        vectors_NK = packed_NK.tril(-1)
        vectors_NK.diagonal().fill_(1)
        return cls.of(vectors_NK)

    @property
    def shape(self) -> tuple[int, int]:
        """Of Q, as a matrix has it."""
        return (len(self.vectors_NK), len(self.vectors_NK))

    @property
    def directions(self) -> int:
        """K."""
        return self.vectors_NK.shape[1]

    def leading(self, values_N: Tensor) -> Tensor:
        """Those of N numbers that belong to the directions."""
        return values_N[: self.directions]

    def even(self, values_NM: Tensor) -> Tensor:
        """Rows of a matrix, with their mean in place of each row that belongs to no direction; in place."""
        if self.directions < len(values_NM):
            values_NM[self.directions :] = values_NM[self.directions :].mean(0, keepdim=True)
        return values_NM

    def to(self, other: Tensor | torch.dtype | torch.device) -> "Reflected":
        """On another device or in another type, or both of a tensor."""
        return Reflected(self.vectors_NK.to(other), self.triangle_KK.to(other))

    def after(self, values_N: Tensor) -> Tensor:
        """The product values Q, for any number of leading axes: coordinates in the basis."""
        here = self.to(values_N)
        return values_N - (values_N @ here.vectors_NK) @ here.triangle_KK @ here.vectors_NK.T

    def back(self, values_N: Tensor) -> Tensor:
        """The product values Q^T: from coordinates in the basis."""
        here = self.to(values_N)
        return values_N - (values_N @ here.vectors_NK) @ here.triangle_KK.T @ here.vectors_NK.T

    def rows(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows of Q, shape (..., N): one-hot vectors in the basis."""
        here = self.to(dtype)
        rows = -(here.vectors_NK[ids] @ here.triangle_KK) @ here.vectors_NK.T
        return rows.scatter_add_(-1, ids[..., None], torch.ones_like(rows[..., :1]))

    def columns(self, places_P: Tensor) -> Tensor:
        """Some columns of Q, shape (N, P): products with few of them take fewer operations than with all."""
        columns_NP = -self.vectors_NK @ (self.triangle_KK @ self.vectors_NK[places_P].T)
        columns_NP[places_P, torch.arange(len(places_P), device=places_P.device)] += 1
        return columns_NP

    def squares_times(self, values_NM: Tensor) -> Tensor:
        """The product of Q's squared entries with a matrix, some rows of Q at a time."""
        places_N = torch.arange(len(self.vectors_NK), device=values_NM.device)
        return torch.cat([self.rows(some, values_NM.dtype).square_() @ values_NM for some in places_N.split(_ROWS)])

    def written_out(self) -> Tensor:
        """Q, shape (N, N): for tests and small sizes only."""
        places_N = torch.arange(len(self.vectors_NK), device=self.vectors_NK.device)
        return self.rows(places_N, self.vectors_NK.dtype)


@dataclass(frozen=True)
class Blocked:
    """The coordinate axes, but for K of them among which another basis was chosen: a vocabulary's frequent tokens.

    Args:
        block_KK: Orthonormal columns.
        places_K: Of these axes.
        bands_N: Which of several bands an axis of the rest belongs to; -1 for the K.
    """

    block_KK: Tensor
    places_K: Tensor
    bands_N: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Of the whole basis, as a matrix has it."""
        return (len(self.bands_N), len(self.bands_N))

    @property
    def directions(self) -> int:
        """K."""
        return len(self.places_K)

    def leading(self, values_N: Tensor) -> Tensor:
        """Those of N numbers that belong to the block."""
        return values_N[self.places_K.to(values_N.device)]

    def even(self, values_NM: Tensor) -> Tensor:
        """Rows of a matrix, with the mean of its band in place of each row of the rest; in place."""
        for band in range(int(self.bands_N.max()) + 1):
            rows = (self.bands_N == band).nonzero()[:, 0].to(values_NM.device)
            values_NM[rows] = values_NM[rows].mean(0, keepdim=True)
        return values_NM

    def to(self, other: Tensor | torch.dtype | torch.device) -> "Blocked":
        """On another device or in another type, or both of a tensor."""
        block_KK = self.block_KK.to(other)
        return Blocked(block_KK, self.places_K.to(block_KK.device), self.bands_N.to(block_KK.device))

    def after(self, values_N: Tensor) -> Tensor:
        """Coordinates in the basis, for any number of leading axes."""
        here = self.to(values_N)
        return values_N.index_copy(-1, here.places_K, values_N[..., here.places_K] @ here.block_KK)

    def back(self, values_N: Tensor) -> Tensor:
        """From coordinates in the basis."""
        here = self.to(values_N)
        return values_N.index_copy(-1, here.places_K, values_N[..., here.places_K] @ here.block_KK.T)

    def rows(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows of the basis, shape (..., N): one-hot vectors in it."""
        return self.after(torch.nn.functional.one_hot(ids, len(self.bands_N)).to(dtype))

    def squares_times(self, values_NM: Tensor) -> Tensor:
        """The product of the basis' squared entries with a matrix."""
        here = self.to(values_NM)
        return values_NM.index_copy(0, here.places_K, here.block_KK.square() @ values_NM[here.places_K])


Basis = Tensor | Reflected | Blocked
"""Orthonormal columns: as a matrix, as reflections, or as a block among axes."""
