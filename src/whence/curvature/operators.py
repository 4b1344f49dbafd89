"""What a curvature matrix has to offer, and what can be learned from its products alone.

Axes: Q vectors, D all numbers of one vector, O x I a unit's matrix.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from whence.capture import Blocks
from whence.curvature.vectors import added, flatten, inner, random_like, scaled, split
from whence.errors import BadInput

__all__ = ["Damped", "Operator", "Preconditioner", "dense", "top_eigenvalue"]

Preconditioner = Callable[[Blocks], Blocks]
"""Applies an approximate inverse, symmetric and positive definite, to every vector."""

# 3 GiB in double precision.
_MAX_DENSE = 20_000
_VECTORS_AT_ONCE = 256


class Operator(Protocol):
    """A symmetric matrix on parameter space that is the mean of one matrix per example; what solvers ask of one."""

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def zeros(self, count: int) -> Blocks:
        """Zero vectors, per unit (count, O, I)."""
        ...

    def times(self, blocks: Blocks, chosen: Sequence[int] | None = None) -> Blocks:
        """The mean over the chosen examples, or over all of them, applied to every vector."""
        ...


@dataclass(frozen=True)
class Damped:
    """An operator plus a multiple of the identity on each unit.

    Args:
        operator: The matrix.
        damping: Added to the eigenvalues, one number per unit.

    Raises:
        BadInput: If there is not one number per unit, or one is negative.
    """

    operator: Operator
    damping: Sequence[float]

    def __post_init__(self):
        units = len(self.operator.zeros(1))
        if len(self.damping) != units or any(not value >= 0 for value in self.damping):
            raise BadInput(
                found=f"{len(self.damping)} dampings, the smallest {min(self.damping, default=0.0):g}",
                needed=f"{units} numbers, one per unit, none negative",
                do="pass [value] * number of units to damp all alike",
            )

    def __len__(self) -> int:
        return len(self.operator)

    def zeros(self, count: int) -> Blocks:
        """Zero vectors, per unit (count, O, I)."""
        return self.operator.zeros(count)

    def times(self, blocks: Blocks, chosen: Sequence[int] | None = None) -> Blocks:
        """The mean over the chosen examples plus damping, applied to every vector."""
        undamped = self.operator.times(blocks, chosen)
        return [product + value * block for product, block, value in zip(undamped, blocks, self.damping, strict=True)]


def dense(operator: Operator) -> Tensor:
    """The matrix itself, for models of a few thousand parameters: what fast paths are held against.

    Args:
        operator: The matrix.

    Returns:
        Shape (D, D), units one after another, each by rows.

    Raises:
        BadInput: If it has more than 20,000 rows.
    """
    like = operator.zeros(1)
    size_D = sum(block.numel() for block in like)
    if size_D > _MAX_DENSE:
        raise BadInput(
            found=f"a matrix of {size_D:,} rows to be written out",
            needed=f"at most {_MAX_DENSE:,}",
            do="use its products, or track fewer parameters",
        )
    eye_DD = torch.eye(size_D, dtype=like[0].dtype, device=like[0].device)
    rows = [flatten(operator.times(split(rows_QD, like))) for rows_QD in eye_DD.split(_VECTORS_AT_ONCE)]
    return torch.cat(rows)


def top_eigenvalue(
    operator: Operator,
    preconditioner: Preconditioner | None = None,
    *,
    iterations: int = 20,
    seed: int = 0,
    chosen: Sequence[int] | None = None,
) -> float:
    """Largest eigenvalue of P A, by Lanczos iteration in the inner product that makes it symmetric.

    Golub and Van Loan 2013, section 10.1, on P^1/2 A P^1/2, of which neither root is needed. Approaches the eigenvalue from below;
    twenty steps leave a per cent or so.

    Args:
        operator: A, damped or not.
        preconditioner: P; None for the identity.
        iterations: Products to spend.
        seed: Of the random start.
        chosen: Examples that A is the mean over; None takes all.

    Returns:
        The eigenvalue; 0 if the matrix is zero.

    Raises:
        BadInput: If the preconditioner is not positive definite.
    """
    apply = preconditioner or (lambda blocks: blocks)
    diagonal, beside = [], []
    residual = random_like(operator.zeros(1), 1, torch.Generator().manual_seed(seed))
    if preconditioner is not None:
        # Once through the matrix: a unit that it hardly knows, and that P makes up for, would be all that P sees of a random start.
        residual, iterations = operator.times(residual, chosen), max(1, iterations - 1)
    before = scaled(residual, 0.0)
    length = largest = 0.0
    for _ in range(iterations):
        turned = apply(residual)
        square = float(inner(residual, turned))
        # P may be 0 in some directions; what it makes of a vector there is rounding.
        own = float(inner(residual, residual))
        largest = max(largest, square / own if own else 0.0)
        if square < -1e-6 * largest * own:
            raise BadInput(
                found=f"a preconditioner with {square:g} for x^T P x",
                needed="a symmetric positive definite one",
                do="give it positive damping",
            )
        if max(0.0, square) ** 0.5 <= 1e-10 * max(map(abs, diagonal), default=0.0):
            break  # the start lies in fewer directions than there are iterations, or in none
        if diagonal:
            length = square**0.5
            beside.append(length)
        unit_residual, direction = scaled(residual, square**-0.5), scaled(turned, square**-0.5)
        residual = added(operator.times(direction, chosen), before, -length)
        diagonal.append(float(inner(residual, direction)))
        residual, before = added(residual, unit_residual, -diagonal[-1]), unit_residual
    tridiagonal = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    for index, value in enumerate(beside):
        tridiagonal[index, index + 1] = tridiagonal[index + 1, index] = value
    return float(torch.linalg.eigvalsh(tridiagonal)[-1]) if diagonal else 0.0
