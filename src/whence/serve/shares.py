"""How much of an answer comes from each source: plain sums of the scores, added up while the store is scanned.

The place where another rule of credit would go: it has to take scores shard by shard and give a list per query.

Axes: Q queries, N rows, S sources.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["OTHERS", "ShareSums"]

OTHERS = "(other sources)"
"""Stands for the sources that an answer does not list."""

# An answer names so many sources; every example may be a source of its own.
_LISTED = 50


class ShareSums:
    """Sums of the positive and of the negative scores of every source, per query.

    Every row counts, whatever a filter lets through as a hit: a share is of the whole store.

    Args:
        sources: Names of all sources.
        source_N: Each row's place in `sources`.
        queries: Number of queries.
    """

    def __init__(self, sources: tuple[str, ...], source_N: np.ndarray, queries: int):
        self.sources = sources
        self.source_N = torch.from_numpy(source_N)
        self.sums_QS2 = torch.zeros(queries, len(sources), 2, dtype=torch.float64)

    def add(self, start: int, scores_QN: Tensor) -> None:
        """Count the rows from `start` on."""
        # Two places for every source, the second for scores below 0: one pass over the scores, which are many.
        places_N = 2 * self.source_N[start : start + scores_QN.shape[1]].long()
        size = 2 * len(self.sources)
        for sums_S2, scores_N in zip(self.sums_QS2, scores_QN, strict=True):
            sums_S2.view(-1).add_(torch.bincount(places_N + (scores_N < 0), scores_N.double(), size))

    def of(self, place: int) -> list[dict[str, Any]]:
        """What the sources of one query add up to, the largest first, the rest in one line.

        Returns:
            Mappings with the source, the sum of its positive scores, of its negative ones, and its share of all positive scores.
        """
        up_S, down_S = self.sums_QS2[place].unbind(1)
        total = float(up_S.sum()) or 1.0
        order = (up_S - down_S).argsort(descending=True, stable=True).tolist()
        listed, rest = order[:_LISTED], order[_LISTED:]
        pairs = zip(listed, up_S[listed].tolist(), down_S[listed].tolist(), strict=True)
        found = [_line(self.sources[one], up, down, total) for one, up, down in pairs]
        if rest:
            found.append(_line(OTHERS, float(up_S[rest].sum()), float(down_S[rest].sum()), total))
        return found


def _line(source: str, up: float, down: float, total: float) -> dict[str, Any]:
    return {"source": source, "positive": up, "negative": down, "share": up / total}
