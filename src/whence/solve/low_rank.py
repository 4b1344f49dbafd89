"""What Nystroem and Arnoldi share: leading directions of a damped matrix, and its inverse by them.

Axes: Q queries, K directions, D all numbers of one vector.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from whence.capture import Blocks
from whence.curvature import Damped, Operator, Preconditioner, flatten, split
from whence.errors import BadInput
from whence.solve.solution import Solution, measured, useless

__all__ = ["LowRank", "Turned", "apply_inverse", "turn"]


@dataclass(frozen=True)
class LowRank:
    """The inverse of R (1 + U diag(values) U^T) R, with R the root of the damping: a preconditioner.

    Damping may differ from unit to unit, so the directions are those of R^-1 A R^-1; with one damping for all they are A's own.

    Args:
        roots_D: R.
        directions_DK: U, orthonormal columns.
        values_K: Their eigenvalues, in units of the damping.
        keeps_rest: Whether vectors outside the directions are divided by the damping; dropped if not.
    """

    roots_D: Tensor
    directions_DK: Tensor
    values_K: Tensor
    keeps_rest: bool

    def __call__(self, blocks: Blocks) -> Blocks:
        """Applied to every vector."""
        rows_QD = flatten(blocks) / self.roots_D
        inside_QK = rows_QD @ self.directions_DK
        found_QD = (inside_QK / (1 + self.values_K)) @ self.directions_DK.T
        if self.keeps_rest:
            # Subtracted on its own, where 1 - values / (1 + values) would cancel.
            found_QD = found_QD + (rows_QD - inside_QK @ self.directions_DK.T)
        return split(found_QD / self.roots_D, blocks)


@dataclass(frozen=True)
class Turned:
    """R^-1 A R^-1 as a matrix on rows, over all units or between the numbers of one.

    Args:
        operator: A.
        roots_D: R, over all units.
        inside: Which of the D numbers the rows hold.
    """

    operator: Operator
    roots_D: Tensor
    inside: slice

    @property
    def size(self) -> int:
        """Length of the rows."""
        return len(self.roots_D[self.inside])

    def times(self, rows_QD: Tensor) -> Tensor:
        """Applied to every row, same shape."""
        whole_QD = rows_QD.new_zeros(len(rows_QD), len(self.roots_D))
        whole_QD[:, self.inside] = rows_QD
        like = self.operator.zeros(1)
        return (flatten(self.operator.times(split(whole_QD / self.roots_D, like))) / self.roots_D)[:, self.inside]


def turn(operator: Operator, damping: Sequence[float]) -> Turned:
    """The matrix between the roots of its damping.

    Args:
        operator: A.
        damping: One positive number per unit.

    Returns:
        R^-1 A R^-1 over all units.

    Raises:
        BadInput: If a damping is zero.
    """
    if not min(Damped(operator, damping).damping) > 0:
        raise BadInput(
            found="a damping of 0", needed="a positive one: a matrix of low rank has no inverse", do="give each unit some"
        )
    roots_D = flatten([torch.full_like(block, value**0.5) for block, value in zip(operator.zeros(1), damping, strict=True)])[0]
    return Turned(operator, roots_D, slice(None))


def apply_inverse(
    inverse: Preconditioner,
    operator: Operator,
    right: Blocks,
    damping: Sequence[float],
    *,
    spent: float,
    notes: Sequence[str] = (),
) -> Solution:
    """A direct solver's answer with its residual.

    Args:
        inverse: What is applied.
        operator: A.
        right: b.
        damping: One number per unit.
        spent: Products that made the inverse.
        notes: What has to be known.

    Returns:
        The solution.
    """
    blocks, count = inverse(right), len(right[0])
    true, reached = measured(Damped(operator, damping), right, blocks)
    products, history = torch.full((count,), spent + 1.0), torch.zeros(0, count, dtype=torch.float64)
    return Solution(blocks, true, reached, products, (*notes, *useless(true, reached)), history)
