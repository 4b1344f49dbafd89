"""From query gradients to preconditioned queries, by the curvature's own inverse or by a solver.

Axes: Q queries.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from whence.curvature import Curvature, Damping
from whence.errors import BadInput
from whence.methods import exact_method_named
from whence.pipeline.exact.prepare import Prepared
from whence.solve import Solution, solve_arnoldi, solve_astra, solve_cg, solve_datainf, solve_lissa, solve_nystroem

__all__ = ["ITERATIONS", "SolveConfig", "preconditioned"]

ITERATIONS = {"pcg": 25, "cg": 100, "astra": 200, "lissa": 500, "arnoldi": 100}
"""By solver, enough to be affordable, not for the residual to vanish: what is left of it stands in the table's notes."""


@dataclass(frozen=True, kw_only=True)
class SolveConfig:
    """How far a solver goes.

    Args:
        iterations: At most; None takes the method's own (pcg 25, cg, arnoldi 100, astra 200, lissa 500).
        tolerance: Relative residual at which a query stops.
        examples: Training examples, spread evenly, that the matrix is the mean over; None takes all. A product costs in proportion.
        rank: Directions kept by nystroem and arnoldi.
        batch_examples: Training examples per iteration of astra and lissa; the others take all of them every time.
        seed: Of the batches.

    Raises:
        BadInput: If a number is not positive.
    """

    iterations: int | None = None
    tolerance: float = 1e-2
    examples: int | None = None
    rank: int = 50
    batch_examples: int = 64
    seed: int = 0

    def __post_init__(self):
        counts = (
            *(1 if value is None else value for value in (self.iterations, self.examples)),
            self.rank,
            self.batch_examples,
        )
        if min(counts) < 1 or not self.tolerance > 0:
            raise BadInput(
                found=f"iterations={self.iterations}, tolerance={self.tolerance}, examples={self.examples}, rank={self.rank}, "
                f"batch_examples={self.batch_examples}",
                needed="positive numbers",
                do="leave them out to take the method's own",
            )

    def vectors(self, method: str) -> int:
        """How many vectors as long as the model a method's solver keeps, however many queries there are."""
        solver = exact_method_named(method).solver
        if solver == "arnoldi":
            return self.iterations or ITERATIONS["arnoldi"]
        return 3 * self.rank if solver == "nystroem" else 0


def preconditioned(
    ready: Prepared, rows: list[Tensor], damping: Damping | None, config: SolveConfig, *, in_place: bool = False
) -> tuple[list[Tensor], Solution | None]:
    """-(1/N) (H + damping)^-1 rows, on the model's device: inner products with these are scores.

    Args:
        ready: Curvature, training data and method.
        rows: Gradients of the queries' measurements, per unit of shape (Q, O, I).
        damping: None without curvature.
        config: For methods with a solver.
        in_place: Whether the rows may be written over: whole gradients are what memory is short of.

    Returns:
        Per unit, shape (Q, O, I); and what the solver says of its work, None without one.
    """
    solution = None
    rows = [row.to(ready.task.device) for row in rows]
    if ready.curvature is None or damping is None:
        found = rows if in_place else [row.clone() for row in rows]
    elif ready.method.solver is None:
        found = ready.curvature.solve(rows, damping, in_place=in_place)
    else:
        solution = _solved(ready, rows, damping, config)
        found = solution.blocks
    return [block_QOI.mul_(-1.0 / len(ready.train)) for block_QOI in found], solution


def _solved(ready: Prepared, rows: list[Tensor], damping: Damping, config: SolveConfig) -> Solution:
    curvature, solver = ready.curvature, ready.method.solver
    assert curvature is not None and solver is not None
    chosen = ready.train.spread(config.examples or len(ready.train)).examples
    matrix = Curvature(ready.task, ready.plan, chosen, max_positions=ready.max_positions, ranks=ready.ranks)
    values = curvature.dampings(damping)
    iterations = config.iterations or ITERATIONS.get(solver, 0)

    def inverse(blocks: list[Tensor]) -> list[Tensor]:
        return curvature.solve(blocks, damping)

    if solver in ("cg", "pcg"):
        start = inverse if solver == "pcg" else None
        return solve_cg(matrix, rows, values, preconditioner=start, tolerance=config.tolerance, max_iterations=iterations)
    if solver == "nystroem":
        return solve_nystroem(matrix, rows, values, rank=config.rank, seed=config.seed)
    if solver == "arnoldi":
        return solve_arnoldi(matrix, rows, values, rank=config.rank, iterations=iterations, seed=config.seed)
    if solver == "datainf":
        return solve_datainf(replace(matrix, kind="empirical_fisher"), rows, values)
    size = min(config.batch_examples, len(chosen))
    if solver == "astra":
        return solve_astra(
            matrix, rows, values, inverse, batch_size=size, iterations=iterations, tolerance=config.tolerance, seed=config.seed
        )
    return solve_lissa(
        matrix, rows, values, batch_size=size, iterations=iterations, tolerance=config.tolerance, seed=config.seed
    )
