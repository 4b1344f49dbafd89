"""What an exact run would take, before it runs."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from whence.capture import Coverage, forecast, plan_units
from whence.data import Dataset
from whence.errors import BadInput
from whence.pipeline.exact.footprint import Demand, Footprint
from whence.pipeline.exact.measure import measure, room_bytes
from whence.pipeline.inputs import as_dataset
from whence.pipeline.through.along import AlongSettings, points_of
from whence.pipeline.through.cut import cut_for
from whence.settings import ExactSettings, Runtime, Unroll, exact_settings, split_runtime
from whence.tasks import AbstractTask
from whence.unroll import open_run

__all__ = ["ExactForecast", "forecast_exact"]


@dataclass(frozen=True)
class ExactForecast:
    """What an exact run would take.

    Args:
        coverage: What would be attributed.
        footprint: In memory and on disk, and how it would be cut.
    """

    coverage: Coverage
    footprint: Footprint

    def __str__(self) -> str:
        return f"{self.coverage}\n{self.footprint}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `--json` prints them; sizes in bytes."""
        found = self.footprint
        return {
            "tracked_parameters": self.coverage.tracked,
            "parameters": self.coverage.total,
            "peak_memory_bytes": found.peak,
            "available_memory_bytes": found.room,
            "passes_to_fit": found.fit.factor_passes + found.fit.value_passes,
            "passes_to_score": found.chunks * found.passes,
            **asdict(found),
        }


def forecast_exact(
    task: AbstractTask,
    train: Dataset | Iterable[Any],
    queries: int,
    *,
    method: str | ExactSettings = "ekfac",
    runtime: Runtime = Runtime(),
    **options: Any,
) -> ExactForecast:
    """Memory and disk of `attribute`, and into how many passes it would be cut; runs one example, writes nothing.

    Args:
        task: Model and per-example loss.
        train: Training examples.
        queries: How many.
        method: As in `attribute`, like all the rest.
        runtime: How the job would run.
        **options: As in `attribute`.

    Returns:
        The forecast; `forecast.footprint.refuse()` raises what the run would.

    Raises:
        BadInput: If the method differentiates the steps of a recorded run, which say what it takes.
    """
    runtime, rest = split_runtime(runtime, options)
    if method == "unroll" or isinstance(method, Unroll):
        raise BadInput(
            found="a forecast of unroll, which depends on the recorded run",
            needed="a method that goes back through no steps",
            do="start it: unroll says what it takes before anything long, and stops if that does not fit",
        )
    settings, dataset = exact_settings(method, rest), as_dataset(task, train)
    plan, room = plan_units(task), room_bytes(task, runtime.memory_gib)
    batch = forecast(task, plan, dataset.examples, room_bytes=room)
    cut = cut_for(settings)
    demand = Demand(rows=queries, queries=queries, query_rank=getattr(settings, "query_rank", None))
    demand = demand if cut is None else cut.demanded(demand)
    if isinstance(settings, AlongSettings) and settings.run is not None:
        points = points_of(open_run(settings.run), settings.checkpoints)
        demand = replace(demand, fits=len(points), passes=len(points))
    footprint = measure(
        task, plan, dataset.examples, settings, batch, demand, room=room, batch_positions=runtime.batch_positions
    )
    return ExactForecast(plan.coverage, footprint)
