"""Spherical k-means: clusters of directions (Dhillon and Modha 2001).

Axes: N rows, K numbers of a row, C clusters.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Partition", "refine", "spherical_kmeans"]

_MOST_STEPS = 200


@dataclass(frozen=True)
class Partition:
    """Rows put into clusters.

    Args:
        labels_N: Cluster of each row.
        centers_CK: Direction of each cluster's mean.
        cosines_N: Of each row with its own center.
    """

    labels_N: Tensor
    centers_CK: Tensor
    cosines_N: Tensor

    @property
    def tightness(self) -> float:
        """Mean cosine of rows with their centers: what k-means makes as large as it can."""
        return float(self.cosines_N.double().mean())


def spherical_kmeans(rows_NK: Tensor, num_clusters: int, *, seed: int, restarts: int) -> Partition:
    """The tightest of several partitions, each from a start of its own.

    Args:
        rows_NK: Of length 1, or 0.
        num_clusters: From 1 to N.
        seed: Of the starts.
        restarts: How many.

    Returns:
        The partition; clusters may be fewer where rows repeat.
    """
    generator = torch.Generator().manual_seed(seed)
    tries = [refine(rows_NK, _start(rows_NK, num_clusters, generator)) for _ in range(restarts)]
    return max(tries, key=lambda partition: partition.tightness)


def refine(rows_NK: Tensor, centers_CK: Tensor) -> Partition:
    """Lloyd's steps on the sphere until no row moves.

    Every row goes to the center it has the largest cosine with, then every center to the direction of its rows' sum. A center that loses
    all its rows moves to the row that is worst served.

    Args:
        rows_NK: Of length 1, or 0.
        centers_CK: Where to start, of length 1.

    Returns:
        A partition that a further step would not change.
    """
    labels_N = torch.full((len(rows_NK),), -1)
    for _ in range(_MOST_STEPS):
        best = (rows_NK @ centers_CK.T).max(1)
        if torch.equal(best.indices, labels_N):
            break
        labels_N, cosines_N = best.indices, best.values.clone()
        sums_CK = torch.zeros_like(centers_CK).index_add_(0, labels_N, rows_NK)
        for empty in (torch.bincount(labels_N, minlength=len(centers_CK)) == 0).nonzero().flatten().tolist():
            worst = int(cosines_N.argmin())
            sums_CK[empty] = rows_NK[worst]
            cosines_N[worst] = 1.0
        centers_CK = torch.nn.functional.normalize(sums_CK, dim=1)
    best = (rows_NK @ centers_CK.T).max(1)
    return Partition(best.indices, centers_CK, best.values)


def _start(rows_NK: Tensor, num_clusters: int, generator: torch.Generator) -> Tensor:
    """Rows far from each other: each is drawn in proportion to 1 - its cosine with the nearest so far (Arthur and Vassilvitskii 2007)."""
    chosen = [int(torch.randint(len(rows_NK), (), generator=generator))]
    far_N = torch.ones(len(rows_NK), dtype=torch.float64)
    while len(chosen) < num_clusters:
        # On the sphere the squared distance is 2 - 2 cosine.
        far_N = torch.minimum(far_N, (1 - rows_NK @ rows_NK[chosen[-1]]).double().clamp_min(0))
        if float(far_N.sum()) == 0:
            break
        chosen.append(int(torch.multinomial(far_N, 1, generator=generator)))
    return rows_NK[chosen].clone()
