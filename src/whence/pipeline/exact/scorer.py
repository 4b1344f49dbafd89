"""Curvature fitted or loaded once, then asked any number of times: tables, token parts, self-influence, blocks.

Axes: Q rows of a table, N training examples, G groups of queries.
"""

import dataclasses
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from whence.capture import check_task
from whence.curvature import ResolvedDamping
from whence.data import Dataset, Example, skipped_note
from whence.errors import BadInput
from whence.pipeline.exact.cautions import size_notes
from whence.pipeline.exact.chunks import Chunk, in_chunks, joined, question
from whence.pipeline.exact.footprint import Demand
from whence.pipeline.exact.prepare import Prepared, prepare
from whence.pipeline.exact.query_gradients import query_blocks
from whence.progress import Meter, meter, say
from whence.records import ScoreTable
from whence.score import ExactScores, Metric, Parts, QueryBlock, exact_scores
from whence.settings import ExactSettings, Runtime, refuse_along
from whence.tasks import AbstractTask, contrast_notes

__all__ = ["FittedScorer", "TableRequest", "as_table", "fit_scorer"]


@dataclass(frozen=True, kw_only=True)
class TableRequest:
    """The rows of a table, and which parts of its scores are kept.

    Args:
        queries: The queries.
        names: Of the rows.
        weights_GQ: Weights of the sums of queries that are the rows; None for the queries themselves.
        per_unit: Whether each unit's part is kept.
        tokens: Places of training examples of which each position's part is kept.
    """

    queries: Dataset
    names: tuple[str, ...]
    weights_GQ: Tensor | None = None
    per_unit: bool = False
    tokens: Sequence[int] = ()

    @classmethod
    def of(
        cls,
        queries: Dataset,
        train: Dataset,
        *,
        groups: Mapping[str, Mapping[str, float]] | None = None,
        per_unit: bool = False,
        tokens_of: Sequence[str] = (),
    ) -> "TableRequest":
        """By names, as people give them; see `whence.attribute`.

        Args:
            queries: The queries.
            train: The training data.
            groups: Sums of queries that are the rows.
            per_unit: Whether each unit's part is kept.
            tokens_of: Ids of training examples of which each position's part is kept.

        Raises:
            BadInput: If an id is unknown.
        """
        unknown = sorted(set(tokens_of) - set(train.ids))
        if unknown:
            raise BadInput(found=f"tokens_of with {unknown[0]!r}", needed="ids of training examples", do="correct it")
        tokens = [row for row, name in enumerate(train.ids) if name in set(tokens_of)]
        weights_GQ, names = _weights(queries, groups)
        return cls(queries=queries, names=names, weights_GQ=weights_GQ, per_unit=per_unit, tokens=tokens)

    def rows(self, some: range) -> tuple[Dataset, Tensor | None]:
        """The queries of some rows, and their weights."""
        if self.weights_GQ is not None:
            return self.queries, self.weights_GQ[some.start : some.stop]
        return Dataset(self.queries.examples[some.start : some.stop]), None

    def demand(self, settings: ExactSettings) -> Demand:
        """What it takes once the curvature is fitted."""
        return Demand(
            rows=len(self.names),
            queries=len(self.queries),
            query_rank=getattr(settings, "query_rank", None),
            is_summed=self.weights_GQ is not None,
            per_unit=self.per_unit,
            norms=getattr(settings, "normalize", None) is not None,
        )


