"""Random matrices that are the same on every device, and learned axes.

Axes: N length of the vectors, D projected length.
"""

import hashlib
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from whence.records import OneHot, Side

__all__ = ["AxesSketch", "Random", "nystroem_directions", "random_matrix"]

Random = Literal["gaussian", "rademacher"]


def random_matrix(kind: Random, size_N: int, width_D: int, *, seed: int, name: str) -> Tensor:
    """A projection with independent entries of mean 0 and variance 1 / D, so that inner products are kept on average.

    The bits come from NumPy's Philox counter generator keyed by the arguments, whose stream is fixed for good; the same matrix is made on
    every device and never stored.

    Args:
        kind: "rademacher" (entries +-1/sqrt(D)) or "gaussian".
        size_N: Length of the vectors.
        width_D: Projected length.
        seed: The run's seed.
        name: What the matrix is for; every name has its own.

    Returns:
        Shape (N, D), float32 on the CPU.

    >>> matrix = random_matrix("rademacher", 3, 4, seed=0, name="layer")
    >>> sorted(set(matrix.flatten().tolist()))
    [-0.5, 0.5]
    """
    key = hashlib.sha256(f"whence:1:{kind}:{seed}:{size_N}:{width_D}:{name}".encode()).digest()
    stream = np.random.Philox(key=int.from_bytes(key[:16], "little"))
    count = size_N * width_D
    if kind == "rademacher":
        words = stream.random_raw((count + 63) // 64).astype("<u8")
        bits = np.unpackbits(words.view(np.uint8), count=count, bitorder="little")
        values = bits.astype(np.float32) * 2 - 1
    else:  # Box-Muller, since NumPy does not promise to keep its own normal sampler
        uniform = (stream.random_raw(2 * ((count + 1) // 2)) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        radius, angle = np.sqrt(-2 * np.log1p(-uniform[0::2])), 2 * np.pi * uniform[1::2]
        values = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).ravel()[:count].astype(np.float32)
    return torch.from_numpy(values.reshape(size_N, width_D)) / width_D**0.5


class AxesSketch:
    """Leading eigenvectors of a second-moment matrix that is never formed: one pass, memory N x (D + 10).

    Keeps C Omega for a random Omega and finishes with the Nystroem formula (Halko, Martinsson and Tropp 2011, section 5.5).

    Args:
        size_N: Length of the vectors.
        width_D: Axes wanted.
        seed: The run's seed.
        name: What it is for.
        device: Where the sums live.
    """

    def __init__(self, size_N: int, width_D: int, *, seed: int, name: str, device: torch.device):
        self.width_D = width_D
        probes = random_matrix("gaussian", size_N, min(size_N, width_D + 10), seed=seed, name=f"axes of {name}")
        # Where the whole matrix is no larger than the probes, take it exactly.
        self.omega = torch.linalg.qr(probes.double())[0].to(device)
        self.sketch = torch.zeros_like(self.omega)

    def product(self, side: Side, mask_BT: Tensor | None) -> Tensor:
        """Second moment of one side's vectors times the probes, shape of `sketch`; positions outside the mask are left out."""
        if isinstance(side, OneHot):
            keep_R = slice(None) if mask_BT is None or mask_BT.numel() != side.ids_BT.numel() else mask_BT.flatten()
            ids_R = side.ids_BT.flatten()[keep_R]
            return torch.zeros_like(self.sketch).index_add_(0, ids_R, self.omega[ids_R])
        vectors_RN = side.dense().double().flatten(0, 1)
        if mask_BT is not None and mask_BT.numel() == len(vectors_RN):
            vectors_RN = vectors_RN[mask_BT.flatten()]
        return vectors_RN.T @ (vectors_RN @ self.omega)

    def axes(self) -> Tensor:
        """Orthonormal columns, shape (N, D), largest eigenvalue first, float32."""
        half = nystroem_directions(self.omega, self.sketch)
        axes = torch.linalg.svd(half, full_matrices=False)[0]
        axes = torch.nn.functional.pad(axes, (0, max(0, self.width_D - axes.shape[1])))[:, : self.width_D]
        # The sign of an eigenvector is free: make its largest entry positive, so that runs agree.
        largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
        return (axes * torch.where(largest < 0, -1.0, 1.0)).float()


def nystroem_directions(omega_NK: Tensor, sketch_NK: Tensor, *, least: float = 1e-12) -> Tensor:
    """A half of the Nystroem approximation of a second moment S from S Omega: columns H with H H^T nearest S (Halko et al. 2011, 5.5).

    Args:
        omega_NK: Omega.
        sketch_NK: S Omega.
        least: Share of the largest eigenvalue below which one is rounding of the sketch.

    Returns:
        Shape (N, at most K): directions below rounding are left out.
    """
    small_KK = omega_NK.T @ sketch_NK
    values_K, vectors_KK = torch.linalg.eigh((small_KK + small_KK.T) / 2)
    keep_K = values_K > values_K[-1].clamp_min(0) * least
    return sketch_NK @ (vectors_KK[:, keep_K] / values_K[keep_K].sqrt())
