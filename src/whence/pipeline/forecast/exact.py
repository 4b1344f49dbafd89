"""What an exact run would take, before it runs."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from whence.capture import Coverage, forecast, plan_units
from whence.curvature import FitConfig
from whence.data import Dataset
from whence.errors import BadInput
from whence.methods import exact_method_named
from whence.pipeline.exact.footprint import Demand, Footprint
from whence.pipeline.exact.measure import measure, room_bytes
from whence.pipeline.exact.precondition import SolveConfig
from whence.pipeline.inputs import as_dataset
from whence.pipeline.through.config import UnrollConfig
from whence.pipeline.through.through_run import cut_for
from whence.tasks import AbstractTask

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
    method: str = "ekfac",
    largest_side: int = 1024,
    factors: str | Path | None = None,
    query_rank: int | None = None,
    batch_positions: int | None = None,
    memory_gib: float | None = None,
    run: str | Path | None = None,
    unrolling: UnrollConfig = UnrollConfig(),
) -> ExactForecast:
    """Memory and disk of `attribute`, and into how many passes it would be cut; runs one example, writes nothing.

    Args:
        task: Model and per-example loss.
        train: Training examples.
        queries: How many.
        method: As in `attribute`, like all the rest.
        largest_side: A longer side of a weight keeps the identity as its basis.
        factors: Folder where the curvature would be kept.
        query_rank: Singular directions kept of every query.
        batch_positions: Positions per batch.
        memory_gib: Memory that the run may take besides the model.
        run: Folder of the recorded run, for a method that goes back through one.
        unrolling: How that run is cut.

    Returns:
        The forecast; `forecast.footprint.refuse()` raises what the run would.

    Raises:
        BadInput: If the method differentiates the steps of a recorded run, which say what it takes.
    """
    chosen, dataset = exact_method_named(method), as_dataset(task, train)
    if method == "unroll":
        raise BadInput(
            found=f"a forecast of {method}, which depends on the recorded run",
            needed="a method that goes back through no steps",
            do=f"start it: {method} says what it takes before anything long, and stops if that does not fit",
        )
    config = FitConfig(largest_side=largest_side)
    plan, room = plan_units(task), room_bytes(task, memory_gib)
    batch = forecast(task, plan, dataset.examples, room_bytes=room)
    cut = cut_for(method, run, unrolling, {"query_rank": query_rank})
    demand = Demand(
        rows=queries, queries=queries, query_rank=query_rank, vectors=SolveConfig().vectors(method),
    )  # fmt: skip
    demand = demand if cut is None else cut.demanded(demand)
    found = measure(
        task, plan, dataset.examples, chosen, batch, demand,
        largest_side=config.largest_side, folder=None if factors is None else Path(factors), room=room,
        batch_positions=batch_positions,
    )  # fmt: skip
    return ExactForecast(plan.coverage, found)
