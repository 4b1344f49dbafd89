"""What stores along a recorded run would take, before they are built."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whence.data import Dataset
from whence.pipeline.forecast.build import BuildForecast, forecast_build
from whence.pipeline.inputs import as_dataset
from whence.pipeline.through.along import points_of
from whence.pipeline.through.run_store import check_checkpoints_asked
from whence.settings import BuildConfig
from whence.store.disk import size_text
from whence.tasks import AbstractTask
from whence.unroll import open_run

__all__ = ["AlongForecast", "forecast_along"]


@dataclass(frozen=True)
class AlongForecast:
    """What stores along a run would take: one after the other, each as a build of its own.

    Args:
        steps: Of the checkpoints.
        builds: What each takes; those of one stage are of the same examples and so of the same forecast.
    """

    steps: tuple[int, ...]
    builds: tuple[BuildForecast, ...]

    @property
    def disk_bytes(self) -> int:
        """Of all stores."""
        return sum(build.disk_bytes.total for build in self.builds)

    @property
    def seconds(self) -> float:
        """Of all builds, without the curvature of finished rows, as in `BuildForecast`."""
        return sum(build.seconds + build.learning_seconds + build.fidelity_seconds for build in self.builds)

    def __str__(self) -> str:
        lines = [f"{len(self.steps)} stores along the run, one after the other"]
        for build in dict.fromkeys(map(id, self.builds)):
            same = [number for number, each in enumerate(self.builds) if id(each) == build]
            lines += [f"each after {', '.join(f'{self.steps[number]:,}' for number in same)} steps:", str(self.builds[same[0]])]
        return "\n".join([*lines, f"in all: disk {size_text(self.disk_bytes)}; time about {self.seconds:,.0f} s"])

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `--json` prints them."""
        stores = [{"step": step, **build.to_dict()} for step, build in zip(self.steps, self.builds, strict=True)]
        return {"stores": stores, "disk_bytes": self.disk_bytes, "seconds": self.seconds}


def forecast_along(
    task: AbstractTask, data: Dataset | Iterable[Any], config: BuildConfig, *, run: str | Path, checkpoints: int = 3
) -> AlongForecast:
    """Memory, disk and time of stores along a run; runs a few examples of each stage at the final weights, writes nothing.

    Args:
        task: With the model that the run ended with.
        data: As in `build_along`.
        config: The same.
        run: The same.
        checkpoints: The same.

    Returns:
        The forecast.

    Raises:
        BadInput: If `checkpoints` is not positive.
        StoreMismatch: If the model or the data are not those of the run.
    """
    check_checkpoints_asked(checkpoints)
    recorded, dataset = open_run(run), as_dataset(task, data)
    recorded.check(task.model, dataset)
    points, by_stage = points_of(recorded, checkpoints), {}
    for point in points:
        met = frozenset(point.shares)
        if met not in by_stage:
            examples = [example for example in dataset.examples if example.id in met]
            by_stage[met] = forecast_build(task, Dataset(examples, dataset.skipped), config)
    return AlongForecast(tuple(point.step for point in points), tuple(by_stage[frozenset(point.shares)] for point in points))
