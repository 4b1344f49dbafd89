"""Where an answer is looked for: all of the training data, or the shortlist of a store; the exact scores are the same.

Axes: Q queries, N training examples, K of them, O outputs, I inputs, U units, T positions.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from whence.capture import Plan, check_task
from whence.data import Dataset, Example
from whence.errors import BadInput
from whence.methods import exact_method_named
from whence.pipeline import query
from whence.pipeline.exact.footprint import Demand
from whence.pipeline.exact.scorer import FittedScorer, fit_scorer
from whence.pipeline.inputs import as_dataset
from whence.pipeline.stored.prepared import PreparedQuery
from whence.pipeline.stored.rerank import ExactStage
from whence.progress import meter
from whence.report import Hit, Hits
from whence.score import Parts, QueryBlock, by_label, exact_scores
from whence.settings import Damping, ExactSettings, Rerank, Runtime
from whence.store import Store
from whence.tasks import CausalLM
from whence.why.question import Question

__all__ = ["FromData", "FromStore", "Source", "check_store", "split_up"]


class Source(Protocol):
    """Training examples in the order of their rows, and exact scores of them."""

    @property
    def examples(self) -> Sequence[Example]:
        """The training examples."""
        ...

    @property
    def at_once(self) -> int:
        """Queries whose whole gradients fit."""
        ...

    @property
    def plan(self) -> Plan:
        """Units of the model."""
        ...

    @property
    def max_positions(self) -> int:
        """Positions per batch."""
        ...

    def blocks(self, queries: Sequence[Example]) -> Sequence[QueryBlock]:
        """Preconditioned queries, per unit of shape (Q, O, I): their products with gradients are scores."""
        ...

    def hits(self, example: Example, k: int) -> Hits:
        """The strongest examples on both sides for one query."""
        ...


@dataclass(frozen=True)
class FromData:
    """Every training example, by one pass over the data, under a curvature fitted on them.

    Args:
        scorer: Model, training data and curvature.
    """

    scorer: FittedScorer

    @classmethod
    def prepare(
        cls,
        task: CausalLM,
        train: Dataset | Iterable[Any],
        query: Question,
        settings: ExactSettings,
        runtime: Runtime,
    ) -> "FromData":
        """Check model and data and fit the curvature; arguments as in `whence.attribute`.

        Raises:
            BadInput: If the parts of the method's scores do not add up.
        """
        chosen = exact_method_named(settings.name)
        if chosen.solver is not None or chosen.needs_run:
            raise BadInput(
                found=f"method={settings.name!r} to explain a completion token by token",
                needed="a method whose inverse is a formula, so that the parts of a score add up to it",
                do="pass method='ekfac', 'kfac' or 'grad-dot-exact'",
            )
        rows = len(query.all_tokens)
        scorer = fit_scorer(task, train, settings, Demand(rows=rows, queries=rows, per_unit=True), runtime)
        check_task(task, scorer.prepared.plan, [query.whole], objective="measurement")
        return cls(scorer)

    @property
    def examples(self) -> Sequence[Example]:
        """The training data."""
        return self.scorer.prepared.train.examples

    @property
    def at_once(self) -> int:
        """Queries that fit into the memory that the run may take."""
        return self.scorer.prepared.footprint.rows_at_once

    @property
    def plan(self) -> Plan:
        """Units of the model."""
        return self.scorer.prepared.plan

    @property
    def max_positions(self) -> int:
        """Positions per batch."""
        return self.scorer.prepared.max_positions

    def blocks(self, queries: Sequence[Example]) -> Sequence[QueryBlock]:
        """Preconditioned queries."""
        return self.scorer.blocks(Dataset(queries))[0]

    def hits(self, example: Example, k: int) -> Hits:
        """Rank everything."""
        scorer = self.scorer
        with meter("scan", len(self.examples), quiet=scorer.prepared.quiet) as progress:
            scores_N = scorer.scores(self.examples, self.blocks([example]), progress).scores_QN[0]
        sides = []
        for sign in (1, -1):
            order = (sign * scores_N).argsort(descending=True, stable=True)[:k].tolist()
            sides.append(tuple(self._hit(row, float(scores_N[row])) for row in order if float(scores_N[row]) * sign > 0))
        return Hits(
            queries=(example.text,),
            proponents=(sides[0],),
            opponents=(sides[1],),
            measurements=(0.0,),
            unit=scorer.unit,
            method=scorer.label,
            num_examples=len(self.examples),
            notes=scorer.notes,
            measurement_unit=scorer.prepared.task.unit,
            stage="exact",
        )

    def _hit(self, row: int, score: float) -> Hit:
        example = self.examples[row]
        return Hit(example.id, row, score, example.source, example.text, example.span)


@dataclass(frozen=True)
class FromStore:
    """The shortlist of a store of aligned, scored by the EK-FAC inside it.

    Args:
        stage: The second stage, made ready.
        store: The store.
        train: The training data.
        shortlist: Rows kept of each side; None for the default of `whence.query`.
        examples: The training data in the order of the store's rows.
    """

    stage: ExactStage
    store: Store
    train: Dataset
    shortlist: int | None
    examples: Sequence[Example]

    @classmethod
    def prepare(
        cls,
        task: CausalLM,
        store: Store,
        train: Dataset | Iterable[Any],
        query: Question,
        *,
        shortlist: int | None,
        quiet: bool,
    ) -> "FromStore":
        """Match store, model and training data."""
        check_store(store)
        data = as_dataset(task, train)
        ready = PreparedQuery.prepare(store, task, Dataset([query.whole]), Damping(), quiet)
        stage = ExactStage.prepare(ready, data, quiet)
        return cls(stage, store, data, shortlist, stage.examples)

    @property
    def at_once(self) -> int:
        """Queries that fit into half of what is free."""
        return self.stage.at_once

    @property
    def plan(self) -> Plan:
        """Units of the model."""
        return self.stage.prepared.plan

    @property
    def max_positions(self) -> int:
        """Positions per batch."""
        return self.store.blueprint.batch_positions

    def blocks(self, queries: Sequence[Example]) -> Sequence[QueryBlock]:
        """Preconditioned queries."""
        return self.stage.blocks(queries)

    def hits(self, example: Example, k: int) -> Hits:
        """Ask in two stages."""
        return query(
            self.store,
            self.stage.prepared.task,
            Dataset([example]),
            k=k,
            rerank=Rerank(train=self.train, shortlist=self.shortlist),
            runtime=Runtime(quiet=self.stage.quiet),
        )


def check_store(store: Store) -> None:
    """Refuse a store that holds no curvature of the whole gradients.

    Args:
        store: The store.

    Raises:
        BadInput: If it is not of the method aligned.
    """
    if store.blueprint.method != "aligned":
        raise BadInput(
            found=f"a store of {store.blueprint.method} in {store.folder}",
            needed="one of aligned, which holds the EK-FAC that exact scores and their parts are made with",
            do="build one with method aligned, or leave the store out and go through the training data",
        )


def split_up(
    task: CausalLM, source: Source, queries: Sequence[Example], rows: Sequence[int], *, quiet: bool
) -> tuple[list[Tensor], Tensor]:
    """Scores of some training examples for some queries, part by part.

    Args:
        task: The language model.
        source: The training examples and the curvature.
        queries: One per completion token.
        rows: Which training examples.
        quiet: No progress on stderr.

    Returns:
        Per training example the parts of its tokens, by label position, shape (Q, T); and the parts of all units, shape (U, Q, K).
    """
    examples = [source.examples[row] for row in rows]
    tokens: list[list[Tensor]] = [[] for _ in rows]
    units = []
    size = min(source.at_once, len(queries))
    with meter("parts", len(examples) * -(-len(queries) // size), quiet=quiet) as progress:
        for start in range(0, len(queries), size):
            scores = exact_scores(
                task, source.plan, examples, source.blocks(queries[start : start + size]),
                max_positions=source.max_positions, progress=progress,
                parts=Parts(per_unit=True, tokens=range(len(examples))),
            )  # fmt: skip
            units.append(scores.units_UQN)
            for number, parts in enumerate(tokens):
                parts.append(by_label(scores.tokens[number]))
    return [torch.cat(parts) for parts in tokens], torch.cat(units, 1)
