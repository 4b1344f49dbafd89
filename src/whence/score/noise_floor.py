"""How large chance alone makes the largest of many scores.

Axes: N examples.
"""

import math

import numpy as np

__all__ = ["LEAST_SCORES", "log_spread_floor", "spread_floor"]

# The spread of so many normal draws is known to a sixth from their median: its relative standard error is 1.16 / sqrt(N).
LEAST_SCORES = 50
# Standard deviation of normal draws over the median of their sizes.
_NORMAL = 1.482602218505602


def spread_floor(scores_N: np.ndarray) -> float:
    """The size that chance alone gives the largest of a query's scores, learned from the scores themselves.

    Most training examples have nothing to do with a query, and their scores scatter around zero. The median of all sizes is hardly moved by
    the few that matter, so it tells the spread of that scatter, 1.4826 median(abs(score)); of N normal draws of this spread the largest stays
    below sqrt(2 ln N) times it but for one query in four or fewer (Donoho and Johnstone 1994, the universal threshold).

    >>> scores = np.tile([1.0, -1.0], 50)
    >>> round(spread_floor(scores), 4), spread_floor(scores[:8])
    (4.4995, 0.0)

    Args:
        scores_N: Scores of one query.

    Returns:
        In the unit of the scores; 0 for fewer than 50 examples, of which it cannot be told which are chance.
    """
    count = len(scores_N)
    if count < LEAST_SCORES:
        return 0.0
    return _NORMAL * _median(np.abs(scores_N)) * math.sqrt(2 * math.log(count))


def _median(sizes_N: np.ndarray) -> float:
    """As `np.median` of float64, eight times as fast: one number is put in its place, not two."""
    half = len(sizes_N) // 2
    parted_N = np.partition(sizes_N, half)
    upper = float(parted_N[half])
    return upper if len(sizes_N) % 2 else (float(parted_N[:half].max()) + upper) / 2


def log_spread_floor(sizes_N: np.ndarray) -> float:
    """The same for sizes, which scatter by factors and not around zero: exp(median + 1.4826 median(median - log size) sqrt(2 ln N)).

    How far they scatter is told by those below the median alone: what stands out is above it, and would make the scatter, and with it the
    floor, larger the more of it there is.

    >>> round(log_spread_floor(np.tile([1.0, 2.0, 4.0], 30)), 2), log_spread_floor(np.ones(8))
    (9.34, 0.0)

    Args:
        sizes_N: Not negative; zeros are left out.

    Returns:
        In the unit of the sizes; 0 for fewer than 50.
    """
    logs_N = np.log(sizes_N[sizes_N > 0])
    if len(logs_N) < LEAST_SCORES:
        return 0.0
    middle = float(np.median(logs_N))
    spread = _NORMAL * float(np.median(middle - logs_N[logs_N <= middle]))
    return math.exp(middle + spread * math.sqrt(2 * math.log(len(logs_N))))
