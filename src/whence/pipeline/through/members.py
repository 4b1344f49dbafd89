"""A method of the final weights over several models of one recorded run: the mean of its scores at the run's end and at those of short runs.

Axes: Q rows of a table, N training examples.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from whence.capture import forecast, plan_units, put_back
from whence.data import Dataset
from whence.errors import BadInput
from whence.pipeline.exact.scorer import TableRequest, fit_scorer
from whence.pipeline.through.along import AlongSettings, common_notes
from whence.progress import meter, say
from whence.records import ScoreTable
from whence.settings import Runtime
from whence.tasks import AbstractTask
from whence.unroll import (
    FINAL_SHARE,
    Clipping,
    Replay,
    Run,
    ShortRun,
    check_contents,
    check_loss,
    clipping_of,
    open_run,
    short_run,
    steps_of,
)
from whence.unroll.sweep import dropout_of

__all__ = ["over_members"]


def over_members(
    task: AbstractTask, train: Dataset, wanted: TableRequest, settings: AlongSettings, runtime: Runtime
) -> ScoreTable:
    """Scores of a method of the final weights, averaged over them and over models that are trained here.

    score_i = mean over models of score_i(its weights), as in the ensembles of Park et al. (2023, section 3.2). Query, example and curvature
    are all of the same model.

    Args:
        task: With the model that the run ended with.
        train: Training examples.
        wanted: The rows and parts.
        settings: The method, its run and how many short runs.
        runtime: How the job runs.

    Returns:
        The table.

    Raises:
        StoreMismatch: If the model, the data or the loss are not those of the run.
        Unsupported: If the run cannot be made again, see `whence.unroll.Replay`.
        BadInput: If short runs learn too little, or there are several processes.
    """
    started = time.monotonic()
    assert settings.run is not None and settings.members is not None
    if runtime.ranks.count > 1:
        raise BadInput(
            found=f"members for {runtime.ranks.count} processes",
            needed="one process: each would train models that differ in their last bits",
            do="start it without torchrun, or leave members out",
        )
    run = open_run(settings.run)
    replay, notes = _checked_replay(task, train, run, runtime)
    clipping = clipping_of(replay)
    folder = None if settings.factors is None else Path(settings.factors)

    def scored(name: str) -> ScoreTable:
        own = replace(settings, run=None, members=None, factors=None if folder is None else folder / name)
        return fit_scorer(task, train, own, wanted.demand(own), runtime).table(wanted)

    shorts: list[ShortRun] = []
    for number in range(settings.members):
        if not runtime.is_quiet:
            say(f"short run {number + 1} of {settings.members}")
        with meter("short run", len(steps_of(run, number)), quiet=runtime.is_quiet) as progress:
            shorts.append(short_run(replay, number, clipping, progress))
    tables = [scored("final")]
    for number, short in enumerate(shorts):
        with _weights(task.model, short.weights):
            tables.append(scored(f"member-{number}"))
    first, names = tables[0], ["final weights", *(f"short run {number + 1}" for number in range(settings.members))]
    notes = [*_notes(replay, shorts, clipping), *notes, *common_notes(names, tables)]
    return ScoreTable(
        torch.stack([table.scores for table in tables]).mean(0), first.query_ids, train.ids, first.unit,
        f"{first.method}, {len(tables)} models of a run", tuple(notes),
        parts=_means([table.parts for table in tables]), tokens=_means([table.tokens for table in tables]),
        seconds=time.monotonic() - started,
    )  # fmt: skip


def _checked_replay(task: AbstractTask, train: Dataset, run: Run, runtime: Runtime) -> tuple[Replay, list[str]]:
    """The run as it is trained beside, and what a reader should know of its model and data.

    Raises:
        StoreMismatch: If the model, the data or the loss are not those of the run.
    """
    unseen, notes = run.check(task.model, train), run.check_computed(task.model)
    lengths = (example.length for example in train.examples)
    positions = runtime.positions(lengths) or forecast(task, plan_units(task), train.examples).batch_positions
    contents = check_contents(task, train, run)
    notes += contents.notes
    notes += check_loss(task, train, run, max_positions=positions, quiet=runtime.is_quiet, labels=contents.labels)
    if unseen:
        notes.append(f"{len(unseen):,} examples that the run never met are scored too, the first {unseen[0]!r}")
    return Replay(task, train, run, max_positions=positions), notes


@contextmanager
def _weights(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """A model with other weights for a while.

    Yields:
        Nothing.
    """
    parameters = dict(model.named_parameters())
    with put_back(model, [parameters[name] for name in weights]):
        with torch.no_grad():
            for name, value in weights.items():
                parameters[name].copy_(value)
        yield


def _means(of_tables: list[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([tensors[name] for tensors in of_tables]).mean(0) for name in of_tables[0]}


def _notes(replay: Replay, shorts: list[ShortRun], clipping: Clipping) -> list[str]:
    """How the further models came about."""
    run, losses = replay.run, ", ".join(f"{short.loss:.4g}" for short in shorts)
    of_run = sum(short.loss_of_run for short in shorts) / len(shorts)
    count = f"{len(shorts)} short run{'s' if len(shorts) > 1 else ''}"
    notes = [
        f"mean over the final weights and {count} of {shorts[0].steps:,} of a recorded run's {run.steps:,} steps, from "
        f"weights {FINAL_SHARE:.0%} final and the rest first ones, shuffled; losses at their ends {losses}, of the run {of_run:.4g}"
    ]
    if dropout := dropout_of(replay.task.model):
        notes.append(f"short runs were trained without dropout ({dropout})")
    notes += clipping.notes()
    later = [start for start, _ in run.stages[1:]]
    if unsure := [start for start in later if run.has_new_optimizer(start) is None]:
        notes.append(
            f"short runs begin the stages from steps {', '.join(map(str, unsure))} on with an empty optimizer: the record does not say "
            "whether the run did"
        )
    return notes
