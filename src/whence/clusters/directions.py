"""Rows of a store as directions: what clusters and near-duplicates compare.

Axes: N training examples, K numbers of a row, P principal directions.
"""

import torch
from torch import Tensor

from whence.errors import BadInput
from whence.pipeline.stored.anchors import is_anchored
from whence.store import Store

__all__ = ["directions", "principal"]


def directions(store: Store) -> Tensor:
    """All rows of a store of `aligned`, each divided by its length.

    These rows are whitened: their inner products are influences under EK-FAC, and those of the directions say how alike two examples
    act, whatever their size.

    Args:
        store: The store.

    Returns:
        Shape (N, K), float32 or wider; zeros for an example without a gradient.

    Raises:
        BadInput: If the store is of another method, whose rows are not whitened, or its axes are those of a few queries.
    """
    if store.blueprint.method != "aligned":
        raise BadInput(
            found=f"a store of {store.blueprint.method} in {store.folder}",
            needed="rows whose inner products are influences",
            do="build one with --method aligned (method='aligned' in Python)",
        )
    if is_anchored(store):
        raise BadInput(
            found=f"a store of anchors in {store.folder}, whose rows say how examples act on these queries only",
            needed="axes that are learned from the documents",
            do="build a store without anchors",
        )
    codec = store.codec
    names = list(codec.layout())
    parts = [
        torch.cat([codec.decode(tensors, index) for index in range(len(codec.shapes))], 1) for _, tensors in store.shards(names)
    ]
    return torch.nn.functional.normalize(torch.cat(parts), dim=1)


def principal(rows_NK: Tensor, count: int) -> Tensor:
    """The rows within the directions that they share most, of length 1 again.

    Whitening makes all directions alike, so rows of many numbers are nearly at right angles to each other and clusters of them are mostly
    chance; in the span of the first principal directions, which is where k-means finds its means (Ding and He 2004), what many rows
    share is what is left.

    Args:
        rows_NK: Rows, not centred: the direction of the mean is one like any other.
        count: Directions to keep; as many as K or more change nothing.

    Returns:
        Shape (N, P); zeros for a row that has nothing in them.
    """
    if count >= rows_NK.shape[1]:
        return rows_NK
    # Eigenvectors of the smaller of the two products, in float64 since squaring doubles the digits that are needed.
    wide_NK = rows_NK.double()
    if len(rows_NK) < rows_NK.shape[1]:
        squares, left_NN = torch.linalg.eigh(wide_NK @ wide_NK.T)
        kept_NP = left_NN[:, -count:] * squares[-count:].clamp_min(0).sqrt()
    else:
        kept_NP = wide_NK @ torch.linalg.eigh(wide_NK.T @ wide_NK)[1][:, -count:]
    return torch.nn.functional.normalize(kept_NP, dim=1).to(rows_NK.dtype)
