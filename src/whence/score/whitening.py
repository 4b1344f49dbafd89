"""Both sides of a score whitened by the training rows' second moments, or by a mixture with the queries' (TrackStar).

Axes: Q queries, N rows, D numbers of a unit.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from whence.curvature import ResolvedDamping, load_fishers
from whence.score.query import Rows
from whence.store import Store, name_now

__all__ = ["Whitened", "mixing_share", "whiten", "whitened_norms"]

# Where the two spectra are made to cross: component 1,000 of the 65,536 of Chang et al. 2025.
_CROSSING = 1000 / 65536


@dataclass(frozen=True)
class Whitened:
    """Queries ready for the scan, and what their cosines need.

    Args:
        units: Per unit, shape (Q, P, R), multiplied with -(1/N) R^-1: the product of both sides' R^-1/2.
        norms_Q: Norms of the whitened queries, over N.
        roots: Per unit R^-1/2, shape (D, D), for the norms of the rows.
        share: The queries' share of R.
    """

    units: list[Tensor]
    norms_Q: Tensor
    roots: list[Tensor]
    share: float


def whiten(store: Store, rows: Rows, damping: ResolvedDamping, *, is_mixed: bool) -> Whitened:
    """R^-1/2 of R = a R_query + (1 - a) R_train + damping, per unit, applied to the queries (Chang et al. 2025).

    With a = 0 the cosine is that of two examples in the metric of the inverse curvature: a score over the roots of both self-influences, as
    LogIX has it (Choe et al. 2024).

    Args:
        store: The training rows' second moments.
        rows: Gradients of the queries' measurements.
        damping: A share of the mean eigenvalue of the mixture, or a value.
        is_mixed: Whether the queries have a share in R, which is chosen by where the spectra cross; else a = 0.

    Returns:
        What the scan needs.
    """
    tensors = store.file(name_now(store.files, "curvature.safetensors"))
    fishers = load_fishers(tensors, [math.prod(unit.shape[1:]) for unit in rows.units])
    flat = [unit.flatten(1).double() for unit in rows.units]
    spectra = [fisher.values_K.double() for fisher in fishers]
    share = mixing_share([_spectrum(unit_QD) for unit_QD in flat], spectra) if is_mixed else 0.0
    # The mixtures' traces are those of its parts, over the dimensions.
    traces = [
        share * float(unit_QD.square().sum()) / len(unit_QD) + (1 - share) * float(fisher.values_K.double().sum())
        for unit_QD, fisher in zip(flat, fishers, strict=True)
    ]
    means = [trace / unit_QD.shape[1] for trace, unit_QD in zip(traces, flat, strict=True)]
    least = damping.least(means, rows.units[0].dtype)
    units, roots = [], []
    norms_Q = torch.zeros(len(flat[0]), dtype=torch.float64)
    for unit, unit_QD, fisher, stored in zip(rows.units, flat, fishers, store.blueprint.units, strict=True):
        vectors_DK, values_K = fisher.vectors_DK.double(), fisher.values_K.double()
        train_DD = (vectors_DK * values_K) @ vectors_DK.T
        values_D, vectors_DD = torch.linalg.eigh(share * unit_QD.T @ unit_QD / len(unit_QD) + (1 - share) * train_DD)
        values_D = values_D.clamp_min(0)
        leading = values_D.flip(0)[: len(store) + store.num_deleted] if damping.of_kept else values_D
        value = max(damping.of_unit(stored, float(leading.mean())), least)
        root_DD = (vectors_DD / (values_D + value).sqrt()) @ vectors_DD.T
        whitened_QD = unit_QD @ root_DD
        norms_Q += whitened_QD.square().sum(1)
        units.append((whitened_QD @ root_DD / -len(store)).to(unit.dtype).view_as(unit))
        roots.append(root_DD.to(unit.dtype))
    return Whitened(units, (norms_Q.sqrt() / len(store)).to(rows.units[0].dtype), roots, share)


def mixing_share(queries: Sequence[Tensor], train: Sequence[Tensor]) -> float:
    """The queries' share a of the mixture: a times their spectrum crosses 1 - a times the rows' one after 1.5 % of the directions.

    What all queries have in common (a template) is weighed down by it. A few queries span few directions: the last of those is taken then.

    Args:
        queries: Per unit, eigenvalues of the queries' second moment.
        train: Per unit, those of the training rows.

    Returns:
        Between 0 and 1.

    >>> mixing_share([torch.tensor([3.0, 0.0])], [torch.tensor([1.0, 0.5])])
    0.25
    """
    values_D, train_D = (torch.cat(list(each)).sort(descending=True).values for each in (queries, train))
    spanned = int((values_D > values_D[0] * 1e-10).sum())
    index = max(1, min(round(_CROSSING * len(train_D)), spanned)) - 1
    both = float(values_D[index] + train_D[index])
    return float(train_D[index]) / both if both > 0 else 0.5


def whitened_norms(store: Store, tensors: dict[str, Tensor], roots: Sequence[Tensor]) -> Tensor:
    """Norms of R^-1/2 times each row of a shard, over all units, shape (N,)."""
    squares = [
        (store.codec.decode(tensors, index).to(root_DD.dtype) @ root_DD).square().sum(1) for index, root_DD in enumerate(roots)
    ]
    return torch.stack(squares).sum(0).sqrt()


def _spectrum(unit_QD: Tensor) -> Tensor:
    """Eigenvalues of a second moment, the missing ones of few queries as zeros; shape (D,)."""
    values = torch.linalg.svdvals(unit_QD).square() / len(unit_QD)
    return torch.nn.functional.pad(values, (0, unit_QD.shape[1] - len(values)))
