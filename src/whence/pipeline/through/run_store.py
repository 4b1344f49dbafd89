"""Stores along a recorded run: rows of several checkpoints, each with its own curvature, apart from each other; their scores are added up.

Axes: Q queries, N training examples.
"""

import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from whence.data import Dataset
from whence.errors import BadInput, StoreMismatch
from whence.pipeline.exact.cautions import measurements
from whence.pipeline.inputs import as_dataset, refuse_bare_model
from whence.pipeline.questions import questions_of
from whence.pipeline.stored.build import build
from whence.pipeline.stored.prepared import hit_of
from whence.pipeline.stored.query import facts_of, label_notes, score_table, title_of
from whence.pipeline.through.along import Point, as_part, common_notes, points_of
from whence.pipeline.through.along_record import AlongRecord, AlongStores, open_along, origin_of, write_along
from whence.progress import say
from whence.records import ScoreTable
from whence.report import Hit, Hits
from whence.score import believable_unit
from whence.settings import BuildConfig, Damping, Runtime, records_only
from whence.sharded_weights import refuse_sharded
from whence.store import Store, located
from whence.tasks import AbstractTask
from whence.unroll import check_contents, open_run

__all__ = ["build_along", "check_checkpoints_asked", "query_along", "score_along"]


@records_only(config=BuildConfig, runtime=Runtime)
def build_along(
    task: AbstractTask,
    data: Dataset | Iterable[Any],
    folder: str | Path,
    *,
    run: str | Path,
    checkpoints: int = 3,
    origin: dict[str, Any] | None = None,
    config: BuildConfig = BuildConfig(),
    runtime: Runtime = Runtime(),
) -> list[Store]:
    """Build a store at each of some checkpoints of a recorded run, of the examples that its stage met.

    Each is an ordinary store in a subfolder `step-K`, which `build` makes, goes on with and `inspect` shows. `query_along` and `score_along`
    add their scores up. `along.json` beside them says of which run they are.

    Args:
        task: With the model that the run ended with.
        data: Training examples, every one that the run met.
        folder: Where the stores go.
        run: Folder of the run.
        checkpoints: Per stage, as `whence.EKFAC(run=..., checkpoints=...)` chooses them.
        origin: As in `build`.
        config: What each store holds: its bytes are those of one.
        runtime: How the job runs.

    Returns:
        The stores, in order of steps.

    Raises:
        StoreMismatch: If the model or the data are not those of the run, or a folder holds a store of something else.
        BadInput: If `checkpoints` is not positive.
    """
    refuse_bare_model(task)
    check_checkpoints_asked(checkpoints)
    refuse_sharded(task.model, "stores along a run")
    folder, recorded, dataset = located(folder), open_run(run), as_dataset(task, data)
    unseen, notes = recorded.check(task.model, dataset), recorded.check_computed(task.model)
    notes += check_contents(task, dataset, recorded, may_differ=True).notes
    if unseen:
        notes.append(f"{len(unseen):,} examples that the run never met are in no store, the first {unseen[0]!r}")
    if notes and not runtime.is_quiet:
        say("\n".join(notes))
    points, stores = points_of(recorded, checkpoints), []
    record = AlongRecord.of(recorded, checkpoints, points, notes)
    write_along(folder, record)
    for number, (point, stored) in enumerate(zip(points, record.points, strict=True)):
        if not runtime.is_quiet:
            say(f"checkpoint {number + 1} of {len(points)}: step {point.step:,} of {recorded.steps:,}")
        met = Dataset([example for example in dataset.examples if example.id in point.shares], dataset.skipped)
        own = replace(config, factors=None if config.factors is None else Path(config.factors) / stored.name)
        where_from = {**(origin or {}), "run": origin_of(record, stored)}
        with recorded.weights(task.model, [point.step], at="measurements"):
            stores.append(build(task, met, folder / stored.name, origin=where_from, config=own, runtime=runtime))
    return stores


@records_only(damping=Damping, runtime=Runtime)
def score_along(
    stores: str | Path | AlongStores,
    task: AbstractTask,
    queries: Dataset | Iterable[Any],
    *,
    run: str | Path | None = None,
    damping: Damping = Damping(),
    runtime: Runtime = Runtime(),
) -> ScoreTable:
    """Scores of the stores that `build_along` made: score_i = N sum_k w_k s_ki score_i(store k), as EK-FAC along a run adds them up.

    w_k is the checkpoint's share of the learning rates and s_ki the example's share of what its stage met. Every query is measured at the
    weights of each store.

    Args:
        stores: Their folder, as in `build_along`.
        task: With the model that the run ended with.
        queries: The queries.
        run: Where the run is now; None for where it was.
        damping: As in `whence.query`.
        runtime: The same.

    Returns:
        A table with a column for every example that is in a store.

    Raises:
        BadInput: If a store or the run is missing.
        StoreMismatch: If a store or the run is another one, or of another model.
    """
    started = time.monotonic()
    refuse_bare_model(task)
    along = stores if isinstance(stores, AlongStores) else open_along(stores, ranks=runtime.ranks)
    recorded, query_data = along.record.opened_run(run), as_dataset(task, queries)
    run_notes, points = recorded.check_computed(task.model), points_of(recorded, along.record.checkpoints)
    stored = set(along.ids())
    columns = [name for name in recorded.ids if name in stored]  # without those that were deleted from all
    tables, parts = [], []
    for point, (_, store) in zip(points, along.pairs(), strict=True):
        _check_met(store, point)
        with recorded.weights(task.model, [point.step], at="measurements"):
            tables.append(score_table(store, task, query_data, damping=damping, runtime=runtime))
        parts.append(as_part(replace(tables[-1], scores=tables[-1].scores.double()), point, columns))
    first = tables[0]
    sizes = [(table.bytes_per_example or 0.0) * len(table.train_ids) for table in tables]
    steps = ", ".join(f"{point.step:,}" for point in points)
    note = f"sum over stores after {steps} of a recorded run's {recorded.steps:,} steps, weighted by the learning rate"
    at_points = common_notes([f"after {point.step:,} steps" for point in points], tables)
    return replace(
        first,
        scores=torch.stack([part.scores for part in parts]).sum(0),
        train_ids=tuple(columns),
        method=f"{first.method}, along a run",
        notes=(note, *dict.fromkeys([*run_notes, *along.record.notes]), *at_points),
        bytes_per_example=sum(sizes) / len(columns),
        seconds=time.monotonic() - started,
        provenance={},
    )


