"""The walk that LiSSA and ASTRA share: Richardson iterations on fresh batches, for many right sides at once.

Axes: Q queries, L queries that have not stopped.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from whence.capture import Blocks
from whence.curvature import Damped, Preconditioner, added, inner, scaled, top_eigenvalue
from whence.errors import BadInput
from whence.solve.solution import Solution, few, measured, pick, put, relative, useless

__all__ = ["PROBES", "PROBE_PRODUCTS", "Batches", "Walk", "finished", "safe_step", "walk"]

# Batches whose top eigenvalue is measured, and the products spent on each.
PROBES, PROBE_PRODUCTS = 3, 10
# Beyond this many times the largest length a solution can have, a query has diverged.
_ASTRAY = 10.0


class Batches:
    """Fresh batches, drawn with replacement; all examples every time if the batch is no smaller than the data.

    Args:
        num_examples: Examples to draw from.
        batch_size: Examples per batch.
        seed: Of the draws.

    Raises:
        BadInput: If the batch is empty.
    """

    def __init__(self, num_examples: int, batch_size: int, seed: int):
        if batch_size < 1:
            raise BadInput(found=f"batch_size={batch_size}", needed="at least 1", do="leave it out")
        self.cost = min(1.0, batch_size / num_examples)
        self._drawn = (num_examples, (batch_size,)) if batch_size < num_examples else None
        self._generator = torch.Generator().manual_seed(seed)

    def draw(self) -> list[int] | None:
        """The numbers of the next batch's examples; None stands for all."""
        return None if self._drawn is None else torch.randint(*self._drawn, generator=self._generator).tolist()


@dataclass(frozen=True)
class Walk:
    """Where the iterations went.

    Args:
        last: The last iterate of each query.
        mean: The mean of the iterates over the second half; the last iterate where a query converged before.
        history: x^T A_B x / 2 - b^T x on each batch, shape (iterations, Q).
        steps: Iterations made for each query, shape (Q,).
        diverged: Numbers of the queries that were stopped because their length grew beyond bounds.
    """

    last: Blocks
    mean: Blocks
    history: Tensor
    steps: Tensor
    diverged: list[int]


def safe_step(damped: Damped, preconditioner: Preconditioner | None, drawn: Batches, seed: int) -> tuple[float, float]:
    """A step length at which the iterations cannot diverge for positive curvature, from measured eigenvalues.

    With fresh batches the mean square error contracts if the step is below 2 over the largest top eigenvalue of P (G_B + damping) among
    the batches B (E[A_B^2] <= max |A_B| E[A_B]). Half of that, by the largest of three, leaves room for those not measured.

    Args:
        damped: The matrix.
        preconditioner: P; None for the identity.
        drawn: Where batches come from.
        seed: Of the random starts.

    Returns:
        The step length, and what finding it cost in products over all examples.

    Raises:
        BadInput: If the matrix is zero.
    """
    probes = 1 if drawn.cost == 1.0 else PROBES
    values = [
        top_eigenvalue(damped, preconditioner, iterations=PROBE_PRODUCTS, seed=seed + probe, chosen=drawn.draw())
        for probe in range(probes)
    ]
    if not max(values) > 0:
        raise BadInput(
            found=f"a matrix whose top eigenvalue is {max(values):g}", needed="a positive one", do="give it positive damping"
        )
    return 1.0 / max(values), probes * PROBE_PRODUCTS * drawn.cost


def walk(
    damped: Damped,
    right: Blocks,
    start: Blocks,
    preconditioner: Preconditioner | None,
    drawn: Batches,
    *,
    step: float,
    iterations: int,
    tolerance: float,
) -> Walk:
    """Iterate x <- x - step P (A_B x - b) with a fresh batch B each time.

    Args:
        damped: A.
        right: b.
        start: The first x.
        preconditioner: P; None for the identity.
        drawn: Where batches come from.
        step: Step length.
        iterations: At most.
        tolerance: A query stops when |b - A_B x| <= tolerance |b|: with batches smaller than the data only if they hardly differ.

    Returns:
        Where it went.
    """
    apply = preconditioner or (lambda blocks: blocks)
    count = len(right[0])
    last, mean = ([block.clone() for block in start] for _ in range(2))
    steps, objective = torch.zeros(count), torch.zeros(count, dtype=torch.float64)
    history: list[Tensor] = []
    diverged: list[int] = []

    live, x, sides, total, summed = torch.arange(count), start, right, damped.zeros(count), 0
    # No solution is longer than |b| over the smallest damping when the curvature is not negative; without damping, any bound has to do.
    floor = max(min(damped.damping), 1e-8 / step)
    bound = _ASTRAY * (inner(right, right).sqrt() / floor + inner(start, start).sqrt())
    for iteration in range(iterations):
        product = damped.times(x, drawn.draw())
        rest = added(sides, product, -1.0)
        objective[live] = 0.5 * inner(x, product) - inner(sides, x)
        history.append(objective.clone())
        steps[live] += 1
        stays = relative(rest, sides) > tolerance
        before, x = x, added(x, apply(rest), step * stays.double())
        astray = ~(inner(x, x).sqrt() <= bound[live])
        diverged.extend(live[astray].tolist())
        put(x, torch.nonzero(astray)[:, 0], pick(before, astray))
        if not bool((stays & ~astray).all()):
            put(last, live, x)
            put(mean, live, x)
            keep = stays & ~astray
            live = live[keep]
            x, sides, total = (pick(blocks, keep) for blocks in (x, sides, total))
            if len(live) == 0:
                break
        if iteration >= iterations // 2:
            total, summed = added(total, x), summed + 1
    put(last, live, x)
    if summed:
        put(mean, live, scaled(total, 1.0 / summed))
    return Walk(last, mean, torch.stack(history), steps, sorted(diverged))


def finished(damped: Damped, right: Blocks, blocks: Blocks, path: Walk, products: Tensor, notes: list[str]) -> Solution:
    """A solution with its residual measured and what went wrong put first.

    Args:
        damped: The matrix.
        right: b.
        blocks: x.
        path: How x was found.
        products: Spent so far, without the measurement.
        notes: What has to be known besides.

    Returns:
        The solution.
    """
    true, reached = measured(damped, right, blocks)
    bad = [f"diverged: {few(path.diverged)}; use the Gauss-Newton matrix, or more damping"] if path.diverged else []
    notes = [*bad, *useless(true, reached, path.diverged), *notes]
    return Solution(blocks, true, reached, products + 1, tuple(notes), path.history)
