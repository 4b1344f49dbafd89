"""Stores along a recorded run: rows of several checkpoints, each with its own curvature, kept apart; their scores are added up.

Axes: Q queries, N training examples.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from whence.data import Dataset
from whence.errors import BadInput
from whence.pipeline.inputs import as_dataset, refuse_bare_model
from whence.pipeline.stored.build import build
from whence.pipeline.stored.query import score_table
from whence.pipeline.through.along import Point, as_part, common_notes, points_of
from whence.progress import say
from whence.records import ScoreTable
from whence.settings import BuildConfig, Damping, Runtime, records_only
from whence.store import Store
from whence.tasks import AbstractTask
from whence.unroll import check_contents, open_run

__all__ = ["build_along", "score_along"]


@records_only(config=BuildConfig, runtime=Runtime)
def build_along(
    task: AbstractTask,
    data: Dataset | Iterable[Any],
    folder: str | Path,
    *,
    run: str | Path,
    checkpoints: int = 3,
    config: BuildConfig = BuildConfig(),
    runtime: Runtime = Runtime(),
) -> list[Store]:
    """Build a store at each of some checkpoints of a recorded run, of the examples that its stage met.

    Each is an ordinary store in a subfolder `step-K`, which `build` makes, goes on with and `inspect` shows. `score_along` adds their scores
    up.

    Args:
        task: With the model that the run ended with.
        data: Training examples, every one that the run met.
        folder: Where the stores go.
        run: Folder of the run.
        checkpoints: Per stage, as `whence.EKFAC(run=..., checkpoints=...)` chooses them.
        config: What each store holds: its bytes are those of one.
        runtime: How the job runs.

    Returns:
        The stores, in order of steps.

    Raises:
        StoreMismatch: If the model or the data are not those of the run, or a folder holds a store of something else.
        BadInput: If `checkpoints` is not positive.
    """
    refuse_bare_model(task)
    _check_count(checkpoints)
    folder, recorded, dataset = Path(folder), open_run(run), as_dataset(task, data)
    unseen, notes = recorded.check(task.model, dataset), recorded.check_computed(task.model)
    notes += check_contents(task, dataset, recorded, may_differ=True).notes
    if unseen:
        notes.append(f"{len(unseen):,} examples that the run never met are in no store, the first {unseen[0]!r}")
    if notes and not runtime.is_quiet:
        say("\n".join(notes))
    points, stores = points_of(recorded, checkpoints), []
    for number, point in enumerate(points):
        if not runtime.is_quiet:
            say(f"checkpoint {number + 1} of {len(points)}: step {point.step:,} of {recorded.steps:,}")
        met = Dataset([example for example in dataset.examples if example.id in point.shares], dataset.skipped)
        factors = None if config.factors is None else Path(config.factors) / f"step-{point.step}"
        with recorded.weights(task.model, [point.step], at="measurements"):
            stores.append(
                build(task, met, folder / f"step-{point.step}", config=replace(config, factors=factors), runtime=runtime)
            )
    return stores


@records_only(damping=Damping, runtime=Runtime)
def score_along(
    folder: str | Path,
    task: AbstractTask,
    queries: Dataset | Iterable[Any],
    *,
    run: str | Path,
    checkpoints: int = 3,
    damping: Damping = Damping(),
    runtime: Runtime = Runtime(),
) -> ScoreTable:
    """Scores of the stores that `build_along` made: score_i = N sum_k w_k s_ki score_i(store k), as EK-FAC along a run adds them up.

    w_k is the checkpoint's share of the learning rates and s_ki the example's share of what its stage met. Every query is query_data at the
    weights of each store.

    Args:
        folder: As in `build_along`, like `run` and `checkpoints`.
        task: With the model that the run ended with.
        queries: The queries.
        run: Folder of the run.
        checkpoints: Per stage.
        damping: As in `whence.query`.
        runtime: The same.

    Returns:
        A table with a column for every example that the run met.

    Raises:
        BadInput: If a store is missing.
        StoreMismatch: If one is of another model.
    """
    started = time.monotonic()
    refuse_bare_model(task)
    _check_count(checkpoints)
    folder, recorded, query_data = Path(folder), open_run(run), as_dataset(task, queries)
    run_notes = recorded.check_computed(task.model)
    points = points_of(recorded, checkpoints)
    _check_finished(folder, points)
    tables, parts = [], []
    for point in points:
        with recorded.weights(task.model, [point.step], at="measurements"):
            tables.append(score_table(folder / f"step-{point.step}", task, query_data, damping=damping, runtime=runtime))
        wide = replace(tables[-1], scores=tables[-1].scores.double())
        parts.append(as_part(wide, point, recorded.ids))
    first = tables[0]
    sizes = [(table.bytes_per_example or 0.0) * len(table.train_ids) for table in tables]
    steps = ", ".join(f"{point.step:,}" for point in points)
    note = f"sum over stores after {steps} of a recorded run's {recorded.steps:,} steps, weighted by the learning rate"
    return replace(
        first,
        scores=torch.stack([part.scores for part in parts]).sum(0),
        train_ids=recorded.ids,
        method=f"{first.method}, along a run",
        notes=(note, *run_notes, *common_notes([f"after {point.step:,} steps" for point in points], tables)),
        bytes_per_example=sum(sizes) / len(recorded.ids),
        seconds=time.monotonic() - started,
        provenance={},
    )


def _check_finished(folder: Path, points: Sequence[Point]) -> None:
    """Refuse a folder that lacks a store.

    Raises:
        BadInput: If it does.
    """
    if missing := [point.step for point in points if not (folder / f"step-{point.step}" / "manifest.json").exists()]:
        raise BadInput(
            found=f"no finished store step-{missing[0]} in {folder}",
            needed=f"one at each of {len(points)} checkpoints of the run",
            do="call build_along with the same run and checkpoints",
        )


def _check_count(checkpoints: int) -> None:
    """Refuse fewer checkpoints than one.

    Raises:
        BadInput: If there are.
    """
    if type(checkpoints) is not int or checkpoints < 1:
        raise BadInput(found=f"checkpoints={checkpoints!r}", needed="1 or more", do="leave it out for 3")
