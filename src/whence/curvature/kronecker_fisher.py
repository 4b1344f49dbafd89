"""The Fisher matrix of stored rows as a Kronecker product of its sides, or in the basis of one: K-FAC and EK-FAC among projected gradients.

Axes: N rows, P x R numbers of a unit, Q queries.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from whence.errors import StoreCorrupt
from whence.progress import Meter
from whence.store import Store, damaged

__all__ = ["KroneckerFisher", "fit_kronecker_fisher", "load_kronecker_fishers"]


@dataclass(frozen=True)
class KroneckerFisher:
    """One unit's second moment F = (1/N) sum of g g^T with eigenvectors that are outer products of a left and a right one.

    Args:
        left_PP: Eigenvectors of (1/N) sum of G G^T as columns, G the P x R matrix that a row is.
        right_RR: Of (1/N) sum of G^T G.
        values_PR: The eigenvalue of each pair.
    """

    left_PP: Tensor
    right_RR: Tensor
    values_PR: Tensor

    @property
    def mean_eigenvalue(self) -> float:
        """Trace over P R."""
        return float(self.values_PR.double().mean())

    def mean_kept(self, num_rows: int) -> float:
        """Mean of the largest, of which no more than `num_rows` can be."""
        return float(self.values_PR.double().flatten().sort(descending=True).values[:num_rows].mean())

    def solve(self, rows_QD: Tensor, damping: float, *, has_tail: bool = False) -> Tensor:
        """(F + damping I)^-1 applied to each row.

        Args:
            rows_QD: The rows, D = P R.
            damping: Added to every eigenvalue, positive.
            has_tail: As in `Fisher.solve`; here all directions are kept.

        Returns:
            Shape (Q, D).
        """
        left_PP, right_RR, values_PR = (tensor.to(rows_QD) for tensor in (self.left_PP, self.right_RR, self.values_PR))
        inside_QPR = left_PP.T @ rows_QD.view(len(rows_QD), *values_PR.shape) @ right_RR / (values_PR + damping)
        return (left_PP @ inside_QPR @ right_RR.T).flatten(1)


def fit_kronecker_fisher(store: Store, *, is_corrected: bool, progress: Meter) -> dict[str, Tensor]:
    """The sides of every unit's Fisher from the rows as they are stored, one pass over them, and a second one for corrected eigenvalues.

    K-FAC (Martens and Grosse 2015) takes the product of the sides over the trace, so that the trace is that of F; EK-FAC (George et al. 2018)
    measures each eigenvalue in their basis. The sides are second moments of rows, which sum over a document's positions: what positions
    of a document have in common counts, where sides of single positions, as in a network, leave it out.

    Args:
        store: The rows.
        is_corrected: Whether eigenvalues are measured.
        progress: Advanced once a unit.

    Returns:
        Tensors to be written: `left.i` (P, P), `right.i` (R, R) and `values.i` (P, R).
    """
    tensors: dict[str, Tensor] = {}
    for index, unit in enumerate(store.blueprint.units):
        size_P, size_R = unit.projected

        def rows(index: int = index, shape: tuple[int, int] = unit.projected) -> Iterator[Tensor]:
            for _, shard in store.shards(store.codec.tensors_of(index)):
                yield store.codec.decode(shard, index).view(-1, *shape)

        left_PP, right_RR = (torch.zeros(size, size, dtype=torch.float64) for size in (size_P, size_R))
        dtype = torch.float32
        for block_NPR in rows():
            dtype = block_NPR.dtype
            left_PP += torch.einsum("npr,nqr->pq", block_NPR, block_NPR).double() / len(store)
            right_RR += torch.einsum("npr,nps->rs", block_NPR, block_NPR).double() / len(store)
        (left_P, left_PP), (right_R, right_RR) = torch.linalg.eigh(left_PP), torch.linalg.eigh(right_RR)
        trace = float(left_P.sum())
        values_PR = torch.outer(left_P, right_R).clamp_min(0) / (trace if trace > 0 else 1.0)
        if is_corrected:
            bases = left_PP.to(dtype), right_RR.to(dtype)
            squares = (torch.square(bases[0].T @ block_NPR @ bases[1]).double().sum(0) for block_NPR in rows())
            values_PR = sum(squares, torch.zeros_like(values_PR)) / len(store)
        sides = {"left": left_PP, "right": right_RR, "values": values_PR}
        tensors |= {f"{name}.{index}": tensor.to(dtype).contiguous() for name, tensor in sides.items()}
        progress.advance()
    return tensors


def load_kronecker_fishers(tensors: Mapping[str, Tensor], shapes: Sequence[tuple[int, int]]) -> list[KroneckerFisher]:
    """The Fishers of all units from what `fit_kronecker_fisher` made.

    Args:
        tensors: Those of `curvature.safetensors`.
        shapes: P and R of each unit's rows.

    Raises:
        StoreCorrupt: If they are not of such rows.
    """
    fishers = []
    for index, (size_P, size_R) in enumerate(shapes):
        due = {"left": (size_P, size_P), "right": (size_R, size_R), "values": (size_P, size_R)}
        read = {name: tensors.get(f"{name}.{index}") for name in due}
        fitting = [tensor for name, tensor in read.items() if tensor is not None and tensor.shape == due[name]]
        if len(fitting) < len(due) or not all(
            tensor.is_floating_point() and tensor.dtype == fitting[0].dtype for tensor in fitting
        ):
            why = f"it has no left, right and values for rows of {size_P:,} x {size_R:,} numbers of unit {index}"
            raise StoreCorrupt(**damaged(Path("curvature.safetensors"), why))
        fishers.append(KroneckerFisher(*fitting))
    return fishers
