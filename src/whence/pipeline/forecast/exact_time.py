"""How long an exact run takes: its passes timed on a few examples, its queries on one.

Axes: Q queries.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from whence.capture import Plan
from whence.data import Dataset, Example
from whence.methods import exact_method_named
from whence.pipeline.exact.footprint import Footprint
from whence.pipeline.exact.precondition import preconditioned
from whence.pipeline.exact.prepare import Prepared, fit_data
from whence.pipeline.exact.query_gradients import query_gradients
from whence.pipeline.forecast.timing import Timing, positions_of, scan_seconds, timed, timed_fit, timed_sample
from whence.settings import ExactSettings, Runtime, fit_of
from whence.tasks import AbstractTask

__all__ = ["ExactSeconds", "timed_exact"]


@dataclass(frozen=True, kw_only=True)
class ExactSeconds:
    """What an exact run takes on the clock, if the machine does nothing else.

    Args:
        fit: Passes over the data for the curvature, and all eigenvectors.
        queries: Gradients of the queries, preconditioned.
        scan: Passes over the data for the scores.
        timed: Examples that this was measured on.
    """

    fit: float
    queries: float
    scan: float
    timed: int

    @property
    def total(self) -> float:
        """All of it, besides checks."""
        return self.fit + self.queries + self.scan

    def __str__(self) -> str:
        parts = f"fit {self.fit:,.0f} s, queries {self.queries:,.0f} s, scores {self.scan:,.0f} s"
        return f"time: about {self.total:,.0f} s by {self.timed} examples and a smaller side's eigenvectors ({parts})"


def timed_exact(
    task: AbstractTask,
    plan: Plan,
    train: Dataset,
    queries: int,
    settings: ExactSettings,
    footprint: Footprint,
    positions: int,
    timing: Timing = Timing(),
) -> ExactSeconds:
    """What an exact run would take.

    Args:
        task: Model and loss.
        plan: Its units.
        train: The training data.
        queries: How many would be asked.
        settings: Of a method whose inverse is a formula, resolved.
        footprint: How the run is cut.
        positions: Per batch.
        timing: How much time it may take.
    """
    few = timed_sample(train, positions, plan.coverage.tracked, timing)
    curvature, fit = None, 0.0
    factors = exact_method_named(settings.name).factors
    if factors is not None:
        data = fit_data(task, train, getattr(settings, "fit_on", None))
        sample = timed_sample(data, positions, plan.coverage.tracked, timing)
        has_values = factors == "ekfac"
        everything = positions_of(data.examples)
        seconds, curvature = timed_fit(
            task, plan, sample, fit_of(settings), positions, everything=everything, has_values=has_values, timing=timing
        )
        fit = seconds.total(everything)
    runtime = Runtime(quiet=True)
    prepared = Prepared(task, plan, Dataset(list(few)), curvature, settings, positions, footprint, runtime)
    asking, scanning = _solving_seconds(prepared, few, queries, timing) if queries else (0.0, 0.0)
    passes = footprint.chunks * footprint.passes
    return ExactSeconds(
        fit=fit,
        queries=asking * queries,
        scan=scanning * positions_of(train.examples) / positions_of(few) * passes,
        timed=len(few),
    )


def _solving_seconds(prepared: Prepared, few: Sequence[Example], queries: int, timing: Timing) -> tuple[float, float]:
    """Seconds of a query, and of a scan of the few examples with as many rows as are asked at once."""
    one_query = Dataset(list(few[:1]))
    rows, gradient_seconds = timed(lambda: query_gradients(prepared, one_query), timing)
    # Written over, so that no time goes into a copy that a run does not make.
    (blocks, _), solve_seconds = timed(lambda: preconditioned(prepared, rows, prepared.damping(), in_place=True), timing)
    at_once = min(queries, prepared.footprint.rows_at_once)
    scanning = scan_seconds(
        prepared.task, prepared.plan, few, blocks, at_once, prepared.max_positions, prepared.query_rank, timing
    )
    return gradient_seconds + solve_seconds, scanning
