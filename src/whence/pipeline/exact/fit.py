"""Fitting curvature on its own, ahead of the builds and queries that use it, by one process or several."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from whence.capture import Plan, available_bytes, check_task, forecast, plan_units
from whence.curvature import KroneckerCurvature, finished_stages, fit_ekfac
from whence.data import Dataset
from whence.pipeline.exact.prepare import fit_data, sized
from whence.pipeline.forecast.timing import QUICK, WORTH, positions_of, timed_fit, timed_sample
from whence.pipeline.inputs import as_dataset
from whence.pipeline.on_ray import fitted_on_ray
from whence.pipeline.stored.lockstep import stepping
from whence.plans import FIT_STAGES
from whence.progress import Stages, say, staged
from whence.settings import EKFAC, ExactSettings, FitConfig, OnRay, Runtime, factors_folder, fit_of, records_only
from whence.tasks import AbstractTask

__all__ = ["fit_curvature"]


@records_only(fit=FitConfig, runtime=Runtime, ray=OnRay)
def fit_curvature(
    task: AbstractTask,
    data: Dataset | Iterable[Any],
    folder: str | Path,
    *,
    fit_on: Dataset | Iterable[Any] | int | None = None,
    fit: FitConfig = FitConfig(),
    runtime: Runtime = Runtime(),
    origin: Mapping[str, Any] | None = None,
    ray: OnRay | None = None,
) -> KroneckerCurvature:
    """Fit EK-FAC and keep it in a folder, for `factors` of `attribute` and `build`.

    They take it if it is of the same model, data and settings. `attribute` fits on all of its training data unless `fit_on` says otherwise; a
    build of method aligned fits on 8,192 examples, or on all if there are fewer. A fit that stopped goes on after its last whole stage.

    Processes fit together, each on its own batches, their sums added up: the numbers are those of one process but for the order of sums.
    Those that a model is split over all do the whole fit, batch by batch at the same time.

    Args:
        task: Model and likelihood.
        data: Training examples, as `task.prepare` takes them, or already prepared.
        folder: Where it is kept; all ranks have to see it.
        fit_on: Other data to fit on, or a number of the examples, spread evenly; None takes them all.
        fit: What the factors depend on.
        runtime: How the job runs.
        origin: For ray, where the model came from, as `whence.load.load_task` gives it beside the task.
        ray: Actors of a Ray cluster that fit in place of this process, as such ranks; None for this process. Where one is lost all begin
            again after the last whole stage, as many as the cluster then has room for.

    Returns:
        The curvature, not damped, on every process.
    """
    settings = EKFAC(fit=fit, factors=Path(folder))
    with staged(FIT_STAGES, quiet=runtime.is_quiet) as stages:
        if ray is not None:
            dataset = as_dataset(task, data)
            data, fit_on = fit_data(task, dataset, fit_on), None
            fitted_on_ray(task, data, Path(folder), origin=origin, fit=fit, runtime=runtime, on=ray)
            # What is there now is only read.
            runtime = replace(runtime, quiet=True)
        return _fitted(task, data, Path(folder), fit_on, settings, runtime, stages)


def _fitted(
    task: AbstractTask,
    data: Dataset | Iterable[Any],
    folder: Path,
    fit_on: Dataset | Iterable[Any] | int | None,
    settings: ExactSettings,
    runtime: Runtime,
    stages: Stages,
) -> KroneckerCurvature:
    ranks = stepping(task.model, runtime.ranks)
    dataset = as_dataset(task, data)
    plan = plan_units(task)
    chosen = fit_data(task, dataset, fit_on)
    untouched = check_task(task, plan, chosen.examples)
    room = available_bytes(task.device) // (ranks.local_count if task.device.type == "cpu" else 1)
    wanted = runtime.positions(example.length for example in chosen.examples)
    positions = wanted or forecast(task, plan, chosen.examples, room_bytes=room).batch_positions
    if not runtime.is_quiet:
        say(f"{len(chosen):,} examples; {len(plan.units)} units of parameters; {plan.coverage}")
        if untouched:
            say(f"note: the loss does not reach {', '.join(untouched[:4])}{' and more' if len(untouched) > 4 else ''}")
    with ranks.connected():
        settings = ranks.of_first(sized(settings, task, plan, chosen, room))
        if not (runtime.is_quiet or stages.is_quiet) and ranks.count == 1:
            _expect(stages, task, plan, chosen, settings, positions)
        return fit_ekfac(
            task, plan, chosen, fit_of(settings),
            max_positions=positions, folder=folder, room_bytes=room // 2, quiet=runtime.is_quiet, ranks=ranks,
        )  # fmt: skip


def _expect(stages: Stages, task: AbstractTask, plan: Plan, data: Dataset, settings: ExactSettings, positions: int) -> None:
    """Say how long the fit will take, and at which stage an earlier one stopped; nothing of a finished one."""
    folder = factors_folder(settings)
    finished = () if folder is None else finished_stages(folder)
    if "values" in finished:
        return
    left = [name not in finished for name in ("factors", "bases", "values")]
    seconds, few = None, timed_sample(data, 0, plan.coverage.tracked, QUICK)
    if positions_of(data.examples) >= WORTH * positions_of(few):
        length = positions_of(data.examples)
        parts = timed_fit(task, plan, few, fit_of(settings), positions, everything=length, timing=QUICK)[0]
        takes = (parts.factors * length, parts.bases, parts.values * length)
        seconds = sum(part for part, is_left in zip(takes, left, strict=True) if is_left)
    stages.expect(seconds, 1 + left.index(True) if finished else None)
