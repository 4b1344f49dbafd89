"""The Fisher matrix of stored rows: eigenvectors of its leading part, undamped, and its inverse applied to queries.

Axes: N rows, D numbers of a unit, K kept directions, Q queries.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from whence.compress import random_matrix
from whence.errors import StoreCorrupt
from whence.progress import Meter
from whence.store import Store, damaged

__all__ = ["Fisher", "fit_fisher", "leading_directions", "load_fishers"]

# Oversampling and power iterations of the randomised SVD (Halko, Martinsson and Tropp 2011; Li et al. 2026, section 3.2).
_OVERSAMPLING = 10
_POWER_ITERATIONS = 3


@dataclass(frozen=True)
class Fisher:
    """One unit's uncentred second moment F = (1/N) sum of g g^T, by its leading eigenvectors.

    Args:
        vectors_DK: Orthonormal columns.
        values_K: Their eigenvalues, largest first.
        trace: Sum of all D eigenvalues, kept or not.
    """

    vectors_DK: Tensor
    values_K: Tensor
    trace: float

    @property
    def mean_eigenvalue(self) -> float:
        """Trace over D, over all directions."""
        return self.trace / self.vectors_DK.shape[0]

    def mean_kept(self, num_rows: int) -> float:
        """Mean over the directions that are kept, of which no more than `num_rows` can have an eigenvalue."""
        return float(self.values_K[:num_rows].double().mean())

    @property
    def mean_left(self) -> float:
        """Mean eigenvalue of the directions that are not kept."""
        left = self.vectors_DK.shape[0] - self.vectors_DK.shape[1]
        return max(self.trace - float(self.values_K.double().sum()), 0.0) / left if left else 0.0

    def solve(self, rows_QD: Tensor, damping: float, *, has_tail: bool = False) -> Tensor:
        """(F + damping I)^-1 applied to each row, by Woodbury: directions that are not kept get the weight 1 / damping.

        Args:
            rows_QD: The rows.
            damping: Added to every eigenvalue, positive.
            has_tail: Whether directions that are not kept have their mean as eigenvalue instead of zero.

        Returns:
            Shape (Q, D).
        """
        vectors_DK, values_K = self.vectors_DK.to(rows_QD), self.values_K.to(rows_QD)
        inside_QK = rows_QD @ vectors_DK
        if vectors_DK.shape[0] == vectors_DK.shape[1]:
            return (inside_QK / (values_K + damping)) @ vectors_DK.T
        # Subtracting the projection first keeps large and small parts apart, where 1/damping - ... would cancel.
        outside_QD = rows_QD - inside_QK @ vectors_DK.T
        return (
            outside_QD / (damping + (self.mean_left if has_tail else 0.0)) + (inside_QK / (values_K + damping)) @ vectors_DK.T
        )


def fit_fisher(store: Store, *, rank: int | None, seed: int, progress: Meter) -> dict[str, Tensor]:
    """The Fisher of every unit, streamed over the store's rows as they are stored.

    Args:
        store: The rows.
        rank: Directions to keep; None, or a rank that a unit does not reach, keeps all.
        seed: Of the randomised SVD's start.
        progress: Advanced once a unit.

    Returns:
        Tensors to be written: `vectors.i` (D, K), `values.i` (K) and `traces` (one per unit).
    """
    tensors: dict[str, Tensor] = {}
    traces = []
    for index, unit in enumerate(store.blueprint.units):
        size_D = unit.projected[0] * unit.projected[1]

        def rows(index: int = index) -> Iterator[Tensor]:
            for _, shard in store.shards(store.codec.tensors_of(index)):
                yield store.codec.decode(shard, index)

        fisher = leading_directions(rows, size_D, rank=rank, seed=seed, name=unit.name, num_rows=len(store))
        tensors[f"vectors.{index}"], tensors[f"values.{index}"] = fisher.vectors_DK, fisher.values_K
        traces.append(fisher.trace)
        progress.advance()
    tensors["traces"] = torch.tensor(traces, dtype=torch.float64)
    return tensors


def load_fishers(tensors: Mapping[str, Tensor], sizes: Sequence[int]) -> list[Fisher]:
    """The Fishers of all units from what `fit_fisher` made.

    Args:
        tensors: Those of `curvature.safetensors`.
        sizes: Numbers of each unit's rows.

    Raises:
        StoreCorrupt: If they are not of such rows.
    """
    fishers = []
    for index, size in enumerate(sizes):
        vectors_DK, values_K, traces = (tensors.get(name) for name in (f"vectors.{index}", f"values.{index}", "traces"))
        if vectors_DK is None or values_K is None or traces is None or traces.shape != (len(sizes),):
            why = f"it has no vectors, values or traces for {len(sizes):,} units"
        elif vectors_DK.ndim != 2 or len(vectors_DK) != size or values_K.shape != vectors_DK.shape[1:]:
            why = f"vectors.{index} and values.{index} have the shapes {tuple(vectors_DK.shape)} and {tuple(values_K.shape)}"
        elif not (vectors_DK.is_floating_point() and values_K.dtype == vectors_DK.dtype and traces.is_floating_point()):
            why = f"vectors.{index} are of {vectors_DK.dtype}, values.{index} of {values_K.dtype}"
        else:
            fishers.append(Fisher(vectors_DK, values_K, float(traces[index])))
            continue
        raise StoreCorrupt(**damaged(Path("curvature.safetensors"), why))
    return fishers


def leading_directions(
    rows: Callable[[], Iterator[Tensor]], size_D: int, *, rank: int | None, seed: int, name: str, num_rows: int
) -> Fisher:
    """Eigenvectors of (1/N) G^T G for a matrix G that is only ever seen in blocks of rows.

    Small matrices are formed and decomposed; larger ones go through a randomised SVD with three power iterations, five passes in all.

    Args:
        rows: Starts a pass over the blocks, each of shape (rows, D).
        size_D: Columns of G.
        rank: Directions to keep; None keeps all.
        seed: Of the random start.
        name: What the rows are.
        num_rows: N.

    Returns:
        The leading directions, float32 unless the rows are float64, with the exact trace.
    """
    if rank is None or rank + _OVERSAMPLING >= size_D:
        total_DD = torch.zeros(size_D, size_D, dtype=torch.float64)
        dtype = torch.float32
        for block in rows():
            total_DD += _products(block.T, block)
            dtype = block.dtype
        values, vectors = torch.linalg.eigh(total_DD / num_rows)
        return Fisher(
            vectors.flip(1).to(dtype).contiguous(), values.flip(0).clamp_min(0).to(dtype), float(total_DD.trace()) / num_rows
        )

    num_kept = min(rank, num_rows)
    basis = random_matrix("gaussian", size_D, min(rank + _OVERSAMPLING, size_D), seed=seed, name=f"fisher of {name}").double()
    for _ in range(1 + _POWER_ITERATIONS):
        basis = torch.linalg.qr(_times_gram(rows, basis))[0]
    small = torch.zeros(basis.shape[1], basis.shape[1], dtype=torch.float64)
    trace, dtype = 0.0, torch.float32
    for block in rows():
        inside = _products(block, basis.to(block.dtype))
        small += inside.T @ inside
        trace += float(block.double().square().sum())
        dtype = block.dtype
    values, vectors = torch.linalg.eigh(small / num_rows)
    leading = (basis @ vectors).flip(1)[:, :num_kept]
    return Fisher(leading.to(dtype).contiguous(), values.flip(0)[:num_kept].clamp_min(0).to(dtype), trace / num_rows)


def _times_gram(rows: Callable[[], Iterator[Tensor]], basis: Tensor) -> Tensor:
    total = torch.zeros_like(basis)
    for block in rows():
        total += _products(block.T, _products(block, basis.to(block.dtype)).to(block.dtype))
    return total


def _products(left: Tensor, right: Tensor) -> Tensor:
    """A product in the rows' own precision, for speed; the sums over blocks are float64."""
    return (left @ right).double()
