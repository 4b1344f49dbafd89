"""What a solver gives back, and the checks that all of them share.

Axes: Q queries.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from whence.capture import Blocks
from whence.curvature import Operator, added, inner
from whence.errors import BadInput

__all__ = ["Solution", "check_right_sides", "few", "pick", "put", "measured", "relative", "useless"]


@dataclass(frozen=True)
class Solution:
    """An approximate solution of (A + damping) x = b for several b.

    Args:
        blocks: x, per unit (Q, O, I).
        residuals: |b - (A + damping) x| / |b|, measured with a last product over all examples, shape (Q,); 0 where b is zero. Dominated by
            the steepest directions, it can be above 1 for an x that is good everywhere else.
        objectives: x^T (A + damping) x / 2 - b^T x, over all examples, shape (Q,): what the solvers minimise. For a positive definite matrix
            its distance to the lowest possible value is half the squared error of x in the matrix's own norm; for x = 0 it is 0.
        products: Products spent on each query, shape (Q,), counted in products over all examples: a batch of a tenth counts as a tenth.
        notes: What went wrong or has to be known: not converged, diverged, negative curvature, implicit damping.
        history: The objectives at each iteration, shape (iterations, Q), on the examples that it saw; a query that has stopped keeps its
            last value. Empty for direct solvers.
    """

    blocks: Blocks
    residuals: Tensor
    objectives: Tensor
    products: Tensor
    notes: tuple[str, ...]
    history: Tensor

    def __str__(self) -> str:
        worst, spent = float(self.residuals.max()), float(self.products.max())
        return "; ".join([f"relative residual at most {worst:.2g} after {spent:.4g} products", *self.notes])


def measured(operator: Operator, right: Blocks, blocks: Blocks) -> tuple[Tensor, Tensor]:
    """Relative residual and objective of each query over all examples.

    Args:
        operator: The damped matrix.
        right: b.
        blocks: x.

    Returns:
        |b - A x| / |b|, 0 where both are zero, and x^T A x / 2 - b^T x; shape (Q,) each.
    """
    rest = added(right, operator.times(blocks), -1.0)
    return relative(rest, right), -0.5 * (inner(blocks, right) + inner(blocks, rest))


def useless(residuals: Tensor, objectives: Tensor, besides: Sequence[int] = ()) -> list[str]:
    """A note on the queries whose solution is further from the true one than zero is; none if there are none.

    Args:
        residuals: Of each query.
        objectives: Of each query.
        besides: Queries of which something worse is known.

    Returns:
        One note or none.
    """
    is_bad = ~(objectives < 0) & (residuals != 0)
    bad = [query for query in torch.nonzero(is_bad)[:, 0].tolist() if query not in besides]
    return [f"no better than zero: {few(bad)}, relative residual up to {float(residuals[bad].max()):.2g}"] if bad else []


def relative(residual: Blocks, right: Blocks) -> Tensor:
    """Length of each residual over that of its right side, shape (Q,); 0 where the residual is zero."""
    above, below = inner(residual, residual).sqrt(), inner(right, right).sqrt()
    return torch.where(above == 0, 0.0, above / below)


def pick(blocks: Blocks, keep: Tensor) -> Blocks:
    """Some of the vectors, by a mask or by their numbers."""
    return [block[keep.to(block.device)] for block in blocks]


def put(into: Blocks, numbers: Tensor, blocks: Blocks) -> None:
    """Write vectors back to their places."""
    for block, part in zip(into, blocks, strict=True):
        block[numbers.to(block.device)] = part


def check_right_sides(operator: Operator, right: Blocks) -> None:
    """Refuse right sides that no solver can work on.

    Args:
        operator: The matrix.
        right: b.

    Raises:
        BadInput: If they do not have the shapes of the operator's vectors, or are not finite.
    """
    needed = [tuple(block.shape[1:]) for block in operator.zeros(1)]
    if [tuple(block.shape[1:]) for block in right] != needed:
        raise BadInput(
            found=f"right sides of {len(right)} blocks, {[tuple(block.shape) for block in right[:3]]} first",
            needed=f"{len(needed)}, one (Q, O, I) per unit",
            do="capture the queries with the plan of the matrix",
        )
    if not all(bool(torch.isfinite(block).all()) for block in right):
        raise BadInput(found="NaN or infinite right sides", needed="finite ones", do="check the queries' gradients")


def few(queries: Sequence[int] | Tensor) -> str:
    """Numbers of queries in words.

    >>> few([0, 3, 4, 7, 9])
    'queries 0, 3, 4 and 2 more'
    """
    numbers = [int(query) for query in queries]
    more = f" and {len(numbers) - 3} more" if len(numbers) > 3 else ""
    return f"quer{'y' if len(numbers) == 1 else 'ies'} {', '.join(map(str, numbers[:3]))}{more}"
