"""Scores by the exact derivative of a recorded run, per training example or per group of them, and how smooth that run is.

Axes: Q queries, R rows of the table, N training examples, G groups of training examples.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from whence.capture import check_task, plan_units, with_weights
from whence.data import Dataset, Example, skipped_note
from whence.errors import BadInput, NonFinite, UnknownOption
from whence.pipeline.exact.measure import room_bytes
from whence.pipeline.inputs import as_dataset
from whence.progress import meter, say
from whence.records import ScoreTable
from whence.settings import Runtime, records_only
from whence.sharded_weights import refuse_sharded
from whence.tasks import AbstractTask
from whence.unroll import (
    Replay,
    Room,
    Run,
    Smoothness,
    Verified,
    check_contents,
    measure_sweep,
    metagradients,
    open_run,
    smoothness_of,
    tangents,
    trainable,
    verify,
)

__all__ = ["Mode", "group_effects", "smoothness", "unrolled_table"]

Mode = Literal["auto", "reverse", "forward"]

# Of the examples, taken out to see whether the run is smooth, half and then whole.
_SHARE, _H = 0.1, 0.5
# A query's gradient carried back through stable steps becomes shorter; momentum alone may lengthen it by a little.
_GROWTH = 10.0


def unrolled_table(
    task: AbstractTask,
    train: Dataset,
    queries: Dataset,
    run: Run,
    *,
    names: Sequence[str],
    weights_RQ: Tensor | None,
    runtime: Runtime,
    is_exact: bool,
) -> ScoreTable:
    """The derivative of every query's measurement by the weight of every training example in a recorded run (arXiv 2504.16430).

    Args:
        task: Model, per-example loss and measurement, with the weights that the run ended with.
        train: Every example that the run met.
        queries: The queries.
        run: The run.
        names: Of the rows.
        weights_RQ: Weights of the sums of queries to score instead of the queries.
        runtime: How the job runs; of several connected processes each goes back for its part of the rows.
        is_exact: Whether with the Hessian; otherwise outer products of the steps' gradients stand in its place, which is data value
            embedding (arXiv 2412.09538).

    Returns:
        The table.
    """
    started = time.monotonic()
    ranks, plan = runtime.ranks, None
    mine = ranks.part(len(names))
    if is_exact:
        replay, room, notes = _prepared(task, train, run, max(1, len(mine)), runtime)
    else:
        plan = plan_units(task)
        check_task(task, plan, train.examples)
        replay, room, notes = _prepared_by_gradients(task, train, run, max(1, len(mine)), runtime)
    scores_RN = torch.zeros(len(names), len(train), dtype=torch.float64)
    with replay.prepared_model():
        for start in range(mine.start, mine.stop, room.rows):
            rows = slice(start, min(start + room.rows, mine.stop))
            wanted = _wanted(replay, queries, weights_RQ, rows)
            with meter(f"unroll {rows.stop - mine.start:,} of {len(mine):,}", run.steps, quiet=runtime.is_quiet) as progress:
                scores_RN[rows] = metagradients(
                    replay, wanted, length=room.length, at_once=room.at_once, progress=progress, plan=plan
                )
    scores_RN = ranks.added_up({"scores": scores_RN})["scores"]  # a row is one rank's, and zero elsewhere
    growth = max(ranks.gathered(replay.growth))
    if growth > _GROWTH:
        notes.append(
            f"what is carried back grew to {growth:.2g} times its length: some step's outer products are too large for its learning rate, "
            "and what earlier steps are scored is no prediction; choose method='source' or 'unroll'"
        )
    _check_finite(scores_RN, names)
    return ScoreTable(
        scores_RN, tuple(names), train.ids, task.unit, f"{'unroll' if is_exact else 'dvemb'}, {run.steps:,} steps",
        (*notes, *task.query_notes(), *skipped_note("queries", queries.skipped)),
        seconds=time.monotonic() - started,
    )  # fmt: skip


@records_only(runtime=Runtime)
def group_effects(
    task: AbstractTask,
    train: Dataset | Iterable[Any],
    queries: Dataset | Iterable[Any],
    run: str | Path,
    *,
    by: Literal["source"] | Mapping[str, Sequence[str]] = "source",
    mode: Mode = "auto",
    runtime: Runtime = Runtime(),
) -> ScoreTable:
    """What whole groups of training examples do to every query: the exact derivative by a weight that a group's examples share.

    The same numbers as `attribute(..., method="unroll")` added up over each group, and cheaper where there are fewer groups than queries:
    then the derivative of the weights by each group's weight is carried forwards along the run (mode "forward", arXiv 2605.18814), and
    any number of queries costs one gradient each.

    Args:
        task: Model, per-example loss and measurement, with the weights that the run ended with.
        train: Every example that the run met.
        queries: What is asked about.
        run: Folder of a run that `whence.Recorder` kept.
        by: "source", the field of that name of the examples, or ids of examples by name of the group; an example is in one at most.
        mode: "forward" carries groups, "reverse" queries; "auto" whatever is fewer. Both give the same numbers.
        runtime: How the job runs.

    Returns:
        A table with one column per group.

    Raises:
        UnknownOption: If there is no such mode.
    """
    if mode not in ("auto", "reverse", "forward"):
        raise UnknownOption(found=f"mode={mode!r}", needed="one of: auto, reverse, forward", do="pick one")
    refuse_sharded(task.model, "a run's derivative")
    started = time.monotonic()
    train, query_data = as_dataset(task, train), as_dataset(task, queries)
    opened = open_run(run)
    names, groups_N = _groups(train, by)
    is_forward = mode == "forward" or (mode == "auto" and len(names) < len(query_data))
    rows = len(names) if is_forward else len(query_data)
    replay, room, notes = _prepared(task, train, opened, rows, runtime)
    parts = []
    with replay.prepared_model():
        for start in range(0, rows, room.rows):
            stop = min(start + room.rows, rows)
            with meter(f"unroll {stop:,} of {rows:,}", opened.steps, quiet=runtime.is_quiet) as progress:
                if is_forward:
                    own_N = torch.where((groups_N >= start) & (groups_N < stop), groups_N - start, -1)
                    tangent = tangents(replay, own_N, stop - start, at_once=room.at_once, progress=progress)
                    parts.append(_along(replay, query_data, tangent))
                else:
                    wanted = _wanted(replay, query_data, None, slice(start, stop))
                    found_RN = metagradients(replay, wanted, length=room.length, at_once=room.at_once, progress=progress)
                    members_NG = torch.nn.functional.one_hot(groups_N + 1, len(names) + 1)[:, 1:]
                    parts.append(found_RN @ members_NG.to(found_RN))
    scores_QG = torch.cat(parts, 1 if is_forward else 0)
    _check_finite(scores_QG, query_data.ids)
    return ScoreTable(
        scores_QG, query_data.ids, names, task.unit,
        f"unroll of {len(names):,} groups, {'forward' if is_forward else 'reverse'}, {opened.steps:,} steps",
        (*notes, *task.query_notes(), *skipped_note("queries", query_data.skipped)),
        seconds=time.monotonic() - started,
    )  # fmt: skip


@records_only(runtime=Runtime)
def smoothness(
    task: AbstractTask,
    train: Dataset | Iterable[Any],
    run: str | Path,
    *,
    share: float = _SHARE,
    h: float = _H,
    seed: int = 0,
    runtime: Runtime = Runtime(),
) -> Smoothness:
    """Whether the end of a recorded run depends on its data smoothly enough for scores of the method "unroll" to say anything.

    Three replays, with the weights of a random share of the examples at 1, 1 - h and 1 - 2 h: see `Smoothness`.

    Args:
        task: Model and per-example loss, with the weights that the run ended with.
        train: Every example that the run met.
        run: Folder of a run that `whence.Recorder` kept.
        share: Of the examples that the run met, how many are taken out.
        h: By how much their weight is lowered each time; 0.5 takes them out half and then whole.
        seed: Of the draw.
        runtime: How the job runs.

    Returns:
        The smoothness.

    Raises:
        BadInput: If `share` or `h` is out of range.
    """
    if not 0 < share <= 1 or not 0 < h <= 0.5:
        raise BadInput(
            found=f"share={share:g} and h={h:g}",
            needed="a share above 0 up to 1, and h above 0 up to 0.5, where the weights reach 0",
            do="correct them",
        )
    train, opened = as_dataset(task, train), open_run(run)
    replay, *_ = _verified(task, train, opened, 1, runtime)
    with replay.prepared_model(), meter("smoothness", 2 * opened.steps, quiet=runtime.is_quiet) as progress:
        return smoothness_of(replay, share=share, h=h, seed=seed, progress=progress)


def _prepared(
    task: AbstractTask,
    train: Dataset,
    run: Run,
    rows: int,
    runtime: Runtime,
) -> tuple[Replay, Room, list[str]]:
    """A replay that is the run, how the sweep is cut, and what a reader should know."""
    replay, about_data, (room, verified) = _verified(task, train, run, rows, runtime)
    with replay.prepared_model(), meter("smoothness", 2 * run.steps, quiet=runtime.is_quiet) as progress:
        smooth = smoothness_of(replay, share=_SHARE, h=_H, seed=0, progress=progress)
    notes = [f"exact derivative of {run.steps:,} steps, {verified}", str(smooth), *_padding_notes(task)]
    return replay, room, _with_data_notes(notes, about_data, train, run, runtime)


def _prepared_by_gradients(
    task: AbstractTask, train: Dataset, run: Run, rows: int, runtime: Runtime
) -> tuple[Replay, Room, list[str]]:
    """The same where outer products of gradients stand in the Hessian's place."""
    replay, about_data, (room, verified) = _verified(task, train, run, rows, runtime, is_twice=False)
    notes = [
        f"data value embeddings over {run.steps:,} steps, {verified}",
        "each step's Hessian is taken to be the outer products of its examples' gradients, which it is on average where the model predicts "
        "as the labels are; the optimizer's own steps are differentiated as they were",
    ]
    return replay, room, _with_data_notes(notes, about_data, train, run, runtime)


