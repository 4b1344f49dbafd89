"""How much of an answer comes from each source, from sums of the scores that are added up while the store is scanned.

Axes: S sources.
"""

from typing import Any

from torch import Tensor

__all__ = ["OTHERS", "share_lines"]

OTHERS = "(other sources)"
"""Stands for the sources that an answer does not list."""

# An answer names so many sources; every example may be a source of its own.
_LISTED = 50


def share_lines(sources: tuple[str, ...], sums_S2: Tensor) -> list[dict[str, Any]]:
    """What the sources of one query add up to, the largest first, the rest in one line.

    Args:
        sources: Names of all sources.
        sums_S2: Sums of the positive and of the negative scores of each one's rows; of all rows, whatever a filter lets through as a hit.

    Returns:
        Mappings with the source, the sum of its positive scores, of its negative ones, and its share of all positive scores.
    """
    up_S, down_S = sums_S2.unbind(1)
    total = float(up_S.sum()) or 1.0
    order = (up_S - down_S).argsort(descending=True, stable=True).tolist()
    listed, rest = order[:_LISTED], order[_LISTED:]
    pairs = zip(listed, up_S[listed].tolist(), down_S[listed].tolist(), strict=True)
    shares = [_share(sources[index], up, down, total) for index, up, down in pairs]
    if rest:
        shares.append(_share(OTHERS, float(up_S[rest].sum()), float(down_S[rest].sum()), total))
    return shares


def _share(source: str, up: float, down: float, total: float) -> dict[str, Any]:
    return {"source": source, "positive": up, "negative": down, "share": up / total}
