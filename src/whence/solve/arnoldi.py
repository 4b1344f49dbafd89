"""Arnoldi: the matrix by its leading eigenvectors, found in a Krylov space.

Axes: Q queries, J iterations, K kept directions, D all numbers of one vector.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from whence.capture import Blocks
from whence.curvature import Operator
from whence.errors import BadInput
from whence.solve.low_rank import LowRank, Turned, apply_inverse, turn
from whence.solve.solution import Solution, check_right_sides

__all__ = ["fit_arnoldi", "solve_arnoldi"]


def solve_arnoldi(
    operator: Operator, right: Blocks, damping: Sequence[float], *, rank: int = 50, iterations: int = 100, seed: int = 0
) -> Solution:
    """Approximate (A + damping)^-1 b inside the span of A's leading eigenvectors; what lies outside is dropped.

    Schioppa et al. 2022. The residual counts the dropped part, which is most of b where few directions are kept.

    Args:
        operator: A, undamped.
        right: b, per unit (Q, O, I).
        damping: One positive number per unit.
        rank: Eigenvectors kept, largest absolute eigenvalue first.
        iterations: Products, at least as many as the rank.
        seed: Of the start.

    Returns:
        The solution, without history. A note says if the damped matrix is not positive in the kept directions.
    """
    check_right_sides(operator, right)
    inverse = fit_arnoldi(operator, damping, rank=rank, iterations=iterations, seed=seed)
    bent = int((inverse.values_K <= -1).sum())
    notes = [f"negative curvature: {bent} of {len(inverse.values_K)} directions, beyond the damping"] if bent else []
    spent = min(iterations, len(inverse.roots_D))
    return apply_inverse(inverse, operator, right, damping, spent=spent, notes=notes)


def fit_arnoldi(
    operator: Operator, damping: Sequence[float], *, rank: int = 50, iterations: int = 100, seed: int = 0
) -> LowRank:
    """Leading eigenvectors by Lanczos, which Arnoldi's iteration is for a symmetric matrix, with full reorthogonalisation.

    Args:
        operator: A, undamped.
        damping: One positive number per unit.
        rank: As in `solve_arnoldi`.
        iterations: As in `solve_arnoldi`.
        seed: Of the start.

    Returns:
        The directions, those outside dropped.

    Raises:
        BadInput: If there are no directions, or more than iterations.
    """
    if not 1 <= rank <= iterations:
        raise BadInput(
            found=f"rank={rank}, iterations={iterations}",
            needed="at least one direction and as many iterations as directions",
            do="raise iterations to twice the rank",
        )
    turned = turn(operator, damping)
    basis_JD, small_JJ = _krylov(turned, min(iterations, turned.size), torch.Generator().manual_seed(seed))
    values_J, vectors_JJ = torch.linalg.eigh(small_JJ)
    leading = values_J.abs().argsort(descending=True)[:rank]
    return LowRank(turned.roots_D, basis_JD.T @ vectors_JJ[:, leading], values_J[leading], keeps_rest=False)


def _krylov(turned: Turned, iterations: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """An orthonormal basis, and the matrix in it.

    A space that is exhausted (the matrix has fewer different eigenvalues than there are iterations) goes on from a new random vector.
    """
    basis_JD = turned.roots_D.new_zeros(iterations, turned.size)
    products_JD = torch.zeros_like(basis_JD)
    tiny = torch.finfo(basis_JD.dtype).eps ** 0.5
    largest = 0.0
    fresh_D = _random(turned, generator)
    for step in range(iterations):
        fresh_D = _orthogonal(fresh_D, basis_JD[:step])
        if float(fresh_D.norm()) <= tiny * max(largest, 1e-300):
            fresh_D = _orthogonal(_random(turned, generator), basis_JD[:step])
        basis_JD[step] = fresh_D / fresh_D.norm()
        fresh_D = products_JD[step] = turned.times(basis_JD[step : step + 1])[0]
        largest = max(largest, float(fresh_D.norm()))
    small_JJ = basis_JD @ products_JD.T
    return basis_JD, 0.5 * (small_JJ + small_JJ.T)


def _random(turned: Turned, generator: torch.Generator) -> Tensor:
    return torch.randn(turned.size, generator=generator, dtype=torch.float64).to(turned.roots_D)


def _orthogonal(vector_D: Tensor, basis_JD: Tensor) -> Tensor:
    for _ in range(2):  # once leaves the rounding of large components
        vector_D = vector_D - (basis_JD @ vector_D) @ basis_JD
    return vector_D
