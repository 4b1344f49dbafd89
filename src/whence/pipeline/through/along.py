"""A method of the final weights along a recorded run: the mean of its scores at several checkpoints.

Axes: Q rows of a table, N training examples.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path

import torch
from torch import Tensor

from whence.data import Dataset
from whence.errors import BadInput
from whence.pipeline.exact.scorer import TableRequest, fit_scorer
from whence.progress import say
from whence.records import ScoreTable
from whence.settings import ASTRA, EKFAC, KFAC, PCG, Runtime
from whence.tasks import AbstractTask
from whence.unroll import Run, check_contents, open_run

__all__ = ["AlongSettings", "Point", "along_run", "as_part", "common_notes", "points_of"]

AlongSettings = EKFAC | KFAC | PCG | ASTRA


@dataclass(frozen=True)
class Point:
    """A checkpoint of a run that scores are made at.

    Args:
        step: Steps before it.
        weight: Its share of the run's learning rates; the weights of all points add up to 1.
        shares: By example id, its share of what the checkpoint's stage was trained on; they add up to 1.
    """

    step: int
    weight: float
    shares: Mapping[str, float]


def points_of(run: Run, count: int) -> list[Point]:
    """The checkpoints of a run that stand for all of it.

    The score along a run is the integral over training of the learning rate times the score at the weights of that moment. Each stage is cut
    into stretches with the same sum of learning rates, and the checkpoint nearest to the middle of a stretch stands for it.

    Args:
        run: The run.
        count: Checkpoints per stage, all where fewer were kept.

    Returns:
        In order of steps.

    Raises:
        BadInput: If no step had a learning rate.
    """
    done = [0.0, *accumulate(run.mean_rates())]
    if not done[-1]:
        raise BadInput(
            found="a run whose learning rates are all 0",
            needed="a step that moved the weights",
            do="leave run out, or pass the folder of another run",
        )
    points: list[Point] = []
    for start, stop in run.stages:
        inside = [step for step in run.checkpoints if start < step <= stop]
        shares = run.shares(start, stop)
        mass = done[stop] - done[start]
        if count >= len(inside):
            chosen = inside
        else:
            middles = [done[start] + mass * (part + 0.5) / count for part in range(count)]
            chosen = sorted({min(inside, key=lambda step: abs(done[step] - middle)) for middle in middles})
        # Each stands for the training that is nearer to it than to its neighbours.
        edges = [done[start], *((done[left] + done[right]) / 2 for left, right in pairwise(chosen))]
        edges.append(done[stop])
        parts = zip(chosen, pairwise(edges), strict=True)
        points += [Point(step, (right - left) / done[-1], shares) for step, (left, right) in parts]
    return points


def along_run(
    task: AbstractTask, train: Dataset, wanted: TableRequest, settings: AlongSettings, runtime: Runtime
) -> ScoreTable:
    """Scores of a method of the final weights, averaged over a run.

    score_i = N sum_k w_k s_ki score_i(weights k), with w_k the checkpoint's share of the learning rates and s_ki the example's share of what
    was met in that stage: 1/N in a run of one stage. Query, example and curvature are all of the same weights.

    Args:
        task: With the model that the run ended with.
        train: Training examples.
        wanted: The rows and parts.
        settings: The method, its run and how many of its checkpoints.
        runtime: How the job runs.

    Returns:
        The table.

    Raises:
        StoreMismatch: If the model or the data are not those of the run.
    """
    started = time.monotonic()
    assert settings.run is not None
    run = open_run(settings.run)
    unseen, notes = run.check(task.model, train), run.check_computed(task.model)
    notes += check_contents(task, train, run, may_differ=True).notes
    points = points_of(run, settings.checkpoints)
    folder = None if settings.factors is None else Path(settings.factors)
    tables: list[ScoreTable] = []
    for number, point in enumerate(points):
        if not runtime.is_quiet:
            say(f"checkpoint {number + 1} of {len(points)}: step {point.step:,} of {run.steps:,}")
        is_all = len(point.shares) == len(train)  # a run's examples are all in the data
        met = train if is_all else Dataset([example for example in train.examples if example.id in point.shares], train.skipped)
        own = replace(settings, run=None, factors=None if folder is None else folder / f"step-{point.step}")
        tokens = {train.examples[row].id for row in wanted.tokens}
        met_request = replace(wanted, tokens=[row for row, example in enumerate(met.examples) if example.id in tokens])
        with run.weights(task.model, [point.step], at="measurements"):
            table = fit_scorer(task, met, own, met_request.demand(own), runtime).table(met_request)
        tables.append(as_part(table, point, train.ids))
    steps = ", ".join(f"{point.step:,}" for point in points)
    notes = [
        f"mean over {len(points)} of {len(run.checkpoints) - 1} checkpoints of a recorded run of {run.steps:,} steps, after {steps} steps, "
        "weighted by the learning rate",
        *notes,
        *run.notes_of_data(unseen),
    ]
    first, seconds = tables[0], time.monotonic() - started
    return ScoreTable(
        torch.stack([table.scores for table in tables]).sum(0), first.query_ids, train.ids, first.unit,
        f"{first.method}, along a run", (*notes, *common_notes([f"after {point.step:,} steps" for point in points], tables)),
        parts=_sums(table.parts for table in tables), tokens=_sums(table.tokens for table in tables), seconds=seconds,
    )  # fmt: skip


def as_part(table: ScoreTable, point: Point, ids: Sequence[str]) -> ScoreTable:
    """A table at one checkpoint as its part of the sum along a run.

    Args:
        table: Scores of what the checkpoint's stage met.
        point: The checkpoint.
        ids: Of the sum's columns.
    """
    number_of = {name: number for number, name in enumerate(ids)}
    columns = torch.tensor([number_of[name] for name in table.train_ids])
    weights_N = torch.tensor(
        [point.weight * len(columns) * point.shares[name] for name in table.train_ids], dtype=torch.float64
    )

    def spread(scores_QN: Tensor) -> Tensor:
        found_QN = scores_QN.new_zeros(len(scores_QN), len(ids))
        found_QN[:, columns] = scores_QN * weights_N
        return found_QN

    own = {name: point.weight * len(columns) * point.shares[name] for name in table.tokens}
    return replace(
        table,
        scores=spread(table.scores),
        train_ids=tuple(ids),
        parts={name: spread(part_QN) for name, part_QN in table.parts.items()},
        tokens={name: parts_QT * own[name] for name, parts_QT in table.tokens.items()},
    )


def _sums(sums: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for tensors in sums:
        for name, value in tensors.items():
            total[name] = total[name] + value if name in total else value
    return total


def common_notes(names: Sequence[str], tables: Sequence[ScoreTable]) -> list[str]:
    """What was said of all tables once, the rest behind the name of its table.

    Args:
        names: Of the tables.
        tables: The tables.
    """
    common = [note for note in tables[0].notes if all(note in table.notes for table in tables)]
    own = [f"{name}: {note}" for name, table in zip(names, tables, strict=True) for note in table.notes if note not in common]
    return [*common, *own]
