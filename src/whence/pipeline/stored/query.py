"""Asking a store."""

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from whence.compress import BLOW_UP
from whence.data import Dataset, Example
from whence.distributed import Ranks
from whence.errors import BadInput
from whence.methods import method_named
from whence.pipeline.class_labels import class_labels
from whence.pipeline.inputs import autocast_named, refuse_bare_model
from whence.pipeline.questions import questions_of
from whence.pipeline.stored.indexed import index_note, indexed_top, open_index
from whence.pipeline.stored.prepared import PreparedQuery, PreparedStore, hit_of, token_notes
from whence.pipeline.stored.query_tokens import query_tokens_note, texts_of_tokens, with_query_tokens
from whence.pipeline.stored.rerank import ExactStage, Stage, check_same_rows, reranked
from whence.pipeline.stored.shortlist import recall_note, shortlist_wanted
from whence.progress import Meter, meter
from whence.records import ScoreTable
from whence.report import Hit, Hits, QueryFacts
from whence.score import Batching, Top, all_scores, believable_unit, mean_table, top_scores
from whence.settings import Damping, Indexed, Rerank, Runtime, records_only
from whence.store import Store, open_store
from whence.tasks import AbstractTask, Classification

__all__ = ["ensemble_table", "facts_of", "label_notes", "query", "score_table", "title_of"]


