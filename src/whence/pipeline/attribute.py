"""Attribution without a store: the whole gradient of every training example, one pass over the data per set of queries.

Axes: Q queries, G groups of queries, N training examples.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from whence.capture import check_task
from whence.curvature import Damping, FitConfig, LabelChoice, Sharing
from whence.data import Dataset, skipped_note
from whence.distributed import Ranks
from whence.errors import BadInput, UnknownOption
from whence.methods import exact_method_named
from whence.pipeline.exact.chunks import Chunk, in_chunks, joined, question
from whence.pipeline.exact.footprint import Demand
from whence.pipeline.exact.precondition import SolveConfig
from whence.pipeline.exact.prepare import Prepared, prepare
from whence.pipeline.exact.query_gradients import query_blocks
from whence.pipeline.inputs import as_dataset
from whence.pipeline.through.config import UnrollConfig
from whence.pipeline.through.exact_unroll import unrolled_table
from whence.pipeline.through.through_run import cut_for, refuse_unused, through_run
from whence.progress import meter, say
from whence.records import ScoreTable
from whence.score import ExactScores, Metric, exact_scores
from whence.sharded_weights import refuse_sharded
from whence.tasks import AbstractTask

__all__ = ["Normalize", "attribute", "self_influence"]

Normalize = Literal["cosine", "relatif", "theta-relatif"]


def attribute(
    task: AbstractTask,
    train: Dataset | Iterable[Any],
    queries: Dataset | Iterable[Any],
    *,
    method: str = "ekfac",
    relative_damping: float | None = None,
    absolute_damping: float | None = None,
    labels: LabelChoice = "auto",
    samples: int | None = None,
    seed: int = 0,
    sharing: Sharing = "expand",
    largest_side: int = 1024,
    factors: str | Path | None = None,
    fit_on: Dataset | Iterable[Any] | int | None = None,
    query_rank: int | None = None,
    groups: Mapping[str, Mapping[str, float]] | None = None,
    normalize: Normalize | None = None,
    solving: SolveConfig = SolveConfig(),
    run: str | Path | None = None,
    unrolling: UnrollConfig = UnrollConfig(),
    per_unit: bool = False,
    tokens_of: Sequence[str] = (),
    batch_positions: int | None = None,
    memory_gib: float | None = None,
    quiet: bool = False,
    ranks: Ranks = Ranks(),
) -> ScoreTable:
    """Every training example's score for every query, from whole gradients.

    score = -(1/N) grad m^T (H + damping)^-1 grad loss_i (Koh and Liang 2017, equation 2), H block-diagonal over units of parameters. More
    exact than asking a store and, with new queries, a pass over the data dearer.

    Args:
        task: Model, per-example loss and measurement.
        train: Training examples, as `task.prepare` takes them, or already prepared.
        queries: The same of the queries.
        method: One of `whence.EXACT_METHODS`.
        relative_damping: Share of each unit's mean eigenvalue.
        absolute_damping: Value in units of the per-example loss's curvature; without either .1 x mean for factors, the training recipe's
            value for solvers.
        labels: Over which labels the curvature is averaged: "auto", "exact", "sampled", or "dataset" for the empirical Fisher.
        samples: Draws where labels are drawn; None for 1.
        seed: Of the draws.
        sharing: "expand" or "reduce", for positions that share a weight, in the factors.
        largest_side: A longer side of a weight keeps the identity as its basis.
        factors: Folder where the curvature is kept: a fit that stopped goes on there, a finished one is used again.
        fit_on: Other data to fit the curvature on, or a number of training examples; None takes them all.
        query_rank: Singular directions kept of every query's gradient of a weight, 16 to 256: less memory; None keeps it whole.
        groups: By name, the weights of queries that are summed before the pass, by query id: {"toxic - safe": {"a": 1, "b": -1}}. The table
            then has one row per group.
        normalize: "cosine" divides by both norms in the inner product of the method; "relatif" by the root of N x the example's
            self-influence and "theta-relatif" by the norm of its (H + damping)^-1 grad (Barshan et al. 2020, section 4).
        solving: How far the solver of the method goes, if it has one.
        run: Folder of a run that `whence.Recorder` kept, for the methods "source", "astra-source", "tracin" and "unroll".
        unrolling: How that run is cut, and whether the table also has each segment's part.
        per_unit: Whether the table also has each unit's part of the scores.
        tokens_of: Ids of training examples of which the table also has each position's part.
        batch_positions: Positions per batch; None measures what fits.
        memory_gib: Memory that each process may take besides the model, in GiB; None for most of what is free. What does not fit is done in
            parts: queries a few at a time, one pass over the training data each, and, with `factors`, the fit a few units at a time.
        quiet: No progress on stderr.
        ranks: Processes that answer together; `Ranks.launched()` under torchrun. Each walks its part of the training data, in the fit, in
            every product of a solver and in the scan, and makes the gradients of all queries: as long as the model, they would take longer to
            send. The table is that of one process but for the order of sums, on every process.

    Returns:
        The table.

    Raises:
        BadInput: If a group or `tokens_of` names an unknown id, or the method has no norm to normalize with, no solver or run to set, needs
            a run, or goes through one and there are several processes.
        UnknownOption: If there is no such normalization.
    """
    if normalize not in (None, "cosine", "relatif", "theta-relatif"):
        raise UnknownOption(found=f"normalize={normalize!r}", needed="one of: cosine, relatif, theta-relatif", do="pick one")
    refuse_sharded(task.model, "whole gradients")
    started = time.monotonic()
    if ranks.count > 1 and exact_method_named(method).needs_run:
        raise BadInput(
            found=f"method={method!r} for {ranks.count} processes",
            needed="one process, since a recorded run is walked by its steps",
            do="start it without torchrun, or pass method='ekfac'",
        )
    quiet = quiet or ranks.rank > 0
    if solving != SolveConfig() and exact_method_named(method).solver is None:
        raise BadInput(
            found=f"settings of a solver for {method}",
            needed="a method with a solver",
            do="leave solving out, or pass method='pcg'",
        )
    unused = {"relative_damping": relative_damping, "absolute_damping": absolute_damping, "fit_on": fit_on}
    recorded = cut_for(method, run, unrolling, unused | {"query_rank": query_rank, "normalize": normalize})
    asked = as_dataset(task, queries)
    left_out = skipped_note("queries", asked.skipped)
    weights_GQ, names = _weights(asked, groups)
    train = as_dataset(task, train)
    unknown = sorted(set(tokens_of) - set(train.ids))
    if unknown:
        raise BadInput(found=f"tokens_of with {unknown[0]!r}", needed="ids of training examples", do="correct it")
    config = FitConfig(labels=labels, samples=samples, seed=seed, sharing=sharing, largest_side=largest_side)
    if recorded is not None and method == "unroll":
        refuse_unused(config, factors, unrolling, per_unit, tokens_of)
        return unrolled_table(
            task, train, asked, recorded.run, names=names, weights_RQ=weights_GQ,
            batch_positions=batch_positions, memory_gib=memory_gib, quiet=quiet,
        )  # fmt: skip
    demand = Demand(
        rows=len(names), queries=len(asked), query_rank=query_rank, is_summed=groups is not None,
        per_unit=per_unit, norms=normalize is not None, vectors=solving.vectors(method),
    )  # fmt: skip
    demand = demand if recorded is None else recorded.demanded(demand)
    with ranks.connected():
        ready = prepare(
            task, train, method=method, config=config, factors=factors, fit_on=fit_on, batch_positions=batch_positions, quiet=quiet,
            demand=demand, memory_gib=memory_gib, ranks=ranks,
        )  # fmt: skip
        check_task(task, ready.plan, asked.examples, objective="measurement")
        tokens = [place for place, name in enumerate(train.ids) if name in set(tokens_of)]
        if recorded is not None:
            found, said = through_run(
                ready, recorded, asked, config, solving, weights_GQ=weights_GQ, per_unit=per_unit, tokens=tokens
            )  # fmt: skip
            parts = recorded.names if unrolling.per_segment else None
            label = ready.describe(*recorded.settings)
            return _table(
                ready,
                found,
                None,
                names,
                None,
                label,
                (*ready.notes(None), *said, *left_out),
                time.monotonic() - started,
                parts,
            )
        damping = ready.damping(relative_damping, absolute_damping)
        metric = _metric(ready, damping, normalize)

        def make(rows: range) -> Chunk:
            some = asked if groups is not None else Dataset(asked.examples[rows.start : rows.stop])
            weights = None if weights_GQ is None else weights_GQ[rows.start : rows.stop]
            own = metric if normalize == "cosine" else None
            blocks, norms_Q, notes = query_blocks(ready, some, damping, solving, query_rank, weights, own)
            with meter("scan", -(-len(train) // ranks.count), quiet=quiet) as progress:
                found = exact_scores(
                    task, ready.plan, train.examples, blocks,
                    max_positions=ready.max_positions, progress=progress, per_unit=per_unit, tokens=tokens, ranks=ranks,
                    metric=metric if rows.start == 0 else None,  # norms are the same for all rows
                )  # fmt: skip
            return found.to_tensors() | ({} if norms_Q is None else {"norms_Q": norms_Q}), notes

        def identity() -> dict[str, Any]:
            return question(
                ready, asked, [damping],
                solving=asdict(solving), query_rank=query_rank, normalize=normalize, per_unit=per_unit, tokens=tokens,
                groups=None if weights_GQ is None else [*names, weights_GQ.tolist()],
            )  # fmt: skip

        chunks = in_chunks(ready, make, identity)
        found = ExactScores.joined([tensors for tensors, _ in chunks])
        norms_Q = joined(chunks, "norms_Q", 0) if normalize == "cosine" else None
        notes = (*ready.notes(damping), *(note for _, said in chunks for note in said), *left_out)
        if not quiet:
            for note in notes[1:]:
                say(note)
        settings = (
            "" if damping is None else damping.label,
            "" if query_rank is None else f"queries of rank {query_rank}",
            "" if normalize is None else f"{normalize}",
        )
        return _table(ready, found, norms_Q, names, normalize, ready.describe(*settings), notes, time.monotonic() - started)


def self_influence(
    task: AbstractTask,
    train: Dataset | Iterable[Any],
    *,
    method: str = "ekfac",
    relative_damping: float | None = None,
    absolute_damping: float | None = None,
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
    ranks: Ranks = Ranks(),
) -> ScoreTable:
    """What every training example does to itself: (1/N) grad loss^T (H + damping)^-1 grad loss.

    It is the example's score for the query that it is itself, so by how much its weight lowers its own loss. Large values mark mislabelled
    and atypical examples (Koh and Liang 2017, section 5.4).

    Args:
        task: Model and per-example loss.
        train: Training examples.
        method: As in `attribute`, like all the rest.
        relative_damping: Share of each unit's mean eigenvalue.
        absolute_damping: Value in units of the per-example loss's curvature.
        labels: Over which labels the curvature is averaged.
        samples: Draws where labels are drawn.
        seed: Of the draws.
        sharing: For positions that share a weight.
        largest_side: A longer side of a weight keeps the identity as its basis.
        factors: Folder where the curvature is kept.
        fit_on: What the curvature is fitted on.
        batch_positions: Positions per batch.
        memory_gib: Memory that the run may take besides the model.
        quiet: No progress on stderr.
        ranks: As in `attribute`.

    Returns:
        A table with one row.

    Raises:
        BadInput: If the method goes back through a run.
    """
    if exact_method_named(method).needs_run:
        raise BadInput(
            found=f"self-influence with method={method!r}",
            needed="a method with one inverse for query and example",
            do="pass method='ekfac', or attribute the training examples as queries",
        )
    quiet = quiet or ranks.rank > 0
    config = FitConfig(labels=labels, samples=samples, seed=seed, sharing=sharing, largest_side=largest_side)
    train = as_dataset(task, train)
    with ranks.connected():
        ready = prepare(
            task, train, method=method, config=config, factors=factors, fit_on=fit_on, batch_positions=batch_positions, quiet=quiet,
            demand=Demand(rows=0, queries=0, norms=True), memory_gib=memory_gib, ranks=ranks,
        )  # fmt: skip
        damping = ready.damping(relative_damping, absolute_damping)
        metric = _metric(ready, damping, "relatif")
        with meter("scan", -(-len(ready.train) // ranks.count), quiet=quiet) as progress:
            found = exact_scores(
                task,
                ready.plan,
                ready.train.examples,
                [],
                max_positions=ready.max_positions,
                progress=progress,
                metric=metric,
                ranks=ranks,
            )
    assert found.squared_norms_N is not None
    scores_1N = found.squared_norms_N[None] / len(ready.train)
    ids = ready.train.ids
    method_line = ready.describe("" if damping is None else damping.label)
    return ScoreTable(
        scores_1N, ("self-influence",), ids, "loss of the example itself, negated", method_line, ready.notes(damping)
    )


def _weights(queries: Dataset, groups: Mapping[str, Mapping[str, float]] | None) -> tuple[Tensor | None, tuple[str, ...]]:
    ids = queries.ids
    if groups is None:
        return None, ids
    if not groups or not all(isinstance(members, Mapping) and members for members in groups.values()):
        raise BadInput(
            found=f"groups={dict(groups)!r}"[:200],
            needed="by name of a group, weights by id of a query",
            do="such as groups={'a - b': {'a': 1, 'b': -1}}",
        )
    place = {name: number for number, name in enumerate(ids)}
    weights_GQ = torch.zeros(len(groups), len(ids), dtype=torch.float64)
    for row, (group, members) in enumerate(groups.items()):
        for name, weight in members.items():
            if name not in place:
                raise BadInput(
                    found=f"the group {group!r} with the query {name!r}",
                    needed=f"ids of queries, such as {ids[0]!r}",
                    do="correct it; queries without ids are numbered from 0",
                )
            weights_GQ[row, place[name]] = weight
    return weights_GQ, tuple(groups)


def _metric(ready: Prepared, damping: Damping | None, normalize: Normalize | None) -> Metric | None:
    if normalize is None:
        return None
    if ready.method.solver is not None:
        raise BadInput(
            found=f"a norm of every training gradient in the inverse of {ready.method.name}",
            needed="a method whose inverse is a formula, since a solver would have to run for each example",
            do="pass method='ekfac' or 'kfac'",
        )
    if ready.curvature is None or damping is None:
        return Metric.euclidean(ready.plan)
    curvature = ready.curvature.on(ready.task.device)
    return Metric.inverse(curvature, damping, power=2 if normalize == "theta-relatif" else 1)


def _table(
    ready: Prepared,
    found: ExactScores,
    norms_Q: Tensor | None,
    names: tuple[str, ...],
    normalize: Normalize | None,
    method: str,
    notes: tuple[str, ...],
    seconds: float,
    segments: Sequence[str] | None = None,
) -> ScoreTable:
    """The scores with their normalization, which scales every part alike."""
    ids = ready.train.ids
    scale_QN = torch.ones_like(found.scores_QN)
    is_gradient_product = ready.curvature is None and not ready.method.needs_run
    plain = ready.task.unit if not is_gradient_product else f"inner product of gradients / {len(ready.train):,}"
    unit = plain
    if found.squared_norms_N is not None:
        tiny = torch.finfo(torch.float64).tiny
        scale_QN = scale_QN / found.squared_norms_N.sqrt().clamp_min(tiny)
        unit = f"{plain}, over {'the root of N x its self-influence' if normalize == 'relatif' else 'the norm of its parameter change'}"
        if norms_Q is not None:
            scale_QN = scale_QN * len(ready.train) / norms_Q.clamp_min(tiny)[:, None]
            unit = "cosine"
    parts = {}
    if found.units_UQN is not None:
        labels = [known.name for known in ready.plan.units] if segments is None else segments
        parts = {name: part * scale_QN for name, part in zip(labels, found.units_UQN, strict=True)}
    tokens = {ids[place]: parts_QT * scale_QN[:, place, None] for place, parts_QT in sorted(found.tokens.items())}
    return ScoreTable(found.scores_QN * scale_QN, names, ids, unit, method, notes, parts, tokens, seconds=seconds)
