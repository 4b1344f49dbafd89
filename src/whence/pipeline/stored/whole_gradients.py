"""Scores of a few examples by the EK-FAC inside a store of codes, from whole gradients of the model instead of the codes.

Axes: Q queries, N examples, O outputs, I inputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from whence.capture import Objective, Plan, available_bytes
from whence.compress import Aligned, Kronecker
from whence.curvature import solve_whitened
from whence.data import Example
from whence.progress import Meter, meter
from whence.score import Batching, exact_scores, gradient_rows
from whence.tasks import AbstractTask

__all__ = ["WholeGradients"]

# Whole gradients of a query on the way to its preconditioned one, at most, and the share of the free memory that they may take.
_COPIES, _SHARE = 4, 0.5
# Of these, on average over the units that are made one after the other.
_RESIDENT = 2


@dataclass(frozen=True)
class WholeGradients:
    """A model with the curvature that a store's codes were made with.

    Args:
        task: Model, loss and measurement.
        plan: Its units.
        encoder: What made the codes; its halves of the damped inverse are taken whole.
        positions: Per batch.
    """

    task: AbstractTask
    plan: Plan
    encoder: Aligned
    positions: int

    @property
    def at_once(self) -> int:
        """Queries whose whole gradients fit."""
        return max(1, int(_SHARE * available_bytes(self.task.device)) // self._query_bytes)

    def memory_bytes(self, queries: int) -> int:
        """Of memory while so many queries are asked, as many at a time as fit."""
        return min(queries, self.at_once) * self._query_bytes * _RESIDENT // _COPIES

    @property
    def _query_bytes(self) -> int:
        return _COPIES * sum(weight.numel() * weight.element_size() for weight in self.encoder.whitened.weights)

    @property
    def whole(self) -> Kronecker:
        """The encoder that leaves gradients as they are."""
        units = self.plan.units
        return Kronecker(units, (None,) * len(units), (None,) * len(units))

    def preconditioned(self, queries: Sequence[Example], objective: Objective) -> list[Tensor]:
        """(H + damping)^-1 applied to the queries' gradients, per unit of shape (Q, O, I), on the model's device."""
        with meter("queries", len(queries), quiet=True) as progress:
            rows = gradient_rows(
                self.task, self.plan, self.whole, queries,
                batching=Batching(self.positions), progress=progress, objective=objective,
            )  # fmt: skip
        return solve_whitened(self.encoder.whitened, [row.to(self.task.device) for row in rows.units])

    def scores(self, blocks: Sequence[Tensor], examples: Sequence[Example], progress: Meter) -> Tensor:
        """Inner products of preconditioned queries with the examples' gradients, shape (Q, N), float64."""
        exact = exact_scores(self.task, self.plan, examples, blocks, max_positions=self.positions, progress=progress)
        return exact.scores_QN
