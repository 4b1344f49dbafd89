"""What a study can score: the rows of a store, or the training data itself.

Axes: Q queries, S documents of a shard.
"""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from whence.apply.study.kept_scores import Corpus
from whence.capture import check_task, frozen
from whence.curvature import FitConfig
from whence.data import Dataset, Example, batches
from whence.errors import BadInput
from whence.methods import exact_method_named, method_named
from whence.pipeline.exact.chunks import question
from whence.pipeline.exact.footprint import Demand
from whence.pipeline.exact.precondition import SolveConfig
from whence.pipeline.exact.prepare import prepare
from whence.pipeline.exact.query_gradients import query_blocks
from whence.pipeline.stored.prepared import Asked, hit_of
from whence.progress import Meter
from whence.report import Hit
from whence.score import Metric, exact_scores
from whence.score.scan import shard_scores
from whence.store import Store
from whence.tasks import AbstractTask

__all__ = ["corpus_of_data", "corpus_of_store", "values_of"]

# Of data without a store: what a stopped run loses at most, and few enough that scores of hundreds of queries are small.
_SHARD = 1024
_WHOLE, _CODE, _ROW = (
    "the norm of its gradient",
    "the norm of its code, which is the root of N x its self-influence as far as the code holds it",
    "the norm of its stored row",
)


def corpus_of_store(store: Store, task: AbstractTask, queries: Dataset, quiet: bool, **dampings: Any) -> Corpus:
    """The rows of a store, shard by shard.

    Args:
        store: The store.
        task: The model that it was built with.
        queries: The queries.
        quiet: No progress on stderr.
        **dampings: As in `whence.query`.
    """
    chosen = [dampings.get(name) for name in ("relative_damping", "absolute_damping", "damping_rule")]
    asked = Asked.prepare(store, task, queries, chosen[0], chosen[1], chosen[2], quiet)
    method = method_named(store.blueprint.method)
    is_code, is_cosine = method.encoder == "aligned", asked.norms_Q is not None

    def score(number: int, progress: Meter) -> tuple[Tensor, Tensor | None]:
        shard = dataclasses.replace(store, seals=store.seals[number : number + 1])
        ((_, scores_QS),) = shard_scores(shard, asked.ready, asked.norms_Q, roots=asked.roots)
        progress.advance(scores_QS.shape[1])
        return scores_QS, None if is_cosine else _row_norms(shard, is_code)

    return Corpus(
        tuple(seal.rows for seal in store.seals), score, store.examples, lambda row, value: hit_of(store, row, value),
        "" if is_cosine else _CODE if is_code else _ROW,
        asked.unit,
        asked.method if asked.damping is None else f"{asked.method}, {asked.damping.label}",
        asked.notes,
        {
            "store": store.blueprint.digest(),
            "documents": [[seal.data, seal.first, seal.rows] for seal in store.seals],
            "queries": queries.fingerprint,
            "damping": None if asked.damping is None else [asked.damping.relative, asked.damping.absolute],
        },
    )  # fmt: skip


