"""How much the answer depends on the damping: one fit, one pass over the training data, many dampings.

Axes: Q queries, N training examples, D dampings.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from whence.capture import check_task
from whence.data import Dataset, skipped_note
from whence.errors import BadInput
from whence.evaluate import spearman
from whence.pipeline.exact.chunks import Chunk, in_chunks, joined, question
from whence.pipeline.exact.footprint import Demand
from whence.pipeline.exact.precondition import preconditioned
from whence.pipeline.exact.query_gradients import query_gradients
from whence.pipeline.exact.scorer import fit_scorer
from whence.pipeline.inputs import as_dataset
from whence.progress import meter
from whence.records import ScoreTable
from whence.settings import Damping, ExactSettings, Runtime, final_settings, split_runtime
from whence.tasks import AbstractTask

__all__ = ["DampingSweep", "damping_sweep"]


@dataclass(frozen=True)
class DampingSweep:
    """Scores at several dampings.

    Args:
        tables: By relative damping, in rising order.
        agreement: Between each damping and the next, the mean over queries of the rank correlation of their scores (Spearman): near one
            where the choice does not matter.
    """

    tables: dict[float, ScoreTable]
    agreement: tuple[float, ...]


def damping_sweep(
    task: AbstractTask,
    train: Dataset | Iterable[Any],
    queries: Dataset | Iterable[Any],
    relative_dampings: Sequence[float] = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0),
    *,
    method: str | ExactSettings = "ekfac",
    runtime: Runtime = Runtime(),
    **options: Any,
) -> DampingSweep:
    """Score with several dampings at the price of as many queries.

    Each query is preconditioned once per damping and all are scored together, so the training data is gone through once.

    Args:
        task: Model, per-example loss and measurement.
        train: Training examples.
        queries: Queries.
        relative_dampings: Shares of each unit's mean eigenvalue.
        method: As in `attribute`, like all the rest; one with curvature.
        runtime: How the job runs.
        **options: As in `attribute`.

    Returns:
        A table per damping, and how much neighbours agree.

    Raises:
        BadInput: If there is no damping, one is given twice or in the method's own settings, or the method has none.
    """
    runtime, rest = split_runtime(runtime, options)
    settings, values = final_settings(method, rest), sorted(relative_dampings)
    if not values or len(set(values)) < len(values) or getattr(settings, "damping", None) != Damping():
        raise BadInput(
            found=f"relative_dampings={list(relative_dampings)} for {settings.name}",
            needed="different dampings, and a method with curvature that names none itself",
            do="correct them, or use `attribute` for a single one",
        )
    asked, train = as_dataset(task, queries), as_dataset(task, train)
    scorer = fit_scorer(task, train, settings, Demand(rows=len(asked), queries=len(asked), dampings=len(values)), runtime)
    ready = scorer.ready
    dampings = [ready.damping(Damping(relative=value)) for value in values]
    check_task(task, ready.plan, asked.examples, objective="measurement")

    def make(some: range) -> Chunk:
        rows = query_gradients(ready, Dataset(asked.examples[some.start : some.stop]))
        solved = [preconditioned(ready, rows, damping) for damping in dampings]
        blocks = [torch.cat(stack) for stack in zip(*(found for found, _ in solved), strict=True)]
        with meter("scan", len(train), quiet=ready.quiet) as progress:
            found = scorer.scores(train.examples, blocks, progress)
        scores_DQN = found.scores_QN.view(len(values), len(some), len(train))
        # A note per damping, empty without a solver.
        return {"scores_DQN": scores_DQN}, ["" if told is None else f"{ready.method.solver}: {told}" for _, told in solved]

    chunks = in_chunks(ready, make, lambda: question(ready, asked, dampings))
    scores_DQN = joined(chunks, "scores_DQN", 1)
    told = [tuple(said[place] for _, said in chunks if said and said[place]) for place in range(len(values))]
    tables = {
        value: ScoreTable(
            scores_QN,
            asked.ids,
            ready.train.ids,
            task.unit,
            ready.describe(damping.label if damping else ""),
            (*ready.notes(damping), *notes, *skipped_note("queries", asked.skipped)),
        )
        for value, scores_QN, damping, notes in zip(values, scores_DQN, dampings, told, strict=True)
    }
    agreement = spearman(scores_DQN[:-1], scores_DQN[1:]).mean(1)
    return DampingSweep(tables, tuple(agreement.tolist()))