def _with_data_notes(
    notes: list[str], about_data: tuple[list[str], list[str]], train: Dataset, run: Run, runtime: Runtime
) -> list[str]:
    """Notes with those of the data, all of which but what was skipped or not met are also said now."""
    unseen, data_notes = about_data
    notes = [*notes, *data_notes]
    if not runtime.is_quiet:
        say("\n".join(notes))
    return [*notes, *skipped_note("training records", train.skipped), *run.notes_of_data(unseen)]


def _padding_notes(task: AbstractTask) -> list[str]:
    """Of tables whose row for padding is trained by another layer that has them, too, and then looked up: a pass back leaves that row out."""
    owners: dict[int, list[tuple[str, nn.Module]]] = {}
    for name, module in task.model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append((name, module))
    tables = [
        name
        for uses in owners.values()
        for name, module in uses[:1]
        if any(not isinstance(other, nn.Embedding) for _, other in uses)
        and any(isinstance(other, nn.Embedding) and other.padding_idx is not None for _, other in uses)
    ]
    return [
        f"{name!r} is looked up for padding, too, and trained elsewhere: what that row does there is left out"
        for name in tables
    ]


def _verified(
    task: AbstractTask, train: Dataset, run: Run, rows: int, runtime: Runtime, is_twice: bool = True
) -> tuple[Replay, tuple[list[str], list[str]], tuple[Room, Verified]]:
    """A replay that is the run; how the sweep is cut, and how near the replay comes."""
    unseen = run.check(task.model, train)
    notes = [*run.check_computed(task.model), *check_contents(task, train, run).notes]
    replay = Replay(task, train, run, max_positions=1)
    neighbours = runtime.ranks.local_count if task.device.type == "cpu" and runtime.memory_gib is None else 1
    with replay.prepared_model():
        room = measure_sweep(
            task,
            run,
            train.examples,
            rows,
            room_bytes=room_bytes(task, runtime.memory_gib) // neighbours,
            max_positions=runtime.positions(example.length for example in train.examples),
            is_twice=is_twice,
        )
        room.refuse()
        if not runtime.is_quiet:
            say(str(room))
        replay.max_positions, replay.max_examples = room.max_positions, room.max_examples
        with meter("replay", run.steps, quiet=runtime.is_quiet) as progress:
            verified = verify(replay, progress, is_twice=is_twice)
    return replay, (unseen, notes), (room, verified)


