"""Rows and queries as plain vectors, whose inner products are scores, for stores where there are such.

Axes: Q queries, N rows, D numbers of a vector.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from whence.data import Dataset
from whence.errors import BadInput
from whence.methods import method_named
from whence.pipeline.stored.prepared import PreparedQuery
from whence.settings import Damping, records_only
from whence.store import Store
from whence.tasks import AbstractTask

__all__ = ["check_vectors", "query_vectors", "row_vectors", "vectors_in", "vectors_of", "width_of"]


@records_only(damping=Damping)
def query_vectors(
    store: Store | str | Path,
    task: AbstractTask,
    queries: Dataset | Iterable[Any],
    *,
    damping: Damping = Damping(),
    quiet: bool = False,
) -> Tensor:
    """Queries as vectors: their inner product with an exported row's vector is its score.

    For engines that are asked by themselves; `whence.query(whence.settings.Indexed(...), ...)` does it all.

    Args:
        store: A store or its folder.
        task: The model that it was built with.
        queries: As in `whence.query`.
        damping: As in `whence.query`.
        quiet: No progress on stderr.

    Returns:
        Shape (Q, D), float32 or wider.

    Raises:
        BadInput: If rows of this method are no vectors.
    """
    prepared = PreparedQuery.prepare(store, task, queries, damping, quiet)
    check_vectors(prepared.store)
    return vectors_of(prepared)


def check_vectors(store: Store) -> None:
    """Refuse a store without vectors whose inner products with a query's are its scores.

    Raises:
        BadInput: If it is one.
    """
    method = method_named(store.blueprint.method)
    why = ""
    if method.whitened:
        why = f"rows are divided by norms that depend on the {'queries' if method.is_mixed else 'damping'}"
    elif any(rank is not None for rank in store.codec.ranks):
        why = "rows are factors of matrices, which multiplied out would be many times larger"
    if why:
        raise BadInput(
            found=f"vectors of a store of {method.name} in {store.folder}, whose {why}",
            needed="rows whose inner product with a query's vector is the score",
            do="build a store of method aligned, logra, grad-dot, grad-cos, trak or grass",
        )


def width_of(store: Store) -> int:
    """Numbers of a row's vector."""
    return sum(outputs * inputs for outputs, inputs in store.codec.shapes)


def vectors_of(prepared: PreparedQuery) -> Tensor:
    """Prepared queries, shape (Q, D)."""
    vectors_QD = torch.cat([unit.flatten(1) for unit in prepared.preconditioned], 1)
    if prepared.norms_Q is None:
        return vectors_QD
    return vectors_QD / prepared.norms_Q.to(vectors_QD)[:, None].clamp_min(torch.finfo(vectors_QD.dtype).tiny)


def row_vectors(store: Store) -> Iterator[Tensor]:
    """Rows as vectors with all that a score multiplies them with, shard by shard.

    Yields:
        Shape (N, D), float32 or wider.
    """
    for _, tensors in store.shards():
        yield vectors_in(store, tensors)


def vectors_in(store: Store, tensors: Mapping[str, Tensor]) -> Tensor:
    """Rows of some tensors of a store, as it gives them, shape (N, D), float32 or wider."""
    vectors_ND = torch.cat([store.codec.decode(tensors, index) for index in range(len(store.codec.shapes))], 1)
    if method_named(store.blueprint.method).cosine:
        vectors_ND = vectors_ND / tensors["norms"].to(vectors_ND)[:, None].clamp_min(torch.finfo(vectors_ND.dtype).tiny)
    if "weights" in tensors:
        vectors_ND = vectors_ND * tensors["weights"].to(vectors_ND)[:, None]
    return vectors_ND
