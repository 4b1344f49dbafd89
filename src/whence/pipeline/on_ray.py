"""Builds and fits by actors of a Ray cluster, each of which loads the model for itself and then is a rank like any other."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from whence.curvature import finished_stages
from whence.data import Dataset
from whence.distributed import Ranks
from whence.errors import BadInput, StoreMismatch
from whence.load import load_task
from whence.settings import BuildConfig, FitConfig, OnRay, Placement, Runtime
from whence.tasks import AbstractTask
from whence.workers import SharedJob, run_on_ray

__all__ = ["build_parts", "built_on_ray", "fitted_on_ray"]


@dataclass(frozen=True)
class _Named:
    """A model by the name under which any process loads it.

    Args:
        model: Folder, hub name or file.py:function.
        kind: Of the task.
        placement: Where it goes.
        weights: Digest of what it has to be.
        options: Of the task.
    """

    model: str
    kind: str
    placement: Placement
    weights: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> AbstractTask:
        """The task.

        Raises:
            StoreMismatch: If it has other weights.
        """
        task, _ = load_task(self.model, kind=self.kind, placement=self.placement, **self.options)
        if task.weights != self.weights:
            raise StoreMismatch(
                found=f"other weights in {self.model} than those of the task that was passed",
                needed=f"weights {self.weights[:8]}, not {task.weights[:8]}",
                do="save the model and load it again, so that actors find the same one",
            )
        return task


def _named(task: AbstractTask, origin: Mapping[str, Any] | None) -> _Named:
    """A task by the name that actors load it by.

    Raises:
        BadInput: If it has none.
    """
    if not origin or not isinstance(origin.get("model"), str):
        raise BadInput(
            found="a model that only this process has",
            needed="a name by which every actor loads it",
            do="save it, and pass task, origin = whence.load.load_task('path/to/model'), or of 'file.py:function', with origin=origin",
        )
    device = None if task.device.type == "cpu" else task.device.type
    placement = Placement(device=device, model_dtype=origin.get("dtype", "auto"))
    return _Named(origin["model"], origin.get("task", task.kind), placement, task.weights, origin.get("options", {}))


def _alone(runtime: Runtime) -> None:
    """Refuse ranks that would each start actors.

    Raises:
        BadInput: If there are some.
    """
    if runtime.ranks.count > 1:
        raise BadInput(
            found=f"ray for each of {runtime.ranks.count} ranks",
            needed="ranks, or one process with actors",
            do="leave ray out, or start one process without torchrun",
        )


def built_on_ray(
    task: AbstractTask,
    dataset: Dataset,
    folder: Path,
    *,
    append: bool,
    origin: Mapping[str, Any] | None,
    config: BuildConfig,
    runtime: Runtime,
    on: OnRay,
) -> None:
    """Have a store built by actors; arguments as of `whence.build`.

    Args:
        task: What all of them load, by the name in `origin`.
        dataset: Sent to all of them.
        folder: Of the store.
        append: Whether a store of other data gets these examples in addition.
        origin: Where the model is.
        config: What the store holds, with its anchors prepared.
        runtime: How this process shows it.
        on: Which actors.
    """
    _alone(runtime)
    model, folder = _named(task, origin), folder.absolute()
    if isinstance(config.factors, str | Path):
        config = replace(config, factors=Path(config.factors).absolute())
    job = SharedJob(
        run=partial(_build, model, dataset, folder, append, dict(origin or {}), config),
        folder=folder,
        talks=False,
        parts_done=partial(build_parts, folder),
        device=model.placement.device,
    )
    run_on_ray(job, on, quiet=runtime.quiet)


def _build(
    model: _Named, dataset: Dataset, folder: Path, append: bool, origin: dict[str, Any], config: BuildConfig, ranks: Ranks
) -> None:
    from whence.pipeline.stored.build import build

    build(model.load(), dataset, folder, append=append, origin=origin, config=config, runtime=Runtime(ranks=ranks))


def fitted_on_ray(
    task: AbstractTask,
    dataset: Dataset,
    folder: Path,
    *,
    origin: Mapping[str, Any] | None,
    fit: FitConfig,
    runtime: Runtime,
    on: OnRay,
) -> None:
    """Have curvature fitted by actors; arguments as of `whence.pipeline.fit_curvature`.

    Args:
        task: What all of them load, by the name in `origin`.
        dataset: What is fitted on, sent to all of them.
        folder: Of the fit.
        origin: Where the model is.
        fit: What the factors depend on.
        runtime: How this process shows it, and the batches of all.
        on: Which actors.
    """
    _alone(runtime)
    model, folder = _named(task, origin), folder.absolute()
    job = SharedJob(
        run=partial(_fit, model, dataset, folder, fit, runtime.batch_positions, runtime.batch_size),
        folder=folder,
        talks=True,
        parts_done=partial(finished_stages, folder),
        device=model.placement.device,
    )
    run_on_ray(job, on, quiet=runtime.quiet)


def _fit(
    model: _Named, dataset: Dataset, folder: Path, fit: FitConfig, positions: int | None, size: int | None, ranks: Ranks
) -> None:
    from whence.pipeline.exact.fit import fit_curvature

    runtime = Runtime(ranks=ranks, batch_positions=positions, batch_size=size)
    fit_curvature(model.load(), dataset, folder, fit=fit, runtime=runtime)


def build_parts(folder: Path) -> tuple[int, ...]:
    """What a build has finished in its folder: shards, files that rows share, stages of its fit."""
    seals, shared = ((folder / "shards").glob("*.json"), folder.glob("*.safetensors"))
    return sum(1 for _ in seals), sum(1 for _ in shared), len(finished_stages(folder / "factors"))