@records_only(rerank=Rerank, damping=Damping, store=Indexed, runtime=Runtime)
def query(
    store: Store | str | Path | Indexed,
    task: AbstractTask,
    queries: Dataset | Iterable[Any],
    *,
    k: int = 10,
    damping: Damping = Damping(),
    tokens: bool = False,
    rerank: Rerank | None = None,
    runtime: Runtime = Runtime(),
) -> Hits:
    """The training examples that raise and lower each query's measurement most.

    With `rerank=` in two stages: a scan of the store leaves a shortlist per query, and something better scores that. An example
    that the scan does not shortlist is not found.

    Args:
        store: A store or its folder; with an exported index a `whence.settings.Indexed`.
        task: The model that the store was built with.
        queries: As `task.prepare` takes them, or already prepared.
        k: Hits on each side at most; proponents have positive scores, opponents negative ones.
        damping: Of the store's curvature; the method's own share of the mean eigenvalue if nothing is said. It is the first stage's; a second
            store takes its method's own.
        tokens: Whether the text hits get a score per token, which runs the model on each hit again. They add up to the hit's score. A hit
            whose gradient, made again, scores less than half or more than twice of what its stored row does gets none, and a note says so.
            A language model's queries are split, too: each hit has a part for every scored token of the query, exact, for a gradient each.
        rerank: A second stage for the shortlist.
        runtime: How the job runs. Processes scan their own shards each; all of them return the answer, which is that of one process.

    Returns:
        Both tails per query.

    Raises:
        BadInput: If k is not positive, tokens are to be scored that the task cannot place in a text, ranks are given workers, or either an
            index.
    """
    if k < 1:
        raise BadInput(found=f"k={k}", needed="1 or more", do="ask for at least one hit")
    ranks, quiet = runtime.ranks, runtime.is_quiet
    folder = store.index if isinstance(store, Indexed) else None
    source: Store | str | Path = store.store if isinstance(store, Indexed) else store
    if folder is not None and (runtime.workers is not None or ranks.count > 1):
        raise BadInput(
            found="an index for workers or several ranks", needed="one process, which asks the index", do="leave them out"
        )
    store = source if isinstance(source, Store) else open_store(source, ranks=ranks)
    index = None if folder is None else open_index(folder, store)
    size = k if rerank is None else rerank.rows_kept(k, len(store), shortlist_wanted(store))
    refuse_bare_model(task)
    ready = PreparedStore.load(store, task, damping)  # another model is refused before its records are read
    questions, records = questions_of(task, queries)
    ready.check(questions)
    wanted = runtime.positions(example.length for example in questions.examples)
    prepared = ready.prepare(questions, quiet=quiet, positions=wanted)
    if tokens and not any(example.token_spans is not None for example in prepared.dataset.examples):
        raise BadInput(
            found="tokens=True for queries without token positions",
            needed="queries with text, a language model and a fast tokenizer",
            do="leave tokens out",
        )
    stage: Stage | None = None
    if rerank is not None:
        is_exact = rerank.by == "exact"
        stage = ExactStage.prepare(prepared, rerank.train, quiet) if is_exact else _larger(prepared, rerank.by, quiet)
    high, low = _scanned(prepared, size, runtime) if index is None else indexed_top(prepared, index, size, quiet=quiet)
    unit, method, notes = prepared.unit, prepared.method, prepared.notes
    notes = notes if index is None else (*notes, index_note(index))
    if stage is not None:
        high, low, count = reranked(stage, high, low, k)
        by = "exact EK-FAC" if isinstance(stage, ExactStage) else stage.method
        unit = unit if isinstance(stage, ExactStage) else stage.unit
        method = f"{prepared.method}, then {by}"
        row = f"{prepared.method} rows of {prepared.store.codec.row_bytes():,} bytes"
        share = (
            f"the strongest {min(size, len(prepared.store)):,} of each side of each query by {row}, {count:,} examples in all"
        )
        is_scan = index is None or index.is_exact
        recall_notes = recall_note(store, size) if isinstance(stage, ExactStage) and is_scan else ()
        notes = (*notes, *recall_notes, f"scores by {by}, of {share}")
    hits, (withheld, unread) = _both_sides(prepared.store, stage or prepared, high, low, tokens=tokens, quiet=quiet)
    notes = (*notes, *token_notes(prepared.method, withheld, unread))
    together = [(*up, *down) for up, down in hits]
    if tokens:
        notes = (*notes, *query_tokens_note(task, prepared.dataset.examples, together))
    shown = [[hit.score for hit in side] for side in together]
    unit, sizes = believable_unit(unit, task, prepared.rows.values, shown, prepared.dataset.examples)
    return Hits(
        queries=tuple(title_of(*pair) for pair in zip(prepared.dataset.examples, records, strict=True)),
        proponents=tuple(up for up, _ in hits),
        opponents=tuple(down for _, down in hits),
        measurements=tuple(prepared.rows.values.tolist()),
        query_images=tuple(example.image for example in prepared.dataset.examples),
        unit=unit,
        method=method,
        num_examples=len(prepared.store),
        notes=(*notes, *sizes, *label_notes(task, hits)),
        measurement_unit=task.unit,
        facts=facts_of(prepared.task, prepared.store, prepared.dataset.examples, records),
        query_tokens=tuple(
            texts_of_tokens(task, example) if any(hit.query_scores for hit in side) else ()
            for example, side in zip(prepared.dataset.examples, together, strict=True)
        ),
        stage="scan" if stage is None else "exact" if isinstance(stage, ExactStage) else "store",
    )


@records_only(damping=Damping, runtime=Runtime)
def score_table(
    store: Store | str | Path,
    task: AbstractTask,
    queries: Dataset | Iterable[Any],
    *,
    damping: Damping = Damping(),
    weighted: bool = True,
    runtime: Runtime = Runtime(),
) -> ScoreTable:
    """Every training example's score for every query; arguments as in `query`.

    Args:
        store: A store or its folder.
        task: The model that the store was built with.
        queries: As in `query`.
        damping: As in `query`.
        weighted: Whether the weights of a store of TRAK or GraSS are multiplied in. False keeps them apart in the table's `weights`, as
            `whence.score.Ensemble` needs them; the table is not one of scores then.
        runtime: As in `query`.

    Returns:
        The table.
    """
    return _table(store, task, queries, damping, weighted=weighted, runtime=runtime)


