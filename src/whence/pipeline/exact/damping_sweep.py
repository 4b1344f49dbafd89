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
from whence.settings import Damping, ExactSettings, Runtime, final_settings, records_only
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


@records_only(method=ExactSettings, runtime=Runtime)
def damping_sweep(
    task: AbstractTask,
    train: Dataset | Iterable[Any],
    queries: Dataset | Iterable[Any],
    relative_dampings: Sequence[float] = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0),
    *,
    method: str | ExactSettings = "ekfac",
    runtime: Runtime = Runtime(),
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

    Returns:
        A table per damping, and how much neighbours agree.

    Raises:
        BadInput: If there is no damping, one is given twice or in the method's own settings, or the method has none.
    """
    settings, values = final_settings(method), sorted(relative_dampings)
    if not values or len(set(values)) < len(values) or getattr(settings, "damping", None) != Damping():
        raise BadInput(
            found=f"relative_dampings={list(relative_dampings)} for {settings.name}",
            needed="different dampings, and a method with curvature that names none itself",
            do="correct them, or use `attribute` for a single one",
        )
    query_data, train = as_dataset(task, queries), as_dataset(task, train)
    scorer = fit_scorer(
        task, train, settings, Demand(rows=len(query_data), queries=len(query_data), dampings=len(values)), runtime
    )
    prepared = scorer.prepared
    dampings = [prepared.damping(Damping(relative=value)) for value in values]
    check_task(task, prepared.plan, query_data.examples, objective="measurement")

    def make(some: range) -> Chunk:
        rows = query_gradients(prepared, Dataset(query_data.examples[some.start : some.stop]))
        solved = [preconditioned(prepared, rows, damping) for damping in dampings]
        blocks = [torch.cat(stack) for stack in zip(*(block for block, _ in solved), strict=True)]
        with meter("scan", len(train), quiet=prepared.quiet) as progress:
            scores = scorer.scores(train.examples, blocks, progress)
        scores_DQN = scores.scores_QN.view(len(values), len(some), len(train))
        # A note per damping, empty without a solver.
        return {"scores_DQN": scores_DQN}, ["" if note is None else f"{prepared.method.solver}: {note}" for _, note in solved]

    chunks = in_chunks(prepared, make, lambda: question(prepared, query_data, dampings))
    scores_DQN = joined(chunks, "scores_DQN", 1)
    notes_of = [
        tuple(chunk_notes[index] for _, chunk_notes in chunks if chunk_notes and chunk_notes[index])
        for index in range(len(values))
    ]
    tables = {
        value: ScoreTable(
            scores_QN,
            query_data.ids,
            prepared.train.ids,
            task.unit,
            prepared.describe(damping.label if damping else ""),
            (*prepared.notes(damping), *notes, *task.query_notes(), *skipped_note("queries", query_data.skipped)),
        )
        for value, scores_QN, damping, notes in zip(values, scores_DQN, dampings, notes_of, strict=True)
    }
    agreement = spearman(scores_DQN[:-1], scores_DQN[1:]).mean(1)
    return DampingSweep(tables, tuple(agreement.tolist()))
