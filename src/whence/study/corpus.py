"""What a study can score: the rows of a store, or the training data itself.

Axes: Q queries, S documents of a shard.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from whence.capture import check_task, frozen
from whence.data import Dataset, Example, batches
from whence.errors import BadInput
from whence.methods import method_named
from whence.pipeline.exact.chunks import question
from whence.pipeline.exact.footprint import Demand
from whence.pipeline.exact.scorer import fit_scorer
from whence.pipeline.inputs import as_dataset
from whence.pipeline.stored.prepared import PreparedQuery, hit_of
from whence.progress import Meter
from whence.report import Hit
from whence.score import Metric, QueryBlock
from whence.score.scan import shard_scores
from whence.settings import Damping, ExactSettings, Runtime
from whence.store import Store
from whence.study.kept_scores import Corpus
from whence.tasks import AbstractTask

__all__ = ["corpus_of_data", "corpus_of_store", "values_of"]

# Of data without a store: what a stopped run loses at most, and few enough that scores of hundreds of queries are small.
_SHARD = 1024
_WHOLE, _CODE, _ROW = (
    "the norm of its gradient",
    "the norm of its code, which is the root of N x its self-influence as far as the code holds it",
    "the norm of its stored row",
)


def corpus_of_store(store: Store, task: AbstractTask, queries: Dataset, damping: Damping, quiet: bool) -> Corpus:
    """The rows of a store, shard by shard.

    Args:
        store: The store.
        task: The model that it was built with.
        queries: The queries.
        damping: As in `whence.query`.
        quiet: No progress on stderr.
    """
    query = PreparedQuery.prepare(store, task, queries, damping, quiet)
    method = method_named(store.blueprint.method)
    is_code, is_cosine = method.encoder == "aligned", query.norms_Q is not None

    def score(number: int, progress: Meter) -> tuple[Tensor, Tensor | None]:
        shard = dataclasses.replace(store, seals=store.seals[number : number + 1])
        ((_, scores_QS),) = shard_scores(shard, query.preconditioned, query.norms_Q, roots=query.roots)
        progress.advance(scores_QS.shape[1])
        return scores_QS, None if is_cosine else _row_norms(shard, is_code)

    return Corpus(
        tuple(map(store.rows_of, store.seals)), score, store.examples, lambda row, value: hit_of(store, row, value),
        "" if is_cosine else _CODE if is_code else _ROW,
        query.unit,
        query.method if query.damping is None else f"{query.method}, {query.damping.label}",
        query.notes,
        {
            "store": store.blueprint.digest(),
            "documents": [
                [seal.data, seal.first, seal.rows, *store.deleted.get(seal.number, ())] for seal in store.seals
            ],
            "queries": queries.fingerprint,
            "damping": None if query.damping is None else [query.damping.relative, query.damping.absolute],
        },
    )  # fmt: skip


def corpus_of_data(task: AbstractTask, train: Dataset, queries: Dataset, settings: ExactSettings, runtime: Runtime) -> Corpus:
    """The training data itself, by whole gradients, a thousand documents at a time; the curvature is fitted here.

    Args:
        task: The model.
        train: The documents.
        queries: The queries.
        settings: The method.
        runtime: How the job runs.

    Raises:
        BadInput: If not all queries fit in memory.
    """
    query_rank = getattr(settings, "query_rank", None)
    demand = Demand(rows=len(queries), queries=len(queries), query_rank=query_rank, norms=True)
    scorer = fit_scorer(task, train, settings, demand, runtime)
    ready = scorer.prepared
    at_once = ready.footprint.rows_at_once
    if at_once < len(queries):
        raise BadInput(
            found=f"{len(queries):,} queries, of which {at_once:,} fit in memory at once",
            needed="all of them, since the corpus is gone through once",
            do="keep less of each with query_rank=32 in the method (--query-rank 32), give more memory, or ask fewer queries",
        )
    check_task(task, ready.plan, queries.examples, objective="measurement")
    query_blocks: list[Sequence[QueryBlock]] = []

    def blocks() -> Sequence[QueryBlock]:
        if not query_blocks:  # a finished study has no use for them
            query_blocks.append(scorer.blocks(queries)[0])
        return query_blocks[0]

    metric = Metric.euclidean(ready.plan)
    wide = torch.promote_types(next(task.model.parameters()).dtype, torch.float32)

    def score(number: int, progress: Meter) -> tuple[Tensor, Tensor]:
        some = train.examples[number * _SHARD : (number + 1) * _SHARD]
        scores = scorer.scores(some, blocks(), progress, metric=metric)
        assert scores.squared_norms_N is not None
        return scores.scores_QN.to(wide), scores.squared_norms_N.sqrt().to(wide)

    def hit(row: int, value: float) -> Hit:
        example = train.examples[row]
        return Hit(example.id, row, value, example.source, example.text, example.span)

    return Corpus(
        tuple(min(_SHARD, len(train) - start) for start in range(0, len(train), _SHARD)),
        score, lambda: map(_described, train.examples), hit, _WHOLE,
        scorer.unit, scorer.label, scorer.notes,
        question(
            ready, queries, [scorer.damping],
            fit_on=_fitted_on(getattr(settings, "fit_on", None), task), weights=task.weights, shard=_SHARD,
        ),
    )  # fmt: skip


def values_of(task: AbstractTask, queries: Dataset) -> tuple[Tensor, Tensor]:
    """Loss and measurement of each query, shape (Q,), float64."""
    values_by_batch, order = [], []
    with frozen(task.model), torch.no_grad():
        for items in batches([example.length for example in queries.examples], max_positions=4096):
            batch = task.collate([queries.examples[item] for item in items])
            pair = task.loss(task.model, batch), task.measurement(task.model, batch)
            values_by_batch.append(torch.stack([values.double().cpu() for values in pair]))
            order += items
    both = torch.cat(values_by_batch, 1)[:, torch.tensor(order).argsort()]
    return both[0], both[1]


def _row_norms(shard: Store, is_code: bool) -> Tensor:
    ((_, tensors),) = shard.shards()
    if not is_code:
        norms_S = tensors["norms"]
        return norms_S * tensors["weights"].to(norms_S) if "weights" in tensors else norms_S
    squares = [shard.codec.decode(tensors, index).square().sum(1) for index in range(len(shard.blueprint.units))]
    return torch.stack(squares).sum(0).sqrt()


def _fitted_on(fit_on: Any, task: AbstractTask) -> int | str | None:
    """What the curvature was fitted on, as JSON takes it."""
    return fit_on if fit_on is None or isinstance(fit_on, int) else as_dataset(task, fit_on).fingerprint


def _described(example: Example) -> dict[str, Any]:
    return {"id": example.id, "source": example.source, "text": example.text}