def _wanted(replay: Replay, queries: Dataset, weights_RQ: Tensor | None, rows: slice) -> dict[str, Tensor]:
    """Gradients of the table's rows by the final weights, by parameter, with the rows in front."""
    weights = _final(replay)
    if weights_RQ is None:
        weights_RQ = torch.eye(len(queries), dtype=torch.float64)
    chosen = weights_RQ[rows]
    total = {name: value.new_zeros(len(chosen), *value.shape) for name, value in weights.items()}
    for row in chosen.any(0).nonzero()[:, 0].tolist():
        gradients = _gradients(replay, weights, queries.examples[row])
        for name, gradient in zip(weights, gradients, strict=True):
            if gradient is not None:
                total[name] += chosen[:, row].to(gradient).view(-1, *[1] * gradient.ndim) * gradient
    return total


def _gradients(replay: Replay, weights: Mapping[str, Tensor], query: Example) -> Sequence[Tensor | None]:
    """Gradient of a query's measurement by each of the weights."""
    leaves, batch = trainable(weights, list(weights)), replay.task.collate([query])

    def run() -> Sequence[Tensor | None]:
        value = replay.task.measurement(replay.task.model, batch)
        return torch.autograd.grad(value.sum(), list(leaves.values()), allow_unused=True)

    with torch.enable_grad():
        return with_weights(replay.task.model, leaves, run)


