"""Ranks with ties, and rank correlation, whole tables at once.

Axes: N values.
"""

import torch
from torch import Tensor

__all__ = ["average_precision", "pearson", "ranks", "spearman"]


def ranks(values: Tensor, dim: int = -1) -> Tensor:
    """Ranks from 1 upwards along one axis, equal values sharing the mean of their places.

    Args:
        values: Any shape, no NaN.
        dim: The axis along which values are ranked.

    Returns:
        The same shape, float64.

    >>> ranks(torch.tensor([10.0, 30.0, 10.0])).tolist()
    [1.5, 3.0, 1.5]
    """
    moved = values.movedim(dim, -1).contiguous()
    ascending = moved.sort(-1).values
    below = torch.searchsorted(ascending, moved)
    not_above = torch.searchsorted(ascending, moved, right=True)
    # Values below + 1 is the first place of a tie, values not above the last.
    return ((below + 1 + not_above).double() / 2).movedim(-1, dim)


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's rank correlation along the last axis: Pearson's correlation of the ranks (Spearman 1904).

    A constant row has no order to agree with, so its correlation is 0, not NaN.

    Args:
        a: Shape (..., N), no NaN.
        b: Broadcastable with `a`, of the same length along the last axis.

    Returns:
        Shape (...), float64, from -1 to 1.

    >>> spearman(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([[5.0, 6.0, 9.0], [2.0, 2.0, 2.0]])).tolist()
    [1.0, 0.0]
    """
    return pearson(ranks(a), ranks(b))


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation along the last axis; 0 where a row is constant.

    Args:
        a: Shape (..., N), no NaN.
        b: Broadcastable with `a`, of the same length along the last axis.

    Returns:
        Shape (...), float64, from -1 to 1.
    """
    centred_a, centred_b = (scores.double() - scores.double().mean(-1, keepdim=True) for scores in (a, b))
    products = (centred_a * centred_b).sum(-1)
    scale = centred_a.square().sum(-1) * centred_b.square().sum(-1)
    return torch.where(scale > 0, products / scale.clamp_min(1e-300).sqrt(), 0.0).clamp(-1.0, 1.0)


def average_precision(scores_N: Tensor, is_sought_N: Tensor) -> float:
    """Mean precision over the values that are sought, as they are come upon from the highest score down; equal scores count at once.

    >>> average_precision(torch.tensor([3.0, 2.0, 1.0]), torch.tensor([False, True, True]))
    0.5833333333333333

    Args:
        scores_N: The scores, no NaN.
        is_sought_N: What is sought, one value or more.
    """
    groups = torch.unique(-scores_N, return_inverse=True)[1]
    sizes, hits = torch.bincount(groups).double(), torch.bincount(groups, weights=is_sought_N.double())
    return float((hits * hits.cumsum(0) / sizes.cumsum(0)).sum()) / int(is_sought_N.sum())