@records_only(damping=Damping, runtime=Runtime)
def ensemble_table(
    stores: Sequence[Store | str | Path],
    tasks: Sequence[AbstractTask],
    queries: Dataset | Iterable[Any],
    *,
    damping: Damping = Damping(),
    runtime: Runtime = Runtime(),
) -> ScoreTable:
    """Scores over several models trained alike, one store each: seeds or checkpoints.

    Where rows have weights (TRAK, GraSS) scores without them and weights are averaged apart and then multiplied (Park et al. 2023, section
    3); elsewhere this is the mean of the scores.

    Args:
        stores: Stores of the same examples, built with one method.
        tasks: The model of each.
        queries: As in `query`.
        damping: As in `query`.
        runtime: As in `query`.

    Returns:
        One table.

    Raises:
        BadInput: If there are not as many tasks as stores, or the stores are of different methods.
    """
    opened = [store if isinstance(store, Store) else open_store(store) for store in stores]
    methods = sorted({store.blueprint.method for store in opened})
    if len(opened) != len(tasks) or len(methods) != 1:
        raise BadInput(
            found=f"{len(opened)} stores ({', '.join(methods) or 'none'}) and {len(tasks)} tasks",
            needed="as many of both, one or more, and one method",
            do="pass the task of each store in the same order",
        )
    pairs = zip(opened, tasks, strict=True)
    return mean_table([_table(store, task, queries, damping, weighted=False, runtime=runtime) for store, task in pairs])


def _table(
    store: Store | str | Path,
    task: AbstractTask,
    queries: Dataset | Iterable[Any],
    damping: Damping,
    *,
    weighted: bool,
    runtime: Runtime,
) -> ScoreTable:
    ranks, workers, quiet = runtime.ranks, runtime.workers, runtime.is_quiet
    started = time.monotonic()
    store = store if isinstance(store, Store) else open_store(store, ranks=ranks)
    prepared = PreparedQuery.prepare(store, task, queries, damping, quiet, runtime)
    with ranks.connected(), _scan_meter(prepared.store, ranks, quiet) as progress:
        if workers is not None:
            scores = workers.all_scores(
                prepared.store, prepared.preconditioned,
                norms_Q=prepared.norms_Q, roots=prepared.roots, weighted=weighted, advance=progress.advance,
            )  # fmt: skip
        else:
            scores = all_scores(
                prepared.store, prepared.preconditioned,
                norms_Q=prepared.norms_Q, progress=progress, roots=prepared.roots, weighted=weighted, ranks=ranks,
            )  # fmt: skip
    blueprint = prepared.store.blueprint
    width = f"sides over {blueprint.side_divisor}" if blueprint.side_divisor else f"rank {blueprint.rank}"
    settings = [width] + ([f"{blueprint.factor_rank} factors"] if blueprint.factor_rank else [])
    settings += [f"{blueprint.blow_up} entries a number"] if blueprint.blow_up != BLOW_UP else []
    settings += [blueprint.projection] if blueprint.projection != method_named(blueprint.method).projection else []
    settings += [prepared.damping.label] if prepared.damping is not None else []
    weights = None
    has_weights = "weights" in blueprint.columns()
    if has_weights and not weighted:
        weights = torch.cat([shard["weights"] for _, shard in prepared.store.shards(["weights"])]).to(scores)
    return ScoreTable(
        scores,
        prepared.dataset.ids,
        prepared.store.ids(),
        prepared.unit,
        f"{prepared.method} {', '.join(settings)}",
        prepared.notes,
        bytes_per_example=prepared.store.codec.row_bytes(),
        seconds=time.monotonic() - started,
        is_weighted=has_weights and weighted,
        weights=weights,
    )


def _scanned(prepared: PreparedQuery, k: int, runtime: Runtime) -> tuple[Top, Top]:
    ranks, workers, quiet = runtime.ranks, runtime.workers, runtime.is_quiet
    with ranks.connected(), _scan_meter(prepared.store, ranks, quiet) as progress:
        if workers is None:
            return top_scores(
                prepared.store,
                prepared.preconditioned,
                k,
                norms_Q=prepared.norms_Q,
                progress=progress,
                roots=prepared.roots,
                ranks=ranks,
            )
        top = workers.top_scores(
            prepared.store, prepared.preconditioned, k, norms_Q=prepared.norms_Q, roots=prepared.roots, advance=progress.advance
        )
        assert top is not None  # a scan that nobody gives up
        return top.high, top.low


