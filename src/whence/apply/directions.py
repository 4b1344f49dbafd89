"""Rows of a store as directions: what clusters and near-duplicates compare.

Axes: N training examples, K numbers of a row.
"""

import torch
from torch import Tensor

from whence.errors import BadInput
from whence.store import Store

__all__ = ["directions"]


def directions(store: Store) -> Tensor:
    """All rows of a store of `aligned`, each divided by its length.

    These rows are whitened: their inner products are influences under EK-FAC, and those of the directions say how alike two examples
    act, whatever their size.

    Args:
        store: The store.

    Returns:
        Shape (N, K), float32 or wider; zeros for an example without a gradient.

    Raises:
        BadInput: If the store is of another method, whose rows are not whitened.
    """
    if store.blueprint.method != "aligned":
        raise BadInput(
            found=f"a store of {store.blueprint.method} in {store.folder}",
            needed="rows whose inner products are influences",
            do="build one with --method aligned (method='aligned' in Python)",
        )
    codec = store.codec
    names = list(codec.layout())
    parts = [
        torch.cat([codec.decode(tensors, index) for index in range(len(codec.shapes))], 1) for _, tensors in store.shards(names)
    ]
    return torch.nn.functional.normalize(torch.cat(parts), dim=1)
