"""How much the answer depends on the damping: one fit, one pass over the training data, many dampings.

Axes: Q queries, N training examples, D dampings.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from whence.capture import check_task
from whence.curvature import FitConfig, LabelChoice, Sharing
from whence.data import Dataset, skipped_note
from whence.errors import BadInput
from whence.evaluate import spearman
from whence.methods import exact_method_named
from whence.pipeline.exact.chunks import Chunk, in_chunks, joined, question
from whence.pipeline.exact.footprint import Demand
from whence.pipeline.exact.precondition import SolveConfig, preconditioned
from whence.pipeline.exact.prepare import prepare
from whence.pipeline.exact.query_gradients import query_gradients
from whence.pipeline.inputs import as_dataset
from whence.progress import meter
from whence.records import ScoreTable
from whence.score import exact_scores
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
    method: str = "ekfac",
    labels: LabelChoice = "auto",
    samples: int | None = None,
    seed: int = 0,
    sharing: Sharing = "expand",
    largest_side: int = 1024,
    factors: str | Path | None = None,
    fit_on: Dataset | Iterable[Any] | int | None = None,
    batch_positions: int | None = None,
    memory_gib: float | None = None,
    quiet: bool = False,
) -> DampingSweep:
    """Score with several dampings at the price of as many queries.

    Each query is preconditioned once per damping and all are scored together, so the training data is gone through once.

    Args:
        task: Model, per-example loss and measurement.
        train: Training examples.
        queries: Queries.
        relative_dampings: Shares of each unit's mean eigenvalue.
        method: One of `whence.EXACT_METHODS` with curvature.
        labels: As in `attribute`, like all the rest.
        samples: Draws where labels are drawn.
        seed: Of the draws.
        sharing: For positions that share a weight.
        largest_side: A longer side of a weight keeps the identity as its basis.
        factors: Folder where the curvature is kept.
        fit_on: What the curvature is fitted on.
        batch_positions: Positions per batch.
        memory_gib: Memory that the run may take besides the model.
        quiet: No progress on stderr.

    Returns:
        A table per damping, and how much neighbours agree.

    Raises:
        BadInput: If there is no damping, one is given twice, or the method has none.
    """
    values = sorted(relative_dampings)
    chosen = exact_method_named(method)
    if not values or len(set(values)) < len(values) or chosen.factors is None or chosen.needs_run:
        raise BadInput(
            found=f"relative_dampings={list(relative_dampings)} for {method}",
            needed="different dampings, and a method with curvature",
            do="correct them, or use `attribute` for a single one",
        )
    config = FitConfig(labels=labels, samples=samples, seed=seed, sharing=sharing, largest_side=largest_side)
    asked, train = as_dataset(task, queries), as_dataset(task, train)
    demand = Demand(rows=len(asked), queries=len(asked), dampings=len(values))
    ready = prepare(
        task, train, method=method, config=config, factors=factors, fit_on=fit_on, batch_positions=batch_positions, quiet=quiet,
        demand=demand, memory_gib=memory_gib,
    )  # fmt: skip
    dampings = [ready.damping(value, None) for value in values]
    check_task(task, ready.plan, asked.examples, objective="measurement")

    def make(some: range) -> Chunk:
        rows = query_gradients(ready, Dataset(asked.examples[some.start : some.stop]))
        solved = [preconditioned(ready, rows, damping, SolveConfig()) for damping in dampings]
        blocks = [torch.cat(stack) for stack in zip(*(found for found, _ in solved), strict=True)]
        with meter("scan", len(train), quiet=quiet) as progress:
            found = exact_scores(task, ready.plan, train.examples, blocks, max_positions=ready.max_positions, progress=progress)
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
