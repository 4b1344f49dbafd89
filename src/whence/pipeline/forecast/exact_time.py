"""How long an exact run takes: its passes timed on a few examples, its queries on one.

Axes: Q queries.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from whence.capture import Plan
from whence.curvature.eigenvectors import SETTLED_SIDE
from whence.data import Dataset, Example
from whence.methods import exact_method_named
from whence.pipeline.exact.footprint import Footprint
from whence.pipeline.exact.precondition import preconditioned
from whence.pipeline.exact.prepare import Prepared, fit_data
from whence.pipeline.exact.query_gradients import query_gradients
from whence.pipeline.forecast.solver_time import product_seconds, products_of
from whence.pipeline.forecast.timing import Timing, positions_of, scan_seconds, timed, timed_fit, timed_sample
from whence.settings import ExactSettings, Runtime, fit_of
from whence.tasks import AbstractTask
from whence.unroll import Replay, Run, steps_of

__all__ = ["ExactSeconds", "timed_exact", "training_seconds"]


@dataclass(frozen=True, kw_only=True)
class ExactSeconds:
    """What an exact run takes on the clock, if the machine does nothing else.

    Args:
        fit: Passes over the data for the curvature, and all eigenvectors.
        queries: Gradients of the queries, preconditioned.
        scan: Passes over the data for the scores.
        timed: Examples that this was measured on.
        may_stop: Whether a solver may stop before, where it converges.
        is_few: Whether the fit has fewer positions than its longest side is long: how many directions they leave it shows in the fit only.
        training: Of further models, by the steps of a recorded run.
    """

    fit: float
    queries: float
    scan: float
    timed: int
    may_stop: bool = False
    is_few: bool = False
    training: float = 0.0

    @property
    def total(self) -> float:
        """All of it, besides checks."""
        return self.fit + self.queries + self.scan + self.training

    def at_checkpoints(self, count: int) -> "ExactSeconds":
        """Of a run that does all of it at so many checkpoints or models, whose passes for scores are counted already."""
        return replace(self, fit=self.fit * count, queries=self.queries * count)

    def __str__(self) -> str:
        parts = f"fit {self.fit:,.0f} s, queries {self.queries:,.0f} s, scores {self.scan:,.0f} s"
        parts += f", training {self.training:,.0f} s" if self.training else ""
        most = "at most, " if self.may_stop else ""
        time_text = (
            f"time: {most}about {self.total:,.0f} s by {self.timed} examples and a smaller side's eigenvectors ({parts})"
        )
        few = "; with fewer positions than its longest side is long the fit is sooner done the fewer directions they have, not known here"
        return time_text + few * self.is_few


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
        settings: Of the method, resolved.
        footprint: How the run is cut.
        positions: Per batch.
        timing: How much time it may take.
    """
    few = timed_sample(train, positions, plan.coverage.tracked, timing)
    curvature, fit, is_few = None, 0.0, False
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
        longest = max(max(unit.outputs, unit.inputs) for unit in plan.units)
        is_few = longest > SETTLED_SIDE and everything < longest
    runtime = Runtime(quiet=True)
    prepared = Prepared(task, plan, Dataset(list(few)), curvature, settings, positions, footprint, runtime)
    asking, scanning, may_stop = _solving_seconds(prepared, few, train, queries, timing) if queries else (0.0, 0.0, False)
    passes = footprint.chunks * footprint.passes
    return ExactSeconds(
        fit=fit,
        queries=asking,
        scan=scanning * positions_of(train.examples) / positions_of(few) * passes,
        timed=len(few),
        may_stop=may_stop,
        is_few=is_few,
    )


def training_seconds(
    task: AbstractTask, train: Dataset, run: Run, members: int, positions: int, timing: Timing = Timing()
) -> float:
    """What short runs beside a recorded one take, by one of its steps.

    Args:
        task: Model and loss.
        train: The training data.
        run: The recorded run.
        members: How many.
        positions: Per batch.
        timing: How much time it may take.
    """
    replay = Replay(task, train, run, max_positions=positions)
    steps = [step for number in range(members) for step in steps_of(run, number)]
    with replay.prepared_model():
        state = replay.load(0)
        _, seconds = timed(lambda: replay.gradients(state, steps[0]), timing)
    return seconds * len(steps)


def _solving_seconds(
    prepared: Prepared, few: Sequence[Example], train: Dataset, queries: int, timing: Timing
) -> tuple[float, float, bool]:
    """Seconds of all queries, and of a scan of the few examples with as many rows as are asked at once; whether a solver may stop before."""
    one_query, at_once = Dataset(list(few[:1])), min(queries, prepared.footprint.rows_at_once)
    rows, gradient_seconds = timed(lambda: query_gradients(prepared, one_query), timing)
    asking, may_stop, damping = gradient_seconds * queries, False, prepared.damping()
    if prepared.method.solver is None:
        # Written over, so that no time goes into a copy that a run does not make.
        (blocks, _), solve_seconds = timed(lambda: preconditioned(prepared, rows, damping, in_place=True), timing)
        asking += solve_seconds * queries
    else:
        assert damping is not None
        blocks = rows
        chosen = train.spread(getattr(prepared.settings, "examples", None) or len(train))
        products = products_of(prepared.settings, len(chosen))
        seconds = product_seconds(prepared, rows, damping, max(at_once, products.directions), timing)
        asking += prepared.footprint.chunks * seconds.total(products, at_once, positions_of(chosen.examples))
        may_stop = products.may_stop
    scanning = scan_seconds(
        prepared.task, prepared.plan, few, blocks, at_once, prepared.max_positions, prepared.query_rank, timing
    )
    return asking, scanning, may_stop