def corpus_of_data(
    task: AbstractTask,
    train: Dataset,
    queries: Dataset,
    quiet: bool,
    *,
    method: str,
    relative_damping: float | None,
    absolute_damping: float | None,
    factors: Path,
    fit_on: int | None,
    query_rank: int | None,
    memory_gib: float | None,
) -> Corpus:
    """The training data itself, by whole gradients, a thousand documents at a time; the curvature is fitted here.

    Args:
        task: The model.
        train: The documents.
        queries: The queries.
        quiet: No progress on stderr.
        method: As in `whence.attribute`, like all the rest.
        relative_damping: Share of each unit's mean eigenvalue.
        absolute_damping: Value in units of the loss's curvature.
        factors: Folder of the fit.
        fit_on: Number of documents to fit on.
        query_rank: Singular directions kept of every query's gradient.
        memory_gib: Memory to take besides the model.

    Raises:
        BadInput: If the method has no use for a setting, goes back through a run, or not all queries fit in memory.
    """
    chosen = exact_method_named(method)
    if chosen.needs_run:
        raise BadInput(
            found=f"a study with method={method!r}", needed="a method of the final weights", do="pass method='ekfac'"
        )
    ready = prepare(
        task, train, method=method, config=FitConfig(), factors=None if chosen.factors is None else factors, fit_on=fit_on,
        batch_positions=None, quiet=quiet, memory_gib=memory_gib,
        demand=Demand(
            rows=len(queries), queries=len(queries), query_rank=query_rank, norms=True, vectors=SolveConfig().vectors(method)
        ),
    )  # fmt: skip
    at_once = ready.footprint.rows_at_once
    if at_once < len(queries):
        raise BadInput(
            found=f"{len(queries):,} queries, of which {at_once:,} fit in memory at once",
            needed="all of them, since the corpus is gone through once",
            do="keep less of each with query_rank=32 (--query-rank 32), give more memory, or ask fewer queries",
        )
    check_task(task, ready.plan, queries.examples, objective="measurement")
    damping = ready.damping(relative_damping, absolute_damping)
    made: list[tuple[list[Any], list[str]]] = []

    def blocks() -> list[Any]:
        if not made:  # a finished study has no use for them
            found, _, notes = query_blocks(ready, queries, damping, SolveConfig(), query_rank, None, None)
            made.append((found, notes))
        return made[0][0]

    metric = Metric.euclidean(ready.plan)
    wide = torch.promote_types(next(task.model.parameters()).dtype, torch.float32)

    def score(number: int, progress: Meter) -> tuple[Tensor, Tensor]:
        found = exact_scores(
            task, ready.plan, train.examples[number * _SHARD : (number + 1) * _SHARD], blocks(),
            max_positions=ready.max_positions, progress=progress, metric=metric,
        )  # fmt: skip
        assert found.squared_norms_N is not None
        return found.scores_QN.to(wide), found.squared_norms_N.sqrt().to(wide)

    def hit(row: int, value: float) -> Hit:
        example = train.examples[row]
        return Hit(example.id, row, value, example.source, example.text, example.span)

    is_product = ready.curvature is None
    settings = ("" if damping is None else damping.label, "" if query_rank is None else f"queries of rank {query_rank}")
    return Corpus(
        tuple(min(_SHARD, len(train) - start) for start in range(0, len(train), _SHARD)),
        score, lambda: map(_known, train.examples), hit, _WHOLE,
        f"inner product of gradients / {len(train):,}" if is_product else task.unit,
        ready.describe(*settings), ready.notes(damping),
        question(ready, queries, [damping], query_rank=query_rank, fit_on=fit_on, weights=task.weights, shard=_SHARD),
    )  # fmt: skip


def values_of(task: AbstractTask, queries: Dataset) -> tuple[Tensor, Tensor]:
    """Loss and measurement of each query, shape (Q,), float64."""
    found, order = [], []
    with frozen(task.model), torch.no_grad():
        for items in batches([example.length for example in queries.examples], max_positions=4096):
            batch = task.collate([queries.examples[item] for item in items])
            pair = task.loss(task.model, batch), task.measurement(task.model, batch)
            found.append(torch.stack([values.double().cpu() for values in pair]))
            order += items
    both = torch.cat(found, 1)[:, torch.tensor(order).argsort()]
    return both[0], both[1]


def _row_norms(shard: Store, is_code: bool) -> Tensor:
    ((_, tensors),) = shard.shards()
    if not is_code:
        norms_S = tensors["norms"]
        return norms_S * tensors["weights"].to(norms_S) if "weights" in tensors else norms_S
    squares = [shard.codec.decode(tensors, index).square().sum(1) for index in range(len(shard.blueprint.units))]
    return torch.stack(squares).sum(0).sqrt()


def _known(example: Example) -> dict[str, Any]:
    return {"id": example.id, "source": example.source}