def _along(replay: Replay, queries: Dataset, tangent: Mapping[str, Tensor]) -> Tensor:
    """Change of every query's measurement along changes of the final weights, shape (Q, G)."""
    products = []
    for start in range(len(queries)):
        wanted = _wanted(replay, queries, None, slice(start, start + 1))
        parts = [(tangent[name].double() * row.double()).reshape(len(tangent[name]), -1).sum(1) for name, row in wanted.items()]
        products.append(torch.stack(parts).sum(0).cpu())
    return torch.stack(products)


def _final(replay: Replay) -> dict[str, Tensor]:
    """The run's final weights, those that it has changed."""
    values = dict(replay.task.model.named_parameters())
    return {name: values[name].detach() for name in replay.names}


def _groups(train: Dataset, by: str | Mapping[str, Sequence[str]]) -> tuple[tuple[str, ...], Tensor]:
    """Names of the groups, and the group of every example, -1 for none.

    Raises:
        BadInput: If a group is empty or names an example that is not there or in two groups.
        UnknownOption: If the groups are said by another word than "source".
    """
    if isinstance(by, str):
        if by != "source":
            raise UnknownOption(found=f"by={by!r}", needed="'source', or ids of examples by name of the group", do="pick one")
        without = [example.id for example in train.examples if not example.source]
        if without:
            raise BadInput(
                found=f"{len(without):,} examples without a source, the first {without[0]!r}",
                needed="a source for every example",
                do="give the records a field 'source', or pass by={'name': [ids]}",
            )
        names = tuple(dict.fromkeys(example.source for example in train.examples))
        row_of = {name: row for row, name in enumerate(names)}
        return names, torch.tensor([row_of[example.source] for example in train.examples])
    if not by or not all(by.values()):
        raise BadInput(found=f"by={dict(by)!r}"[:200], needed="ids of examples by name of the group", do="fill it")
    row_of = {name: row for row, name in enumerate(train.ids)}
    groups_N = torch.full((len(train),), -1)
    for group, members in enumerate(by.values()):
        for name in members:
            if name not in row_of or groups_N[row_of[name]] not in (-1, group):
                raise BadInput(
                    found=f"the example {name!r} {'in two groups' if name in row_of else 'which is not in the training data'}",
                    needed="ids of training examples, each in one group at most",
                    do="correct it",
                )
            groups_N[row_of[name]] = group
    return tuple(by), groups_N


def _check_finite(scores: Tensor, names: Sequence[str]) -> None:
    """Refuse derivatives that have grown beyond all bounds.

    Raises:
        NonFinite: If one has.
    """
    wrong = ~scores.isfinite().all(1)
    if bool(wrong.any()):
        raise NonFinite(
            found=f"scores of {names[int(wrong.nonzero()[0])]!r} that are NaN or infinite",
            needed="a run whose derivative stays finite",
            do="train with a smaller learning rate or in float64, or choose method='source'",
        )
