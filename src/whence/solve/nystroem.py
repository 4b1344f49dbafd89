"""Nystroem: the matrix by its products with a few random vectors.

Axes: Q queries, K random vectors, D all numbers of one vector.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from whence.capture import Blocks
from whence.curvature import Operator, Preconditioner
from whence.errors import BadInput
from whence.solve.low_rank import LowRank, Turned, apply_inverse, turn
from whence.solve.solution import Solution, check_right_sides

__all__ = ["fit_nystroem", "solve_nystroem"]


def solve_nystroem(
    operator: Operator, right: Blocks, damping: Sequence[float], *, rank: int = 64, per_unit: bool = False, seed: int = 0
) -> Solution:
    """Approximate (A + damping)^-1 b with A of low rank, by Woodbury; exact at full rank.

    Hataya and Yamada 2023. The same products made into a preconditioner (`fit_nystroem`) let `solve_cg` do the rest.

    Args:
        operator: A, positive semidefinite, undamped.
        right: b, per unit (Q, O, I).
        damping: One positive number per unit.
        rank: Random vectors, as many products; over all units, or for each unit.
        per_unit: Whether each unit is inverted on its own: the curvature between units is left out, and each unit costs its own products.
        seed: Of the vectors.

    Returns:
        The solution, without history.
    """
    check_right_sides(operator, right)
    inverse = fit_nystroem(operator, damping, rank=rank, per_unit=per_unit, seed=seed)
    sizes = [block[0].numel() for block in right]
    spent = sum(min(rank, size) for size in (sizes if per_unit else [sum(sizes)]))
    return apply_inverse(inverse, operator, right, damping, spent=spent)


def fit_nystroem(
    operator: Operator, damping: Sequence[float], *, rank: int = 64, per_unit: bool = False, seed: int = 0
) -> Preconditioner:
    """An inverse of A + damping that is exact in the directions that random products show to be the steepest.

    Frangella, Tropp and Udell 2023, algorithm 2.1, with the damping between its roots.

    Args:
        operator: A, positive semidefinite, undamped.
        damping: One positive number per unit.
        rank: As in `solve_nystroem`.
        per_unit: As in `solve_nystroem`.
        seed: Of the vectors.

    Returns:
        The inverse, to be applied to blocks.

    Raises:
        BadInput: If the rank is not positive or the matrix has negative eigenvalues.
    """
    if rank < 1:
        raise BadInput(found=f"rank={rank}", needed="at least 1", do="leave it out")
    generator = torch.Generator().manual_seed(seed)
    turned = turn(operator, damping)
    if not per_unit:
        return _fit(turned, rank, generator)
    sizes = [block.numel() for block in operator.zeros(1)]
    ends = torch.tensor(sizes).cumsum(0).tolist()
    parts = [
        _fit(Turned(operator, turned.roots_D, slice(end - size, end)), rank, generator)
        for size, end in zip(sizes, ends, strict=True)
    ]
    return lambda blocks: [part([block])[0] for part, block in zip(parts, blocks, strict=True)]


def _fit(turned: Turned, rank: int, generator: torch.Generator) -> LowRank:
    random_KD = torch.randn(min(rank, turned.size), turned.size, generator=generator, dtype=torch.float64)
    start_KD = torch.linalg.qr(random_KD.T)[0].T.to(turned.roots_D)
    products_KD = turned.times(start_KD)
    # A shift of the size of the rounding keeps the factorisation positive; it is taken off again at the end.
    shift = torch.finfo(products_KD.dtype).eps * max(1.0, float(products_KD.norm())) * turned.size**0.5
    shifted_KD = products_KD + shift * start_KD
    core_KK = _symmetric(start_KD @ shifted_KD.T)
    factor_KK, failed = torch.linalg.cholesky_ex(core_KK)
    if bool(failed):
        lowest = float(torch.linalg.eigvalsh(core_KK)[0])
        raise BadInput(
            found=f"a matrix with negative curvature ({lowest:.3g} times the damping)",
            needed="a positive semidefinite one",
            do="use the Gauss-Newton matrix or the empirical Fisher",
        )
    half_KD = torch.linalg.solve_triangular(factor_KK, shifted_KD, upper=False)
    directions_DK, singular_K, _ = torch.linalg.svd(half_KD.T, full_matrices=False)
    values_K = (singular_K.square() - shift).clamp_min(0)
    return LowRank(turned.roots_D[turned.inside], directions_DK, values_K, keeps_rest=True)


def _symmetric(matrix_KK: Tensor) -> Tensor:
    return 0.5 * (matrix_KK + matrix_KK.T)
