"""Are scores in the right unit? Predicted against measured change over subsets of the training data.

Axes: M subsets, Q queries, D bootstrap draws.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from whence.errors import BadInput, NonFinite
from whence.evaluate.statistics import Interval, bootstrap_interval, drawn_counts, or_none

__all__ = ["Bin", "Calibration", "calibration"]


@dataclass(frozen=True)
class Bin:
    """Subsets and queries with about the same prediction.

    Args:
        predicted: Mean predicted change, centred per query.
        actual: Mean measured change, centred per query.
        standard_error: Of `actual`, as if its values were independent; None for one value.
        count: Pairs of a subset and a query in it.
    """

    predicted: float
    actual: float
    standard_error: float | None
    count: int


@dataclass(frozen=True)
class Calibration:
    """How much change there is per unit of predicted change.

    Args:
        slope: Pooled over queries, with its 95 % interval over subsets; 1 when the scores are in the right unit.
        correlation: Pearson's, of all centred pairs, with its interval.
        slopes_Q: Of each query alone; NaN where the prediction is the same for every subset.
        correlations_Q: The same for the correlation; NaN where prediction or measurement is constant.
        bins: Equally many pairs each, by ascending prediction.
        num_subsets: Subsets that were trained on.
    """

    slope: Interval
    correlation: Interval
    slopes_Q: Tensor
    correlations_Q: Tensor
    bins: tuple[Bin, ...]
    num_subsets: int

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON, which has no NaN."""
        return {
            "slope": self.slope.to_dict(),
            "correlation": self.correlation.to_dict(),
            "slopes": [or_none(value) for value in self.slopes_Q.tolist()],
            "correlations": [or_none(value) for value in self.correlations_Q.tolist()],
            "bins": [asdict(point) for point in self.bins],
            "num_subsets": self.num_subsets,
        }


def calibration(
    predicted_MQ: Tensor, actual_MQ: Tensor, *, num_bins: int = 10, num_draws: int = 1000, seed: int = 0
) -> Calibration:
    """Regress what happened on what was predicted.

    Every query is centred over the subsets first: a constant says nothing about the examples. The pooled slope is that of the line through
    the origin of all centred pairs, sum of predicted x actual over sum of predicted squared, so queries whose predictions spread more
    weigh more. Noise of the retraining lowers the correlation and widens the interval but does not bend the slope. Ranks cannot see a
    wrong unit, so this stands beside the linear datamodeling score and does not replace it.

    Intervals are percentiles over draws of subsets with replacement (Efron 1979), queries kept: how far the number may move with
    other subsets and the same queries.

    Args:
        predicted_MQ: Predicted change of each query's measurement on each subset, for instance the sum of the kept examples' scores.
        actual_MQ: The measurement after training on the subset, or its change; same unit.
        num_bins: Points of the plot; at most the number of pairs.
        num_draws: Draws of the bootstrap.
        seed: Of the draws.

    Returns:
        Slopes, correlations and points of a plot.

    Raises:
        BadInput: If the shapes differ, there are fewer than 3 subsets or no query, every prediction is the same, or a count is not positive.
        NonFinite: If a value is NaN or infinite.

    >>> predicted = torch.tensor([[1.0], [2.0], [4.0]])
    >>> calibration(predicted, 2 * predicted + 5, num_bins=3).slope.mean
    2.0
    """
    if predicted_MQ.ndim != 2 or predicted_MQ.shape != actual_MQ.shape or len(predicted_MQ) < 3 or not predicted_MQ.numel():
        raise BadInput(
            found=f"predictions of shape {tuple(predicted_MQ.shape)} for measurements of shape {tuple(actual_MQ.shape)}",
            needed="the same shape (subsets, queries), 3 subsets or more",
            do="bring both in the same order, or train on more subsets",
        )
    if num_bins < 1 or num_draws < 1:
        raise BadInput(found=f"num_bins={num_bins}, num_draws={num_draws}", needed="1 or more of each", do="leave them out")
    if not bool((torch.isfinite(predicted_MQ) & torch.isfinite(actual_MQ)).all()):
        raise NonFinite(
            found="a NaN or infinite prediction or measurement", needed="finite ones", do="look for runs that diverged"
        )
    # The first row comes off before the mean, so that a column of equal numbers is exactly zero.
    predicted_MQ, actual_MQ = (values.detach().cpu().double() for values in (predicted_MQ, actual_MQ))
    predicted_MQ, actual_MQ = (values - values[:1] for values in (predicted_MQ, actual_MQ))
    predicted_MQ, actual_MQ = (values - values.mean(0) for values in (predicted_MQ, actual_MQ))
    if not bool(predicted_MQ.any()):
        raise BadInput(
            found="predictions that are the same for every subset",
            needed="some that differ",
            do="check that scores and subsets belong together",
        )
    once_1Q = _moments(predicted_MQ, actual_MQ, torch.ones(1, len(predicted_MQ), dtype=torch.float64))
    drawn_DQ = _moments(
        predicted_MQ, actual_MQ, drawn_counts(len(predicted_MQ), num_draws, torch.Generator().manual_seed(seed))
    )
    slopes_1Q, correlations_1Q = _fits(*once_1Q)
    pooled = zip(_fits(*(part.sum(1) for part in once_1Q)), _fits(*(part.sum(1) for part in drawn_DQ)), strict=True)
    slope, correlation = (bootstrap_interval(float(value_1), drawn_D) for value_1, drawn_D in pooled)
    bins = _bins(predicted_MQ.flatten(), actual_MQ.flatten(), num_bins)
    return Calibration(slope, correlation, slopes_1Q[0], correlations_1Q[0], bins, len(predicted_MQ))


def _moments(predicted_MQ: Tensor, actual_MQ: Tensor, counts_DM: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of predicted x actual, predicted squared and actual squared in each draw, centred within it; shape (D, Q) each."""
    moments = []
    for left_MQ, right_MQ in ((predicted_MQ, actual_MQ), (predicted_MQ, predicted_MQ), (actual_MQ, actual_MQ)):
        raw_DQ = counts_DM @ (left_MQ * right_MQ)
        centred_DQ = raw_DQ - (counts_DM @ left_MQ) * (counts_DM @ right_MQ) / len(left_MQ)
        # A draw of one subset again and again has no spread, only rounding.
        moments.append(torch.where(centred_DQ.abs() > 1e-12 * (counts_DM @ (left_MQ * right_MQ).abs()), centred_DQ, 0.0))
    return moments[0], moments[1], moments[2]


def _fits(product: Tensor, predicted: Tensor, actual: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and correlation from the three sums; NaN where there is no spread."""
    scale = (predicted * actual).sqrt()
    return product / predicted.where(predicted > 0, math.nan), product / scale.where(scale > 0, math.nan)


def _bins(predicted: Tensor, actual: Tensor, num_bins: int) -> tuple[Bin, ...]:
    order = predicted.argsort(stable=True)
    points = []
    for indices in order.tensor_split(min(num_bins, len(order))):
        values = actual[indices]
        error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else None
        points.append(Bin(float(predicted[indices].mean()), float(values.mean()), error, len(values)))
    return tuple(points)
