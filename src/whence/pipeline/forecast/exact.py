"""What an exact run would take, before it runs."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

from whence.capture import Coverage, forecast, plan_units
from whence.curvature import basis_notes, basis_plan, finished_stages
from whence.data import Dataset
from whence.errors import BadInput
from whence.methods import exact_method_named
from whence.pipeline.exact.footprint import Demand, Footprint
from whence.pipeline.exact.measure import measure, room_bytes
from whence.pipeline.exact.prepare import fit_data, sized
from whence.pipeline.forecast.exact_time import ExactSeconds, timed_exact, training_seconds
from whence.pipeline.forecast.timing import QUICK, WORTH, Timing, positions_of, timed_sample
from whence.pipeline.inputs import as_dataset
from whence.pipeline.through.along import AlongSettings, points_of
from whence.pipeline.through.cut import cut_for
from whence.settings import (
    ExactSettings,
    ReplaySettings,
    Runtime,
    TracIn,
    checked_settings,
    factors_folder,
    fit_of,
    records_only,
)
from whence.tasks import AbstractTask
from whence.unroll import open_run

__all__ = ["ExactForecast", "expected_seconds", "forecast_exact"]


@dataclass(frozen=True)
class ExactForecast:
    """What an exact run would take.

    Args:
        coverage: What would be attributed.
        footprint: In memory and on disk, and how it would be cut.
        cut_bases: Sides of units that are too long for all of their eigenvectors, and what they would have instead.
        seconds: Time, at most where a solver may stop before; None for SOURCE, whose segments it does not know, and for a fit in groups.
    """

    coverage: Coverage
    footprint: Footprint
    cut_bases: tuple[str, ...] = ()
    seconds: ExactSeconds | None = None

    def __str__(self) -> str:
        time_text = (
            "time: not told of segments of a run, nor of fits that memory cuts into groups"
            if self.seconds is None
            else str(self.seconds)
        )
        return "\n".join((str(self.coverage), str(self.footprint), time_text, *basis_notes(self.cut_bases)))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `--json` prints them; sizes in bytes."""
        footprint = self.footprint
        return {
            "tracked_parameters": self.coverage.tracked,
            "parameters": self.coverage.total,
            "peak_memory_bytes": footprint.peak,
            "available_memory_bytes": footprint.room,
            "passes_to_fit": footprint.fit.factor_passes + footprint.fit.value_passes,
            "cut_bases": list(self.cut_bases),
            "passes_to_score": footprint.chunks * footprint.passes,
            "seconds": None if self.seconds is None else {**asdict(self.seconds), "total": self.seconds.total},
            **asdict(footprint),
        }


@records_only(method=ExactSettings, runtime=Runtime)
def forecast_exact(
    task: AbstractTask,
    train: Dataset | Iterable[Any],
    queries: int,
    *,
    method: str | ExactSettings = "ekfac",
    runtime: Runtime = Runtime(),
) -> ExactForecast:
    """Memory, disk and time of `attribute`, and into how many passes it would be cut; runs a few examples, writes nothing.

    Args:
        task: Model and per-example loss.
        train: Training examples.
        queries: How many.
        method: As in `attribute`, like all the rest.
        runtime: How the job would run.

    Returns:
        The forecast; `forecast.footprint.refuse()` raises what the run would.

    Raises:
        BadInput: If the method differentiates the steps of a recorded run, which say what it takes.
    """
    name = method if isinstance(method, str) else method.name
    if name in (settings.name for settings in get_args(ReplaySettings)):
        raise BadInput(
            found=f"a forecast of {name}, which depends on the recorded run",
            needed="a method that goes back through no steps",
            do=f"start it: {name} says what it takes before anything long, and stops if that does not fit",
        )
    return _forecast(task, as_dataset(task, train), queries, checked_settings(method), runtime, Timing())


def expected_seconds(
    task: AbstractTask, train: Dataset, queries: int, settings: ExactSettings, runtime: Runtime
) -> float | None:
    """What a run that is about to start takes, timed on two examples; None where that is not known, or as soon done as told.

    Args:
        task: Model and per-example loss.
        train: Training examples.
        queries: How many.
        settings: Of the method.
        runtime: How the job runs.
    """
    tracked = plan_units(task).coverage.tracked
    if positions_of(train.examples) < WORTH * positions_of(timed_sample(train, 0, tracked, QUICK)):
        return None
    seconds = _forecast(task, train, queries, settings, runtime, QUICK).seconds
    if seconds is None or seconds.may_stop:
        return None
    folder = factors_folder(settings)
    return seconds.total - (seconds.fit if folder is not None and "values" in finished_stages(folder) else 0.0)


def _forecast(
    task: AbstractTask, dataset: Dataset, queries: int, settings: ExactSettings, runtime: Runtime, timing: Timing
) -> ExactForecast:
    plan, room = plan_units(task), room_bytes(task, runtime.memory_gib)
    batch = forecast(task, plan, dataset.examples, room_bytes=room)
    settings = sized(settings, task, plan, fit_data(task, dataset, getattr(settings, "fit_on", None)), room)
    cut = cut_for(settings)
    demand = Demand(rows=queries, queries=queries, query_rank=getattr(settings, "query_rank", None))
    demand = demand if cut is None else cut.demanded(demand)
    weights = 1
    if isinstance(settings, AlongSettings) and settings.run is not None:
        weights = 1 + (settings.members or 0)
        if settings.members is None:
            weights = len(points_of(open_run(settings.run), settings.checkpoints))
        demand = replace(demand, fits=weights, passes=weights)
    wanted = runtime.positions(example.length for example in dataset.examples)
    footprint = measure(task, plan, dataset.examples, settings, batch, demand, room=room, batch_positions=wanted)
    cut_bases = basis_plan(plan.units, fit_of(settings)) if exact_method_named(settings.name).factors is not None else []
    seconds = None
    if _is_timed(settings, footprint, demand.fits):
        positions = wanted or batch.batch_positions
        weights = demand.passes if isinstance(settings, TracIn) else weights
        seconds = timed_exact(task, plan, dataset, queries, settings, footprint, positions, timing).at_checkpoints(weights)
        if isinstance(settings, AlongSettings) and settings.run is not None and settings.members is not None:
            training = training_seconds(task, dataset, open_run(settings.run), settings.members, positions, timing)
            seconds = replace(seconds, training=training)
    return ExactForecast(plan.coverage, footprint, tuple(cut_bases), seconds)


def _is_timed(settings: ExactSettings, footprint: Footprint, fits: int) -> bool:
    """Whether time is a sum of passes, of which some can be had in memory."""
    has_segments = exact_method_named(settings.name).needs_run and not isinstance(settings, TracIn)
    in_memory = footprint.peak <= footprint.room and max(footprint.fit.factor_passes, footprint.fit.value_passes) <= fits
    return in_memory and not has_segments