@dataclass(frozen=True)
class FittedScorer:
    """A model, its training data and a curvature fitted on it, ready to be asked.

    Args:
        prepared: Checked inputs and the curvature.
        damping: What is added to its eigenvalues; None without curvature.
    """

    prepared: Prepared
    damping: ResolvedDamping | None

    @property
    def label(self) -> str:
        """The method with its settings, in a few words."""
        rank, normalize = self.prepared.query_rank, getattr(self.prepared.settings, "normalize", None)
        return self.prepared.describe(
            "" if self.damping is None else self.damping.label,
            "" if rank is None else f"queries of rank {rank}",
            normalize or "",
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What else a reader should know of the scores."""
        return self.prepared.notes(self.damping)

    @property
    def unit(self) -> str:
        """Of a score."""
        return unit_of(self.prepared)

    def blocks(self, queries: Dataset, weights_GQ: Tensor | None = None) -> tuple[list[QueryBlock], list[str]]:
        """Preconditioned queries: their products with gradients are scores.

        Args:
            queries: The queries.
            weights_GQ: Weights of sums of queries, to be scored instead of the queries.

        Returns:
            Per unit of the model, shape (Q, O, I) or its factors; and what a solver says of its work.
        """
        blocks, _, notes = query_blocks(self.prepared, queries, self.damping, weights_GQ)
        return blocks, notes

    def scores(
        self,
        examples: Sequence[Example],
        blocks: Sequence[QueryBlock],
        progress: Meter,
        *,
        per_unit: bool = False,
        tokens: Sequence[int] = (),
        metric: Metric | None = None,
    ) -> ExactScores:
        """Products of preconditioned queries with the gradients of any examples: one pass over them.

        Args:
            examples: Whose gradients.
            blocks: The queries, as `blocks` makes them.
            progress: Advanced by examples.
            per_unit: Whether each unit's part is kept.
            tokens: Places of examples of which each position's part is kept.
            metric: For the examples' norms.
        """
        return exact_scores(
            self.prepared.task, self.prepared.plan, examples, blocks,
            max_positions=self.prepared.max_positions, progress=progress, ranks=self.prepared.ranks,
            parts=Parts(per_unit=per_unit, tokens=tokens, metric=metric),
        )  # fmt: skip

    def table(self, wanted: TableRequest) -> ScoreTable:
        """Every training example's score for every row, a few rows at a time where memory is short.

        Args:
            wanted: The rows, which the fit was measured for.

        Returns:
            The table.
        """
        started, prepared = time.monotonic(), self.prepared
        check_task(prepared.task, prepared.plan, wanted.queries.examples, objective="measurement")
        normalize = getattr(prepared.settings, "normalize", None)
        metric = self._metric(normalize)

        def make(rows: range) -> Chunk:
            some, weights = wanted.rows(rows)
            own = metric if normalize == "cosine" else None
            blocks, norms_Q, notes = query_blocks(prepared, some, self.damping, weights, own)
            with meter("scan", -(-len(prepared.train) // prepared.ranks.count), quiet=prepared.quiet) as progress:
                scores = self.scores(
                    prepared.train.examples, blocks, progress, per_unit=wanted.per_unit, tokens=wanted.tokens,
                    metric=metric if rows.start == 0 else None,  # norms are the same for all rows
                )  # fmt: skip
            return scores.to_tensors() | ({} if norms_Q is None else {"norms_Q": norms_Q}), notes

        def identity() -> dict[str, Any]:
            return question(
                prepared, wanted.queries, [self.damping],
                per_unit=wanted.per_unit, tokens=list(wanted.tokens),
                groups=None if wanted.weights_GQ is None else [*wanted.names, wanted.weights_GQ.tolist()],
            )  # fmt: skip

        chunks = in_chunks(prepared, make, identity)
        scores = ExactScores.joined([tensors for tensors, _ in chunks])
        norms_Q = joined(chunks, "norms_Q", 0) if normalize == "cosine" else None
        left_out = (
            *prepared.task.query_notes(), *skipped_note("queries", wanted.queries.skipped), *contrast_notes(wanted.queries.examples),
        )  # fmt: skip
        sizes = size_notes(prepared, wanted.queries, scores.scores_QN, wanted.weights_GQ)
        notes = (*self.notes, *sizes, *(note for _, chunk_notes in chunks for note in chunk_notes), *left_out)
        if not prepared.quiet:
            for note in notes[1:]:
                say(note)
        seconds = time.monotonic() - started
        table = as_table(prepared, scores, wanted.names, label=self.label, notes=notes, seconds=seconds)
        return _normalized(table, scores, norms_Q, normalize)

    def self_influence(self) -> ScoreTable:
        """What every training example does to itself, (1/N) grad loss^T (H + damping)^-1 grad loss, as a table with one row."""
        prepared = self.prepared
        with meter("scan", -(-len(prepared.train) // prepared.ranks.count), quiet=prepared.quiet) as progress:
            scores = self.scores(prepared.train.examples, [], progress, metric=self._metric("relatif"))
        assert scores.squared_norms_N is not None
        return ScoreTable(
            scores.squared_norms_N[None] / len(prepared.train), ("self-influence",), prepared.train.ids,
            "loss of the example itself, negated", self.label, self.notes, values="self-influence",
        )  # fmt: skip

    def _metric(self, normalize: str | None) -> Metric | None:
        prepared = self.prepared
        if normalize is None:
            return None
        if prepared.method.solver is not None:
            raise BadInput(
                found=f"a norm of every training gradient in the inverse of {prepared.method.name}",
                needed="a method whose inverse is a formula, since a solver would have to run for each example",
                do="pass method='ekfac' or 'kfac'",
            )
        if prepared.curvature is None or self.damping is None:
            return Metric.euclidean(prepared.plan)
        curvature = prepared.curvature.on(prepared.task.device)
        return Metric.inverse(curvature, self.damping, power=2 if normalize == "theta-relatif" else 1)


def fit_scorer(
    task: AbstractTask,
    train: Dataset | Iterable[Any],
    settings: ExactSettings,
    demand: Demand,
    runtime: Runtime = Runtime(),
) -> FittedScorer:
    """Check the task on the training data, see that the run fits, and fit or load the curvature.

    Args:
        task: Model and loss.
        train: Training examples.
        settings: The method, one of the final weights.
        demand: What is asked afterwards, so that what cannot fit is refused before anything runs.
        runtime: How the job runs.

    Returns:
        What answers.
    """
    refuse_along(settings)
    prepared = prepare(task, train, settings, demand, runtime)
    return FittedScorer(prepared, prepared.damping())


def as_table(
    prepared: Prepared,
    scores: ExactScores,
    names: tuple[str, ...],
    *,
    label: str,
    notes: tuple[str, ...],
    seconds: float,
    part_names: Sequence[str] | None = None,
) -> ScoreTable:
    """Scores as a table.

    Args:
        prepared: Model and training data.
        scores: The scores and their parts.
        names: Of the rows.
        label: The method with its settings.
        notes: What else a reader should know.
        seconds: What it took.
        part_names: Of the parts; None for units.
    """
    ids = prepared.train.ids
    labels = [unit.name for unit in prepared.plan.units] if part_names is None else part_names
    parts = {} if scores.units_UQN is None else dict(zip(labels, scores.units_UQN, strict=True))
    tokens = {ids[row]: parts_QT for row, parts_QT in sorted(scores.tokens.items())}
    return ScoreTable(scores.scores_QN, names, ids, unit_of(prepared), label, notes, parts, tokens, seconds=seconds)


def unit_of(prepared: Prepared) -> str:
    """Of a score: the measurement's, or what a plain product of gradients is."""
    if prepared.settings.name == "less":
        return "cosine, times learning rates"
    if prepared.curvature is None and not prepared.method.needs_run:
        return f"inner product of gradients / {len(prepared.train):,}"
    return prepared.task.unit


def _normalized(table: ScoreTable, scores: ExactScores, norms_Q: Tensor | None, normalize: str | None) -> ScoreTable:
    """A table divided by norms, every part alike."""
    if scores.squared_norms_N is None:
        return table
    scale_QN = torch.ones_like(table.scores) * _inverse(scores.squared_norms_N.sqrt())
    by = "the root of N x its self-influence" if normalize == "relatif" else "the norm of its parameter change"
    unit = f"{table.unit}, over {by}"
    if norms_Q is not None:
        scale_QN = scale_QN * len(table.train_ids) * _inverse(norms_Q)[:, None]
        unit = "cosine"
    number_of = {name: number for number, name in enumerate(table.train_ids)}
    return dataclasses.replace(
        table,
        scores=table.scores * scale_QN,
        unit=unit,
        parts={name: part * scale_QN for name, part in table.parts.items()},
        tokens={name: parts_QT * scale_QN[:, number_of[name], None] for name, parts_QT in table.tokens.items()},
    )


def _inverse(norms: Tensor) -> Tensor:
    """One over each, and zero of a gradient that is zero: its scores are."""
    return torch.where(norms > 0, 1 / norms, 0.0)


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
    number_of = {name: number for number, name in enumerate(ids)}
    weights_GQ = torch.zeros(len(groups), len(ids), dtype=torch.float64)
    for row, (group, members) in enumerate(groups.items()):
        for name, weight in members.items():
            if name not in number_of:
                raise BadInput(
                    found=f"the group {group!r} with the query {name!r}",
                    needed=f"ids of queries, such as {ids[0]!r}",
                    do="correct it; queries without ids are numbered from 0",
                )
            weights_GQ[row, number_of[name]] = weight
    return weights_GQ, tuple(groups)