def _scan_meter(store: Store, ranks: Ranks, quiet: bool) -> AbstractContextManager[Meter]:
    shards = ranks.part(len(store.seals))
    rows = sum(map(store.rows_of, store.seals[shards.start : shards.stop]))
    return meter("scan" if ranks.count == 1 else f"scan (rank {ranks.rank} of {ranks.count})", rows, quiet=quiet)


def _larger(prepared: PreparedQuery, rerank: Store | str | Path, quiet: bool) -> PreparedQuery:
    larger = rerank if isinstance(rerank, Store) else open_store(rerank)
    check_same_rows(prepared.store, larger)
    return PreparedQuery.prepare(larger, prepared.task, prepared.dataset, Damping(), quiet)


def _both_sides(
    store: Store, stage: Stage, high: Top, low: Top, *, tokens: bool, quiet: bool
) -> tuple[list[tuple[tuple[Hit, ...], tuple[Hit, ...]]], tuple[int, int]]:
    """Proponents and opponents of each query; how many have no token scores since they would mean nothing, how many for want of a text."""
    by_side, withheld, unread = [], 0, 0
    with meter("tokens", high.rows_QK.numel() + low.rows_QK.numel(), quiet=quiet or not tokens) as progress:
        for query in range(len(high.rows_QK)):
            sides = []
            for top, sign in ((high, 1), (low, -1)):
                pairs = zip(top.scores_QK[query].tolist(), top.rows_QK[query].tolist(), strict=True)
                # An example that raises the measurement is no opponent, however few lower it.
                hits = [hit_of(store, row, score) for score, row in pairs if score * sign > 0]
                if tokens:
                    explained = [stage.with_tokens(hit, query) for hit in hits]
                    hits = [hit for hit, _ in explained]
                    withheld += sum(is_far for _, is_far in explained)
                    unread += sum(not hit.token_scores and not is_far for hit, is_far in explained)
                    progress.advance(top.rows_QK.shape[1])
                sides.append(tuple(hits))
            if tokens:
                both = with_query_tokens(stage, query, [*sides[0], *sides[1]])
                sides = [tuple(both[: len(sides[0])]), tuple(both[len(sides[0]) :])]
            by_side.append((sides[0], sides[1]))
    return by_side, (withheld, unread)


def facts_of(
    task: AbstractTask, store: Store, examples: Sequence[Example], records: Sequence[Mapping[str, Any]]
) -> tuple[QueryFacts, ...]:
    """What else is known of each query: its record, and of a classifier's its label and what the model sees.

    Args:
        task: The model.
        store: That was asked.
        examples: The queries.
        records: What each was asked with.
    """
    batching, autocast = Batching(store.blueprint.batch_positions), autocast_named(store.blueprint.autocast)
    labels = class_labels(task, examples, batching=batching, autocast=autocast) or [None] * len(examples)
    return tuple(QueryFacts(*pair) for pair in zip(records, labels, strict=True))


def label_notes(task: AbstractTask, hits: Sequence[tuple[Sequence[Hit], Sequence[Hit]]]) -> list[str]:
    """What cannot be said of the labels of a classifier's hits."""
    shown = [hit for sides in hits for side in sides for hit in side]
    if not isinstance(task, Classification) or all(hit.label is not None and hit.label.predicted for hit in shown):
        return []
    if any(hit.label is None for hit in shown):
        return [
            "the store keeps no labels, being of an earlier version: build it again to see them, and where the model disagrees"
        ]
    return [
        "the store keeps no predictions, since its rows were logged in training: labels that the model disputes are not marked"
    ]


def title_of(example: Example, record: Mapping[str, Any]) -> str:
    """A query as an answer names it, with what it is asked against."""
    foil = record.get("foil")
    foil = foil[0] if isinstance(foil, list | tuple) and foil else foil
    foil = foil.get("completion", foil.get("text")) if isinstance(foil, Mapping) else foil
    return (example.text or example.id) + ("" if foil is None else f"\n(and not: {foil})")
