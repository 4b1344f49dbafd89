"""Attribution without a store: the whole gradient of every training example, one pass over the data per set of queries."""

import dataclasses
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from whence.capture import check_task
from whence.data import Dataset, skipped_note
from whence.errors import BadInput, Unsupported
from whence.pipeline.exact.footprint import Demand
from whence.pipeline.exact.prepare import prepare
from whence.pipeline.exact.scorer import TableRequest, as_table, fit_scorer
from whence.pipeline.forecast.exact import expected_seconds
from whence.pipeline.inputs import as_dataset, refuse_bare_model
from whence.pipeline.through.along import AlongSettings, along_run
from whence.pipeline.through.cut import CutRun, cut_for
from whence.pipeline.through.exact_unroll import unrolled_table
from whence.pipeline.through.members import over_members
from whence.pipeline.through.through_run import through_run
from whence.plans import attribute_stages
from whence.progress import Stages, staged
from whence.records import ScoreTable
from whence.settings import ExactSettings, ReplaySettings, Runtime, Unroll, checked_settings, final_settings, records_only
from whence.sharded_weights import refuse_sharded
from whence.tasks import AbstractTask

__all__ = ["attribute", "self_influence"]


@records_only(method=ExactSettings, runtime=Runtime)
def attribute(
    task: AbstractTask,
    train: Dataset | Iterable[Any],
    queries: Dataset | Iterable[Any],
    *,
    method: str | ExactSettings = "ekfac",
    groups: Mapping[str, Mapping[str, float]] | None = None,
    per_unit: bool = False,
    tokens_of: Sequence[str] = (),
    runtime: Runtime = Runtime(),
) -> ScoreTable:
    """Every training example's score for every query, from whole gradients.

    score = -(1/N) grad m^T (H + damping)^-1 grad loss_i (Koh and Liang 2017, equation 2), H block-diagonal over units of parameters. More
    exact than asking a store and, with new queries, a pass over the data dearer.

    With `memory_gib` set, or little memory free, queries are done a few at a time, one pass over the training data each, and, with
    `factors`, the fit a few units at a time. Processes that answer together walk their part of the training data each, in the fit, in every
    product of a solver and in the scan, and make the gradients of all queries: as long as the model, they would take longer to send. The
    table is that of one process but for the order of sums, on every process.

    With a recorded run, ekfac, kfac, pcg and astra are averaged over checkpoints of it, or over further models trained by its steps
    (`members`), instead of asking the final weights alone; see `whence.EKFAC`.

    Args:
        task: Model, per-example loss and measurement.
        train: Training examples, as `task.prepare` takes them, or already prepared.
        queries: The same of the queries.
        method: Settings of an exact method, such as `whence.EKFAC(damping=whence.Damping(relative=0.1))`, or the name of one.
        groups: By name, the weights of queries that are summed before the pass, by query id: {"toxic - safe": {"a": 1, "b": -1}}. The table
            then has one row per group.
        per_unit: Whether the table also has each unit's part of the scores.
        tokens_of: Ids of training examples of which the table also has each position's part.
        runtime: How the job runs.

    Returns:
        The table.

    Raises:
        BadInput: If a group or `tokens_of` names an unknown id, or the method needs a run.
    """
    settings = checked_settings(method)
    refuse_bare_model(task)
    refuse_sharded(task.model, "whole gradients")
    with staged(attribute_stages(settings), quiet=runtime.is_quiet) as stages:
        query_data, dataset = as_dataset(task, queries), as_dataset(task, train)
        wanted = TableRequest.of(query_data, dataset, groups=groups, per_unit=per_unit, tokens_of=tokens_of)
        _check_tokens(task, wanted)
        return _table(task, dataset, wanted, settings, runtime, stages)


