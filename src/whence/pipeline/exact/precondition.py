"""From query gradients to preconditioned queries, by the curvature's own inverse or by a solver.

Axes: Q queries.
"""

from dataclasses import replace

from torch import Tensor

from whence.curvature import Curvature, ResolvedDamping
from whence.pipeline.exact.prepare import Prepared
from whence.settings import ASTRA, CG, PCG, Arnoldi, DataInf, LiSSA, Nystroem
from whence.solve import Solution, solve_arnoldi, solve_astra, solve_cg, solve_datainf, solve_lissa, solve_nystroem

__all__ = ["preconditioned"]


def preconditioned(
    prepared: Prepared, rows: list[Tensor], damping: ResolvedDamping | None, *, in_place: bool = False
) -> tuple[list[Tensor], Solution | None]:
    """-(1/N) (H + damping)^-1 rows, on the model's device: inner products with these are scores.

    Args:
        prepared: Curvature, training data and method.
        rows: Gradients of the queries' measurements, per unit of shape (Q, O, I).
        damping: None without curvature.
        in_place: Whether the rows may be written over: whole gradients are what memory is short of.

    Returns:
        Per unit, shape (Q, O, I); and what the solver says of its work, None without one.
    """
    solution = None
    rows = [row.to(prepared.task.device) for row in rows]
    if prepared.curvature is None or damping is None:
        blocks = rows if in_place else [row.clone() for row in rows]
    elif prepared.method.solver is None:
        blocks = prepared.curvature.solve(rows, damping, in_place=in_place)
    else:
        solution = _solved(prepared, rows, damping)
        blocks = solution.blocks
    return [block_QOI.mul_(-1.0 / len(prepared.train)) for block_QOI in blocks], solution


def _solved(prepared: Prepared, rows: list[Tensor], damping: ResolvedDamping) -> Solution:
    curvature, settings = prepared.curvature, prepared.settings
    assert curvature is not None
    examples = getattr(settings, "examples", None)
    chosen = prepared.train.spread(examples or len(prepared.train)).examples
    matrix = Curvature(
        prepared.task, prepared.plan, chosen, getattr(settings, "matrix", "gauss_newton"),
        max_positions=prepared.max_positions, ranks=prepared.ranks,
    )  # fmt: skip
    values = curvature.dampings(damping)

    def inverse(blocks: list[Tensor]) -> list[Tensor]:
        return curvature.solve(blocks, damping)

    match settings:
        case PCG() | CG():
            start = inverse if isinstance(settings, PCG) else None
            return solve_cg(
                matrix, rows, values,
                preconditioner=start, tolerance=settings.tolerance, max_iterations=settings.iterations,
            )  # fmt: skip
        case Nystroem():
            return solve_nystroem(matrix, rows, values, rank=settings.rank, seed=settings.seed)
        case Arnoldi():
            return solve_arnoldi(matrix, rows, values, rank=settings.rank, iterations=settings.iterations, seed=settings.seed)
        case DataInf():
            return solve_datainf(replace(matrix, kind="empirical_fisher"), rows, values)
        case ASTRA():
            return solve_astra(
                matrix, rows, values, inverse, batch_size=min(settings.batch_examples, len(chosen)),
                iterations=settings.iterations, tolerance=settings.tolerance, seed=settings.seed,
            )  # fmt: skip
        case LiSSA():
            return solve_lissa(
                matrix, rows, values, batch_size=min(settings.batch_examples, len(chosen)), repeats=settings.repeats,
                iterations=settings.iterations, tolerance=settings.tolerance, seed=settings.seed,
            )  # fmt: skip
    raise AssertionError(f"{settings.name} has no solver")
