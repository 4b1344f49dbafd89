"""What a study reads off the scores of one query after the other: both tails, mass, histograms.

Axes: Q queries, N documents, K documents of a tail, X shares, S sets, B bins.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from whence.errors import NonFinite
from whence.evaluate.statistics import Interval, mean_interval, or_none
from whence.progress import Meter
from whence.study.kept_scores import StoredScores

__all__ = ["Histograms", "Mass", "Tails", "histograms", "tails_and_mass"]

_SHARES = (0.0001, 0.001, 0.01, 0.05, 0.1, 0.25, 0.5)
_BINS = 80
# Of a tail's scores, to lay a line through.
_FEWEST = 3


@dataclass(frozen=True)
class Tails:
    """The strongest documents of every query on both sides.

    Args:
        high_QK: Rows of the highest values, highest first; equal values in corpus order.
        low_QK: Rows of the lowest, lowest first.
        high_values_QK: Their values.
        low_values_QK: The same of the lowest.
    """

    high_QK: Tensor
    low_QK: Tensor
    high_values_QK: Tensor
    low_values_QK: Tensor

    def side(self, name: str) -> tuple[Tensor, Tensor]:
        """Rows and values of "top" or "bottom"."""
        return (self.high_QK, self.high_values_QK) if name == "top" else (self.low_QK, self.low_values_QK)


@dataclass(frozen=True)
class Mass:
    """How few documents hold the positive influence.

    Args:
        shares: Shares of the corpus.
        mass_QX: Of each query's positive influence, what so large a share of the corpus holds; NaN without positive influence.
        slope_Q: By which power of the rank the values of the top tail fall: slope of log value over log rank, least squares; NaN for fewer
            than three positive ones.
    """

    shares: tuple[float, ...]
    mass_QX: Tensor
    slope_Q: Tensor

    def of(self, rows: Sequence[int]) -> list[Interval]:
        """Mean over some queries with a t-interval, for each share."""
        return [_mean(self.mass_QX[list(rows), index]) for index in range(len(self.shares))]

    def slope(self, rows: Sequence[int]) -> Interval:
        """The same of the power."""
        return _mean(self.slope_Q[list(rows)])

    def to_dict(self, sets: Mapping[str, Sequence[int]]) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return {
            "shares": list(self.shares),
            "queries": [[or_none(value) for value in row] for row in self.mass_QX.tolist()],
            "slopes": [or_none(value) for value in self.slope_Q.tolist()],
            "sets": {
                name: {"mass": [mean.to_dict() for mean in self.of(rows)], "slope": self.slope(rows).to_dict()}
                for name, rows in sets.items()
            },
        }


@dataclass(frozen=True)
class Histograms:
    """All values of each set, in bins that are equal near zero and grow in proportion to the value far from it.

    Args:
        unit: Median size of a value: half of the values of the middle query lie within it. Bins are equal in asinh(value / unit).
        edges_B: Ends of the bins, one more than there are bins.
        counts_SB: Values of all queries of the set and all documents, by bin.
    """

    unit: float
    edges_B: Tensor
    counts_SB: Tensor

    def to_dict(self, sets: Mapping[str, Sequence[int]]) -> dict[str, Any]:
        """Plain numbers for JSON."""
        counts = dict(zip(sets, self.counts_SB.tolist(), strict=True))
        return {"unit": self.unit, "edges": self.edges_B.tolist(), "counts": counts}


def tails_and_mass(scores: StoredScores, k: int, *, by_norm: bool, progress: Meter) -> tuple[Tails, Mass, Tensor]:
    """Sort every query's values once.

    Args:
        scores: The scores.
        k: Documents of a tail.
        by_norm: Whether values are divided by the documents' norms.
        progress: Advanced by queries.

    Returns:
        Tails, mass, and of each query the median and the largest size of a value, shape (Q, 2).
    """
    shares = tuple(share for share in _SHARES if share * scores.num_documents >= 1)
    counts = [math.ceil(share * scores.num_documents) for share in shares]
    sides, masses, slopes, sizes = [], [], [], []
    for query in range(scores.num_queries):
        values_N = scores.values(query, by_norm=by_norm)
        sorted_N, order_N = values_N.sort(descending=True, stable=True)
        lowest = values_N.sort(stable=True).indices[
            :k
        ]  # not the end of the other order, where equal values stand the wrong way round
        sides.append((order_N[:k], lowest, sorted_N[:k], values_N[lowest]))
        upto_N = sorted_N.clamp_min(0).cumsum(0)
        total = float(upto_N[-1])
        masses.append([float(upto_N[count - 1]) / total if total > 0 else math.nan for count in counts])
        slopes.append(_slope(sorted_N[:k]))
        sizes.append([float(values_N.abs().median()), float(values_N.abs().max())])
        progress.advance()
    tails = Tails(*(torch.stack(part) for part in zip(*sides, strict=True)))
    mass = Mass(shares, torch.tensor(masses, dtype=torch.float64), torch.tensor(slopes, dtype=torch.float64))
    return tails, mass, torch.tensor(sizes, dtype=torch.float64)


def histograms(
    scores: StoredScores, sets: Mapping[str, Sequence[int]], sizes_Q2: Tensor, *, by_norm: bool, progress: Meter
) -> Histograms:
    """Count every value.

    Args:
        scores: The scores.
        sets: Rows of the queries of each set.
        sizes_Q2: As `tails_and_mass` found them.
        by_norm: As there.
        progress: Advanced by queries.

    Raises:
        NonFinite: If a score is none, as in files that were changed.
    """
    if not bool(sizes_Q2.isfinite().all()):
        raise NonFinite(
            found="scores of the study that are not finite", needed="finite ones", do="remove its folder, and study again"
        )
    largest = float(sizes_Q2[:, 1].max()) or 1.0
    # Where most scores are exactly 0, any unit will do that is small beside the others.
    unit = float(sizes_Q2[:, 0].median()) or largest / 1000
    reach = math.asinh(largest / unit)
    counts_SB = torch.zeros(len(sets), _BINS, dtype=torch.long)
    for index, rows in enumerate(sets.values()):
        for query in rows:
            share_N = (torch.asinh(scores.values(query, by_norm=by_norm) / unit) + reach) / (2 * reach)
            bins_N = (share_N * _BINS).floor().long().clamp(0, _BINS - 1)
            counts_SB[index] += torch.bincount(bins_N, minlength=_BINS)
            progress.advance()
    edges_B = unit * torch.sinh(torch.linspace(-reach, reach, _BINS + 1, dtype=torch.float64))
    return Histograms(unit, edges_B, counts_SB)


def _slope(highest_K: Tensor) -> float:
    positive = highest_K[highest_K > 0]
    if len(positive) < _FEWEST:
        return math.nan
    x = torch.arange(1, len(positive) + 1, dtype=torch.float64).log()
    y = positive.log()
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


def _mean(values_Q: Tensor) -> Interval:
    numbers_Q = values_Q[~values_Q.isnan()]
    return mean_interval(numbers_Q) if len(numbers_Q) else Interval(math.nan, math.nan, math.nan)
