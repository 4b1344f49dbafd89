"""Conjugate gradients, plain and preconditioned, for many right sides at once.

Axes: Q queries, L queries that have not stopped.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from whence.capture import Blocks
from whence.curvature import Damped, Operator, Preconditioner, added, inner
from whence.errors import BadInput
from whence.solve.solution import Solution, check_right_sides, few, measured, pick, put, relative

__all__ = ["solve_cg"]


def solve_cg(
    operator: Operator,
    right: Blocks,
    damping: Sequence[float],
    *,
    preconditioner: Preconditioner | None = None,
    tolerance: float = 1e-4,
    max_iterations: int = 100,
) -> Solution:
    """Solve (A + damping) x = b over all examples by conjugate gradients.

    Hestenes and Stiefel 1952; with a preconditioner Golub and Van Loan 2013, algorithm 11.5.7. Each query has step lengths of its own and
    stops on its own. The matrix has to stay the same between iterations, so every product takes all examples. A direction of negative
    curvature ends a query where it stands, as in Steihaug 1983: what it minimises has no minimum.

    Args:
        operator: A, undamped.
        right: b, per unit (Q, O, I).
        damping: One number per unit.
        preconditioner: An approximate inverse of the damped matrix; None for none. The better it is, the fewer iterations.
        tolerance: Relative residual at which a query stops.
        max_iterations: Products at most, besides the one that measures the residual.

    Returns:
        The solution, with what stopped early in its notes.

    Raises:
        BadInput: If the preconditioner is not positive definite.
    """
    damped = Damped(operator, damping)
    check_right_sides(damped, right)
    apply = preconditioner or (lambda blocks: blocks)
    count = len(right[0])
    solution = damped.zeros(count)
    products, objective = torch.ones(count), torch.zeros(count, dtype=torch.float64)
    history: list[Tensor] = []
    bent: list[int] = []

    live = torch.arange(count)
    x, rest, sides = damped.zeros(count), right, right
    turned = apply(rest)
    heading, before = turned, _positive(rest, turned)
    is_bent = torch.zeros(count, dtype=torch.bool)
    for _ in range(max_iterations):
        keep = (relative(rest, sides) > tolerance) & ~is_bent
        if not bool(keep.all()):
            put(solution, live, x)
            live, before = live[keep], before[keep]
            x, rest, sides, heading = (pick(blocks, keep) for blocks in (x, rest, sides, heading))
        if len(live) == 0:
            break
        product = damped.times(heading)
        products[live] += 1
        bend = inner(heading, product)
        is_bent = bend <= 0
        bent.extend(live[is_bent].tolist())
        step = torch.where(is_bent, 0.0, before / bend)
        x, rest = added(x, heading, step), added(rest, product, -step)
        # x^T A x / 2 - b^T x with A x = b - rest
        objective[live] = -0.5 * (inner(x, sides) + inner(x, rest))
        history.append(objective.clone())
        turned = apply(rest)
        after = _positive(rest, turned)
        heading = added(turned, heading, after / before)
        before = after
    put(solution, live, x)

    true, reached = measured(damped, right, solution)
    notes = [f"negative curvature: {few(bent)} stopped at it; use the Gauss-Newton matrix or more damping"] if bent else []
    above = [query for query in torch.nonzero(~(true <= 2 * tolerance))[:, 0].tolist() if query not in bent]
    if above:
        why = f"after {max_iterations} iterations" if set(above) <= set(live.tolist()) else "for rounding"
        notes.append(f"not converged {why}: {few(above)}, relative residual up to {float(true[above].max()):.2g}")
    past = torch.stack(history) if history else torch.zeros(0, count, dtype=torch.float64)
    return Solution(solution, true, reached, products, tuple(notes), past)


def _positive(rest: Blocks, turned: Blocks) -> Tensor:
    square_L = inner(rest, turned)
    if bool((square_L < 0).any()):
        raise BadInput(
            found=f"a preconditioner with {float(square_L.min()):g} for r^T P r",
            needed="a symmetric positive definite one",
            do="give it positive damping",
        )
    return square_L
