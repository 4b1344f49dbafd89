"""Means with their uncertainty."""

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

__all__ = ["Interval", "bootstrap_interval", "drawn_counts", "mean_interval", "or_none", "t_quantile"]

# Quantile 0.975 of Student's t for 1 to 30 degrees of freedom.
_TABLE = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281, 2.2010, 2.1788, 2.1604, 2.1448, 2.1314,
    2.1199, 2.1098, 2.1009, 2.0930, 2.0860, 2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423,
)  # fmt: skip
_NORMAL = 1.959964


@dataclass(frozen=True)
class Interval:
    """A mean with its two-sided 95 % interval; the ends are NaN when one value is all there is."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.mean:.3g} (one run, no interval)"
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]"

    @property
    def brief(self) -> str:
        """As text, the mean alone where there is no interval."""
        return f"{self.mean:.3g}" if math.isnan(self.low) else str(self)

    def to_dict(self) -> dict[str, float | None]:
        """Plain numbers for JSON, which has no NaN."""
        return {name: or_none(value) for name, value in asdict(self).items()}


def mean_interval(values_S: Tensor) -> Interval:
    """Mean of independent values with Student's t-interval.

    Args:
        values_S: One value per independent run, such as a seed.

    Returns:
        Mean and 95 % interval.

    >>> import torch
    >>> print(mean_interval(torch.tensor([1.0, 3.0])))
    2 [-10.7, 14.7]
    """
    values_S = values_S.double()
    mean, num_values = float(values_S.mean()), len(values_S)
    if num_values < 2:
        return Interval(mean, math.nan, math.nan)
    half = t_quantile(num_values - 1) * float(values_S.std()) / math.sqrt(num_values)
    return Interval(mean, mean - half, mean + half)


def bootstrap_interval(value: float, drawn_D: Tensor) -> Interval:
    """A value with the 95 % percentile interval of its bootstrap draws (Efron 1979).

    Args:
        value: On the data itself.
        drawn_D: On each draw; NaN where a draw does not define it.

    Returns:
        The value and the interval.
    """
    low, high = torch.nanquantile(drawn_D, torch.tensor([0.025, 0.975], dtype=drawn_D.dtype)).tolist()
    return Interval(value, low, high)


def drawn_counts(size: int, num_draws: int, generator: torch.Generator) -> Tensor:
    """How often each of `size` things is in each draw of as many with replacement, shape (draws, size), float64."""
    drawn = torch.randint(size, (num_draws, size), generator=generator)
    return torch.zeros(num_draws, size, dtype=torch.float64).scatter_add_(1, drawn, torch.ones_like(drawn).double())


def or_none(value: float) -> float | None:
    """A number as JSON can hold it: None for NaN."""
    return None if math.isnan(value) else value


def t_quantile(degrees_of_freedom: int) -> float:
    """Quantile 0.975 of Student's t, to four digits.

    Beyond the table, the first two terms of the Cornish-Fisher expansion around the normal quantile (Abramowitz and Stegun 1964,
    equation 26.7.5).

    >>> t_quantile(4)
    2.7764
    >>> round(t_quantile(100), 4)
    1.984
    """
    if degrees_of_freedom <= len(_TABLE):
        return _TABLE[degrees_of_freedom - 1]
    z, v = _NORMAL, degrees_of_freedom
    return z + (z**3 + z) / (4 * v) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