def _check_tokens(task: AbstractTask, wanted: TableRequest) -> None:
    """Refuse parts of examples where it is not known which is which.

    Raises:
        Unsupported: If the model sees an example in several calls.
    """
    if wanted.tokens and task.is_split:
        raise Unsupported(
            found="tokens_of for examples that the model sees in several parts (at_once)",
            needed="all of an example's draws together, to tell them apart",
            do="leave at_once out, with fewer draws where memory does not suffice",
        )


def _table(
    task: AbstractTask,
    dataset: Dataset,
    wanted: TableRequest,
    settings: ExactSettings,
    runtime: Runtime,
    stages: Stages,
) -> ScoreTable:
    started = time.monotonic()
    cut = cut_for(settings)
    with runtime.ranks.connected():
        if cut is not None:
            return _through(task, dataset, wanted, cut, runtime)
        if isinstance(settings, AlongSettings) and settings.members is not None:
            return over_members(task, dataset, wanted, settings, runtime)
        if isinstance(settings, AlongSettings) and settings.run is not None:
            return along_run(task, dataset, wanted, settings, runtime)
        if not runtime.is_quiet and runtime.ranks.count == 1:
            stages.expect(expected_seconds(task, dataset, len(wanted.names), settings, runtime))
        table = fit_scorer(task, dataset, settings, wanted.demand(settings), runtime).table(wanted)
        return dataclasses.replace(table, seconds=time.monotonic() - started)


@records_only(method=ExactSettings, runtime=Runtime)
def self_influence(
    task: AbstractTask,
    train: Dataset | Iterable[Any],
    *,
    method: str | ExactSettings = "ekfac",
    runtime: Runtime = Runtime(),
) -> ScoreTable:
    """What every training example does to itself: (1/N) grad loss^T (H + damping)^-1 grad loss.

    It is the example's score for the query that it is itself, so by how much its weight lowers its own loss. Large values mark mislabelled
    and atypical examples (Koh and Liang 2017, section 5.4).

    Args:
        task: Model and per-example loss.
        train: Training examples.
        method: As in `attribute`, like all the rest; one with a single inverse for query and example.
        runtime: How the job runs.

    Returns:
        A table with one row.
    """
    settings = final_settings(method)
    demand = Demand(rows=0, queries=0, norms=True)
    with runtime.ranks.connected():
        return fit_scorer(task, train, settings, demand, runtime).self_influence()


def _through(task: AbstractTask, train: Dataset, wanted: TableRequest, cut: CutRun, runtime: Runtime) -> ScoreTable:
    """The table of a method that goes back through a recorded run.

    Raises:
        BadInput: If parts are asked for that the method does not have.
    """
    started, settings = time.monotonic(), cut.settings
    if isinstance(settings, ReplaySettings):
        if wanted.per_unit or wanted.tokens:
            raise BadInput(
                found=f"{'per_unit' if wanted.per_unit else 'tokens_of'} for {settings.name}",
                needed="a run and nothing else: it has no segments, and scores whole examples",
                do="leave it out, or pass method='source'",
            )
        return unrolled_table(
            task, train, wanted.queries, cut.run, names=wanted.names, weights_RQ=wanted.weights_GQ, runtime=runtime,
            is_exact=isinstance(settings, Unroll),
        )  # fmt: skip
    prepared = prepare(task, train, settings, cut.demanded(wanted.demand(settings)), runtime)
    check_task(task, prepared.plan, wanted.queries.examples, objective="measurement")
    scores, notes = through_run(
        prepared, cut, wanted.queries, weights_GQ=wanted.weights_GQ, per_unit=wanted.per_unit, tokens=wanted.tokens
    )
    notes = (*prepared.notes(None), *notes, *task.query_notes(), *skipped_note("queries", wanted.queries.skipped))
    return as_table(
        prepared, scores, wanted.names,
        label=prepared.describe(*cut.labels), notes=notes, seconds=time.monotonic() - started,
        part_names=cut.names if cut.per_segment else None,
    )  # fmt: skip
