"""Functions of a large matrix applied to vectors, by products alone: Chebyshev expansions on an interval that holds its eigenvalues.

Axes: Q vectors, K terms, O x I a unit's matrix.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["chebyshev", "decayed", "expanded", "gained", "shrinkage"]

# Terms of one expansion. exp(-x) on [0, 1e8] takes about 80,000; an optimizer that does not blow up stays far below.
_MOST = 1 << 18


def chebyshev(function: Callable[[Tensor], Tensor], top: float, tolerance: float) -> Tensor:
    """Coefficients of a function on [0, top] in Chebyshev polynomials, as few as a tolerance allows.

    A polynomial of degree about sqrt(top log(1 / tolerance)) is enough for exp(-x) (Sachdeva and Vishnoi 2014, theorem 4.1). The function
    is looked at in twice as many places, and terms are dropped from the end while those dropped add up to less than the tolerance, which
    bounds the error since no Chebyshev polynomial exceeds 1.

    Args:
        function: Of numbers in double precision, such as exp(-x).
        top: End of the interval.
        tolerance: Largest error, in the function's own unit.

    Returns:
        Shape (K,), float64.

    >>> found = chebyshev(lambda x: torch.exp(-x), 4.0, 1e-3)
    >>> len(found), round(float(found.sum()), 3)  # at the end of the interval all polynomials are 1
    (6, 0.018)
    """
    digits = math.log(1 / tolerance)
    most = min(_MOST, 2 ** math.ceil(math.log2(16 + 4 * math.sqrt(max(top, digits) * digits))))
    nodes = torch.cos(math.pi * torch.arange(most + 1, dtype=torch.float64) / most)
    values = function((nodes + 1) * (top / 2))
    found_K = torch.fft.rfft(torch.cat([values, values[1:-1].flip(0)])).real / most
    found_K[0], found_K[-1] = found_K[0] / 2, found_K[-1] / 2
    dropped_K = found_K.abs().flip(0).cumsum(0).flip(0)
    return found_K[: max(1, int((dropped_K >= tolerance).sum()))]


def expanded(times: Callable[[Tensor], Tensor], start: Tensor, top: float, coefficients: Sequence[Tensor]) -> list[Tensor]:
    """Several functions of one matrix, applied to vectors: one product per term of the longest expansion.

    Args:
        times: The matrix, applied to vectors; similar to a symmetric one with eigenvalues in [0, top].
        start: The vectors, (Q, O, I).
        top: End of the interval.
        coefficients: Of each function, as `chebyshev` makes them.

    Returns:
        Per function, shape (Q, O, I).
    """
    sums = [start * float(terms_K[0]) for terms_K in coefficients]
    before, here = start, start
    for term in range(1, max(map(len, coefficients))):
        turned = times(here) * (2 / top) - here if top > 0 else -here
        before, here = here, turned if term == 1 else 2 * turned - before
        for total, terms_K in zip(sums, coefficients, strict=True):
            if term < len(terms_K):
                total.add_(here, alpha=float(terms_K[term]))
    return sums


def gained(decay: float) -> Callable[[Tensor], Tensor]:
    """Map x to (1 - exp(-y)) / y, y = x + decay: what is left of a constant push."""
    return lambda x: shrinkage(x.clamp_min(0) + decay)


def decayed(decay: float) -> Callable[[Tensor], Tensor]:
    """Map x to exp(-y), y = x + decay: what is left of a change."""
    return lambda x: torch.exp(-(x.clamp_min(0) + decay))


def shrinkage(x: Tensor) -> Tensor:
    """(1 - exp(-x)) / x, which is 1 at 0, for x >= 0.

    >>> shrinkage(torch.tensor([0.0, 1.0], dtype=torch.float64))
    tensor([1.0000, 0.6321], dtype=torch.float64)
    """
    safe = x.clamp_min(torch.finfo(x.dtype).tiny)
    return torch.where(x > 0, -torch.expm1(-safe) / safe, torch.ones_like(x))
