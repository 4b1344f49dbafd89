"""Eigenvectors of a moving average, followed without decompositions.

Lin et al. 2025 (arXiv 2502.06268): S = B diag(d) B^T follows S <- (1 - b) S + b Q on the manifold of orthogonal matrices, to first order in
b. Axes: N a side.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["SpectralFactor"]

# Of one update, in radians: where two eigenvalues are nearly equal a noisy moment would turn their vectors any way.
_LARGEST_TURN = 0.1
# What an update may multiply an eigenvalue with.
_LARGEST_GROWTH = 4.0


@dataclass
class SpectralFactor:
    """A symmetric matrix without negative eigenvalues, by its eigenvectors and eigenvalues.

    Args:
        basis_NN: B, eigenvectors in columns.
        values_N: d.

    >>> factor = SpectralFactor(torch.eye(2).double(), torch.tensor([4.0, 1.0]).double())
    >>> factor.root(2)
    tensor([[2., 0.],
            [0., 1.]], dtype=torch.float64)
    """

    basis_NN: Tensor
    values_N: Tensor

    @classmethod
    def of(cls, moment_NN: Tensor) -> "SpectralFactor":
        """The eigenvectors of a first moment, from which the others are followed."""
        values_N, basis_NN = torch.linalg.eigh(moment_NN)
        least = torch.finfo(values_N.dtype).eps * float(values_N[-1].clamp_min(torch.finfo(values_N.dtype).tiny))
        return cls(basis_NN, values_N.clamp_min(least))

    def update(self, moment_NN: Tensor, share: float) -> None:
        """Let the average take a share of a moment.

        d <- d exp(b / d (diag(B^T Q B) - d)), B <- B Cayley(b K) with K_ij = -(B^T Q B)_ij / (d_i - d_j), which is antisymmetric, so that B
        stays orthogonal. Pairs with nearly equal eigenvalues are turned by at most .1.

        Args:
            moment_NN: Q.
            share: b.
        """
        d_N = self.values_N
        inside_NN = self.basis_NN.T @ moment_NN @ self.basis_NN
        apart_NN = d_N[:, None] - d_N
        turn_NN = torch.where(apart_NN == 0, 0.0, -share * inside_NN / torch.where(apart_NN == 0, 1.0, apart_NN))
        turn_NN = turn_NN.clamp(-_LARGEST_TURN, _LARGEST_TURN)
        turn_NN = (turn_NN - turn_NN.T) / 4  # half of the antisymmetric part
        eye_NN = torch.eye(len(d_N), dtype=d_N.dtype, device=d_N.device)
        self.basis_NN = self.basis_NN @ torch.linalg.solve(eye_NN - turn_NN, eye_NN + turn_NN)
        growth_N = (share * (inside_NN.diagonal() / d_N - 1)).exp().clamp_max(_LARGEST_GROWTH)
        self.values_N = d_N * growth_N

    def root(self, order: float) -> Tensor:
        """S to the power 1 / order, elementwise on the eigenvalues: -4 for what Shampoo multiplies a side with."""
        return self.basis_NN @ (self.values_N[:, None] ** (1 / order) * self.basis_NN.T)

    @property
    def matrix(self) -> Tensor:
        """S itself."""
        return self.root(1.0)