@records_only(damping=Damping, runtime=Runtime)
def query_along(
    stores: str | Path | AlongStores,
    task: AbstractTask,
    queries: Dataset | Iterable[Any],
    *,
    k: int = 10,
    run: str | Path | None = None,
    damping: Damping = Damping(),
    runtime: Runtime = Runtime(),
) -> Hits:
    """The training examples that raise and lower each query's measurement most, by the scores of `score_along`.

    All scores are in memory at once, 8 bytes for each query and example. What queries measure is shown at the run's end.

    Args:
        stores: As in `score_along`.
        task: With the model that the run ended with.
        queries: As in `whence.query`.
        k: Hits on each side at most.
        run: As in `score_along`.
        damping: As in `whence.query`.
        runtime: The same.

    Returns:
        Both tails per query; `row` numbers all examples, as the run met them first.

    Raises:
        BadInput: If k is not positive, or as in `score_along`.
        StoreMismatch: As in `score_along`.
    """
    if k < 1:
        raise BadInput(found=f"k={k}", needed="1 or more", do="ask for at least one hit")
    refuse_bare_model(task)
    along = stores if isinstance(stores, AlongStores) else open_along(stores, ranks=runtime.ranks)
    questions, records = questions_of(task, queries)
    table = score_along(along, task, questions, run=run, damping=damping, runtime=runtime)
    sides = [[_strongest(along, table, sign * scores_N, sign, k) for sign in (1.0, -1.0)] for scores_N in table.scores]
    first = along.stores[0]
    values_Q = measurements(task, questions, first.blueprint.batch_positions)
    shown = [[hit.score for side in both for hit in side] for both in sides]
    unit, sizes = believable_unit(table.unit, task, values_Q, shown, questions.examples)
    return Hits(
        queries=tuple(title_of(*pair) for pair in zip(questions.examples, records, strict=True)),
        proponents=tuple(up for up, _ in sides),
        opponents=tuple(down for _, down in sides),
        measurements=tuple(values_Q.tolist()),
        query_images=tuple(example.image for example in questions.examples),
        unit=unit,
        method=f"{first.blueprint.method}, along a run",
        num_examples=len(table.train_ids),
        notes=(*table.notes, *sizes, *label_notes(task, [(up, down) for up, down in sides])),
        measurement_unit=task.unit,
        facts=facts_of(task, first, questions.examples, records),
    )


def _check_met(store: Store, point: Point) -> None:
    """Refuse a store of other examples than its stage met.

    Raises:
        StoreMismatch: If it is one.
    """
    if foreign := sorted(set(store.ids()) - point.shares.keys()):
        raise StoreMismatch(
            found=f"{len(foreign):,} examples in {store.folder} that the stage of step {point.step:,} never met, the first {foreign[0]!r}",
            needed="a store of what it met",
            do="take it away and run the same `whence build --run` (build_along) again",
        )


def _strongest(along: AlongStores, table: ScoreTable, signed_N: Tensor, sign: float, k: int) -> tuple[Hit, ...]:
    """The hits on one side, strongest first; each as the last store has it."""
    top = signed_N.topk(min(k, len(signed_N)))
    wanted = {
        table.train_ids[column]: (column, sign * score)
        for score, column in zip(top.values.tolist(), top.indices.tolist(), strict=True)
        if score > 0
    }
    hits: dict[str, Hit] = {}
    for store in reversed(along.stores):
        rows = {row: name for row, name in enumerate(store.ids()) if name in wanted and name not in hits}
        for row, example in store.examples_of(rows).items():
            column, score = wanted[rows[row]]
            hits[rows[row]] = hit_of(store, column, score, example)
    return tuple(hits[name] for name in wanted)


def check_checkpoints_asked(checkpoints: int) -> None:
    """Refuse fewer checkpoints than one.

    Raises:
        BadInput: If there are.
    """
    if type(checkpoints) is not int or checkpoints < 1:
        raise BadInput(found=f"checkpoints={checkpoints!r}", needed="1 or more", do="leave it out for 3")
