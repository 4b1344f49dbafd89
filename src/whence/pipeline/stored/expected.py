"""What is said as a build starts: how long it will take, where an earlier one stopped, and whether a store is the way."""

from pathlib import Path

from whence.capture import Plan
from whence.curvature import finished_stages
from whence.data import Dataset
from whence.methods import method_named
from whence.pipeline.forecast.stage_time import StageSeconds, stage_seconds
from whence.pipeline.stored.encoders import learned_file
from whence.pipeline.stored.learn_code import sized_code
from whence.progress import Stages, about, say
from whence.settings import BuildConfig
from whence.store import listed_files, read_seals, size_text
from whence.tasks import AbstractTask

__all__ = ["expect"]

# Times their own size that rows may share before it is said that there is another way.
_MUCH_SHARED = 16


def expect(
    stages: Stages, task: AbstractTask, plan: Plan, dataset: Dataset, config: BuildConfig, positions: int, folder: Path
) -> None:
    """Say how long the stages will take and where an earlier build stopped; nothing of a store that is finished.

    Args:
        stages: Of the build.
        task: Model and likelihood.
        plan: Its units.
        dataset: What the store is built from.
        config: The build's options.
        positions: Per batch.
        folder: The store.
    """
    seals = read_seals(folder)
    rows = sum(seal.rows for seal in seals.values() if seal.data == dataset.fingerprint)
    if listed_files(folder) is not None and rows == len(dataset):
        return
    first = _stopped_at(stages, config, folder, rows, len(dataset), bool(seals))
    factors = folder / "factors" if config.factors is None else Path(config.factors)
    begun = factors if (factors / "fit.json").exists() else None
    seconds = stage_seconds(task, plan, dataset, config, positions, begun)
    stages.expect(None if seconds is None else _left(stages, seconds, first or 0, 1 - rows / len(dataset)), first)
    if first is None and method_named(config.method).encoder == "aligned":
        _, size = sized_code(task, plan, dataset, config, begun)
        if size.shared_bytes > _MUCH_SHARED * len(dataset) * size.row_bytes:
            time = "" if seconds is None else f"{about(seconds.curvature + seconds.rows)}, "
            say(
                f"note: for a few questions about so few documents `whence attribute` is cheaper: {time}and nothing is kept; "
                f"what the rows of this store share takes {size_text(size.shared_bytes)}"
            )


def _stopped_at(stages: Stages, config: BuildConfig, folder: Path, rows: int, all_rows: int, has_seals: bool) -> int | None:
    """Number of the stage, from 0, at which an earlier build stopped; None if there was none."""
    method = method_named(config.method)
    name = learned_file(method)
    compressing = next(number for number, stage in enumerate(stages.stages) if stage.has("gradients"))
    if has_seals and rows == all_rows:
        return min(compressing + 1, len(stages.stages) - 1)
    if has_seals or (name is not None and (folder / name).exists()):
        return compressing
    finished = finished_stages(folder / "factors") if method.encoder == "aligned" else ()
    if not finished:
        return None
    return compressing - 1 if "values" in finished else 1


def _left(stages: Stages, seconds: StageSeconds, first: int, missing: float) -> float:
    """Seconds of the stages from one on, of the rows those that are missing."""
    by_meter = {
        "factors": seconds.curvature,
        "sample": seconds.code,
        "mask": seconds.code,
        "gradients": seconds.rows * missing,
        "fidelity": seconds.fidelity,
    }
    return sum(value for name, value in by_meter.items() if any(stage.has(name) for stage in stages.stages[first:]))
