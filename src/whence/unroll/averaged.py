"""SOURCE through a Schedule-Free optimizer: what is wanted of its average, carried back to its fast weights and the average.

y = (1 - b) z + b x is where gradients are taken, z' = z - rate (P gradient + decay y), x' = (1 - c) x + c z' is the average that the model is
used at. With one Gauss-Newton matrix H and one P in a segment, a change of (z, x) goes through a step as

    [[1 - u (1 - b), -u b], [c (1 - u (1 - b)), 1 - c - c u b]],   u = 1 - exp(-(rate s + decay)),

for every eigenvalue s of P H, and a constant gradient adds -rate (1, c). u stands for rate s + decay as the exponential of SOURCE does
for SGD: the same where it is small, and never more than the whole way. Axes: Q queries, O outputs, I inputs, K terms of an expansion.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from whence.unroll.exponential import chebyshev, expanded, shrinkage

__all__ = ["AverageSteps", "Pair", "averaged_filters", "through_average"]

Pair = tuple[Tensor, Tensor]
"""What is wanted of the fast weights and of the average, (Q, O, I) each."""


@dataclass(frozen=True)
class AverageSteps:
    """The steps of a segment as they act on one group of parameters.

    Args:
        mix: b.
        reaches: Of each step, the learning rate times the weight of the mean of losses.
        decays: Of each step, the learning rate times weight decay.
        shares: Of each step, c.
    """

    mix: float
    reaches: tuple[float, ...]
    decays: tuple[float, ...]
    shares: tuple[float, ...]

    @property
    def reach(self) -> float:
        """Sum over the steps."""
        return sum(self.reaches)


def averaged_filters(steps: AverageSteps, values: Tensor) -> Tensor:
    """The segment as functions of an eigenvalue of P H.

    Args:
        steps: Of the segment.
        values: Eigenvalues, float64.

    Returns:
        Shape (2, 3, *values): for what is wanted of the fast weights (0) and of the average (1), what a constant gradient adds to it, and
        what is then wanted of both at the segment's start.
    """
    wanted = torch.zeros(2, 2, *values.shape, dtype=values.dtype)
    wanted[0, 0], wanted[1, 1] = 1.0, 1.0
    taken = torch.zeros(2, *values.shape, dtype=values.dtype)
    b = steps.mix
    for reach, decay, share in reversed(list(zip(steps.reaches, steps.decays, steps.shares, strict=True))):
        x = reach * values.clamp_min(0) + decay
        u = -torch.expm1(-x)
        into = wanted[:, 0] + share * wanted[:, 1]  # whatever moves z moves x by c of it
        taken = taken + into * (reach * shrinkage(x))
        fast, average = into * (1 - u * (1 - b)), wanted[:, 1] * (1 - share) - into * (u * b)
        wanted = torch.stack([fast, average], 1)
    return torch.cat([taken[:, None], wanted], 1)


def through_average(
    steps: AverageSteps, times: Callable[[Tensor], Tensor], wanted: Pair, top: float, tolerance: float
) -> tuple[Tensor, Pair]:
    """The same functions of a matrix, applied to vectors.

    Args:
        steps: Of the segment.
        times: H P, applied to vectors, whose eigenvalues are in [0, top].
        wanted: Of the fast weights and of the average at the segment's end.
        top: End of the interval.
        tolerance: Largest error of an expansion, as a share of the segment's reach for what a gradient adds.

    Returns:
        What gradients are multiplied with, before P, and what is wanted at the segment's start.
    """
    carried: list[list[Tensor]] = []
    for kind, rows in enumerate(wanted):
        scales = (steps.reach or 1.0, 1.0, 1.0)
        terms = [chebyshev(_of(steps, kind, part, scale), top, tolerance) for part, scale in enumerate(scales)]
        expansion: Sequence[Tensor] = expanded(times, rows, top, terms)
        carried.append([term * scale for term, scale in zip(expansion, scales, strict=True)])
    taken, fast, average = (term + other for term, other in zip(*carried, strict=True))
    return taken, (fast, average)


def _of(steps: AverageSteps, kind: int, part: int, scale: float) -> Callable[[Tensor], Tensor]:
    return lambda x: averaged_filters(steps, x)[kind, part] / scale
