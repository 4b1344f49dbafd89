"""Sparse random projections: every number goes to one slot with a random sign, so the work does not grow with the slots.

Axes: B rows, N numbers, K slots, M chosen places.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["SparseSketch", "random_places"]


@dataclass(frozen=True)
class SparseSketch:
    """A sparse Johnson-Lindenstrauss transform with one entry per column, +-1: inner products are kept on average.

    Args:
        slots_N: Where each number goes.
        signs_N: Its sign.
        width_K: Number of slots.
    """

    slots_N: Tensor
    signs_N: Tensor
    width_K: int

    @classmethod
    def random(cls, size_N: int, width_K: int, *, seed: int, name: str, device: torch.device) -> "SparseSketch":
        """Reproducible from the arguments on every device (Kane and Nelson 2014; Hu et al. 2025)."""
        words = _stream("sparse", seed, size_N, width_K, name).random_raw(size_N)
        # The low bit is the sign and the rest the slot: 63 bits modulo any width are even enough.
        signs_N = torch.from_numpy((words & np.uint64(1)).astype(np.float32) * 2 - 1)
        slots_N = torch.from_numpy(((words >> np.uint64(1)) % np.uint64(width_K)).astype(np.int64))
        return cls(slots_N.to(device), signs_N.to(device), width_K)

    def times(self, rows_BN: Tensor) -> Tensor:
        """Every row sketched, shape (B, K)."""
        sketch_BK = rows_BN.new_zeros(len(rows_BN), self.width_K)
        return sketch_BK.index_add_(1, self.slots_N, rows_BN * self.signs_N.to(rows_BN.dtype))

    def back(self, query_K: Tensor) -> Tensor:
        """The transposed sketch: what each number is multiplied with in the inner product with a query, shape (N,)."""
        return query_K[self.slots_N] * self.signs_N.to(query_K)


def random_places(size_N: int, count_M: int, *, seed: int, name: str) -> Tensor:
    """Different places below `size_N`, in rising order, the same on every machine; all of them if that is no more than asked for.

    Args:
        size_N: How many places there are.
        count_M: How many are wanted.
        seed: The run's seed.
        name: What they are for; every name has its own.

    Returns:
        Shape (M,), int64 on the CPU.

    >>> random_places(3, 5, seed=0, name="x").tolist()
    [0, 1, 2]
    """
    if count_M >= size_N:
        return torch.arange(size_N)
    stream = _stream("places", seed, size_N, count_M, name)
    drawn = np.zeros(0, np.int64)
    while True:
        more = (stream.random_raw(2 * count_M) % np.uint64(size_N)).astype(np.int64)
        drawn = np.concatenate([drawn, more])
        entries, first = np.unique(drawn, return_index=True)
        if len(entries) >= count_M:
            # Those drawn first, so that every set is as likely as any other.
            return torch.from_numpy(np.sort(entries[np.argsort(first)[:count_M]]))


def _stream(kind: str, seed: int, size: int, width: int, name: str) -> np.random.Philox:
    key = hashlib.sha256(f"whence:1:{kind}:{seed}:{size}:{width}:{name}".encode()).digest()
    return np.random.Philox(key=int.from_bytes(key[:16], "little"))
