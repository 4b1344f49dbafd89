"""ASTRA: preconditioned iterations on fresh batches.

Axes: Q queries.
"""

from collections.abc import Sequence

from whence.capture import Blocks
from whence.curvature import Damped, Operator, Preconditioner
from whence.errors import BadInput
from whence.solve.solution import Solution, check_right_sides
from whence.solve.stochastic import Batches, finished, safe_step, walk

__all__ = ["solve_astra"]


def solve_astra(
    operator: Operator,
    right: Blocks,
    damping: Sequence[float],
    preconditioner: Preconditioner,
    *,
    batch_size: int = 64,
    iterations: int = 200,
    tolerance: float = 1e-3,
    seed: int = 0,
) -> Solution:
    """Refine x = P b by x <- x - step P ((A_B + damping) x - b), a fresh batch B each time.

    ASTRA (Wang et al. 2025, arXiv:2507.14740), with EK-FAC for P. Where all examples are affordable in every iteration, `solve_cg` with the
    same P needs far fewer iterations. Two things differ from the paper. Its step lengths belong to its models; here the step is 1 over the
    measured top eigenvalue of P (A_B + damping), which is well above 1 where P is a good but not an exact inverse. And instead of
    shrinking the step the second half of the iterates is averaged (Polyak and Juditsky 1992), which gains more: on two small networks,
    after 200 iterations, an error of .06 to .34 of the solution's length, .16 to .42 without, .09 to .38 with a cosine schedule.

    Args:
        operator: A, undamped.
        right: b, per unit (Q, O, I).
        damping: One number per unit.
        preconditioner: P, an approximate inverse of the damped matrix.
        batch_size: Examples per iteration, drawn with replacement; as many as there are takes all of them every time.
        iterations: Iterations.
        tolerance: Relative residual on its own batch at which a query stops.
        seed: Of the batches.

    Returns:
        The solution. Each entry of the history is measured on its own batch.

    Raises:
        BadInput: If there are no iterations.
    """
    if iterations < 1:
        raise BadInput(found=f"iterations={iterations}", needed="at least 1", do="leave it out")
    damped = Damped(operator, damping)
    check_right_sides(damped, right)
    drawn = Batches(len(damped), batch_size, seed)
    step, cost = safe_step(damped, preconditioner, drawn, seed)
    path = walk(
        damped, right, preconditioner(right), preconditioner, drawn, step=step, iterations=iterations, tolerance=tolerance
    )
    blocks = path.last if drawn.cost == 1.0 else path.mean
    return finished(damped, right, blocks, path, cost + drawn.cost * path.steps, [f"step {step:.3g}"])
