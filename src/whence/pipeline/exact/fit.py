"""Fitting curvature on its own, ahead of the builds and queries that use it, by one process or several."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from whence.capture import available_bytes, check_task, forecast, plan_units
from whence.curvature import FitConfig, KroneckerCurvature, LabelChoice, Sharing, fit_ekfac
from whence.data import Dataset
from whence.distributed import Ranks
from whence.pipeline.exact.prepare import fit_data
from whence.pipeline.inputs import as_dataset
from whence.pipeline.stored.lockstep import stepping
from whence.progress import say
from whence.tasks import AbstractTask

__all__ = ["fit_curvature"]


def fit_curvature(
    task: AbstractTask,
    data: Dataset | Iterable[Any],
    folder: str | Path,
    *,
    fit_on: Dataset | Iterable[Any] | int | None = None,
    labels: LabelChoice = "auto",
    samples: int | None = None,
    seed: int = 0,
    sharing: Sharing = "expand",
    largest_side: int = 1024,
    batch_positions: int | None = None,
    quiet: bool = False,
    ranks: Ranks = Ranks(),
) -> KroneckerCurvature:
    """Fit EK-FAC and keep it in a folder, for `factors` of `attribute` and `build`.

    They take it if it is of the same model, data and settings. `attribute` fits on all of its training data unless `fit_on` says otherwise; a
    build of method aligned fits on 8,192 examples, or on all if there are fewer. A fit that stopped goes on after its last whole stage.

    Args:
        task: Model and likelihood.
        data: Training examples, as `task.prepare` takes them, or already prepared.
        folder: Where it is kept; all ranks have to see it.
        fit_on: Other data to fit on, or a number of the examples, spread evenly; None takes them all.
        labels: As in `attribute`.
        samples: As in `attribute`.
        seed: As in `attribute`.
        sharing: As in `attribute`.
        largest_side: As in `attribute`.
        batch_positions: Positions per batch; None measures what fits.
        quiet: No progress on stderr.
        ranks: Processes that fit it together, each on its own batches, their sums added up; `Ranks.launched()` under torchrun. The
            numbers are those of one process but for the order of sums. Those that a model is split over all do the whole fit, batch by batch
            at the same time.

    Returns:
        The curvature, not damped, on every process.
    """
    ranks = stepping(task.model, ranks)
    dataset = as_dataset(task, data)
    plan = plan_units(task)
    config = FitConfig(labels=labels, samples=samples, seed=seed, sharing=sharing, largest_side=largest_side)
    chosen = fit_data(task, dataset, fit_on)
    untouched = check_task(task, plan, chosen.examples)
    room = available_bytes(task.device) // (ranks.local_count if task.device.type == "cpu" else 1)
    positions = batch_positions or forecast(task, plan, chosen.examples, room_bytes=room).batch_positions
    if not quiet and ranks.rank == 0:
        say(f"{len(chosen):,} examples; {len(plan.units)} units of parameters; {plan.coverage}")
        if untouched:
            say(f"note: the loss does not reach {', '.join(untouched[:4])}{' and more' if len(untouched) > 4 else ''}")
    return fit_ekfac(
        task, plan, chosen, config,
        max_positions=positions, folder=folder, room_bytes=room // 2, quiet=quiet, ranks=ranks,
    )  # fmt: skip
