"""LiSSA: the inverse as a Neumann series on fresh batches.

Axes: Q queries.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from whence.capture import Blocks
from whence.curvature import Damped, Operator, added
from whence.errors import BadInput
from whence.solve.solution import Solution, check_right_sides
from whence.solve.stochastic import Batches, finished, safe_step, walk

__all__ = ["solve_lissa"]


def solve_lissa(
    operator: Operator,
    right: Blocks,
    damping: Sequence[float],
    *,
    batch_size: int = 16,
    iterations: int = 500,
    repeats: int = 1,
    tolerance: float = 1e-3,
    seed: int = 0,
) -> Solution:
    """Approximate (A + damping)^-1 b by x <- x + step (b - (A_B + damping) x), a fresh batch B each time, from zero.

    Agarwal, Bullins and Hazan 2017, section 3; Koh and Liang 2017, section 3. The step is 1 over the measured top eigenvalue: there it is
    a constant to be guessed ("scale"). Stopping after J iterations acts like a further damping of 1 / (step J); the note says how much.

    Args:
        operator: A, undamped.
        right: b, per unit (Q, O, I).
        damping: One number per unit.
        batch_size: Examples per iteration, drawn with replacement; as many as there are takes all of them every time.
        iterations: J, for each repeat.
        repeats: Independent walks whose ends are averaged.
        tolerance: Relative residual on its own batch at which a query stops.
        seed: Of the batches.

    Returns:
        The solution; the history is that of the first repeat.

    Raises:
        BadInput: If there are no iterations or repeats.
    """
    if min(iterations, repeats) < 1:
        raise BadInput(found=f"iterations={iterations}, repeats={repeats}", needed="at least 1 of each", do="leave them out")
    damped = Damped(operator, damping)
    check_right_sides(damped, right)
    drawn = Batches(len(damped), batch_size, seed)
    step, cost = safe_step(damped, None, drawn, seed)
    start = damped.zeros(len(right[0]))
    paths = [
        walk(damped, right, start, None, drawn, step=step, iterations=iterations, tolerance=tolerance) for _ in range(repeats)
    ]
    blocks = start
    for path in paths:
        blocks = added(blocks, path.last, 1.0 / repeats)
    products = cost + drawn.cost * torch.stack([path.steps for path in paths]).sum(0)
    everywhere = replace(paths[0], diverged=sorted({query for path in paths for query in path.diverged}))
    note = f"step {step:.3g}; {iterations} iterations act like a further damping of {1 / (step * iterations):.3g}"
    return finished(damped, right, blocks, everywhere, products, [note])
