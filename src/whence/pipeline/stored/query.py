"""Asking a store."""

import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from whence.curvature import DampingRule
from whence.data import Dataset, Example
from whence.distributed import Ranks
from whence.errors import BadInput
from whence.methods import method_named
from whence.pipeline.stored.prepared import Asked, hit_of
from whence.pipeline.stored.rerank import ExactStage, Stage, check_same_rows, reranked
from whence.progress import Meter, meter
from whence.records import ScoreTable
from whence.report import Hit, Hits
from whence.score import Top, all_scores, mean_table, top_scores
from whence.store import Store, open_store
from whence.tasks import AbstractTask
from whence.workers import Workers

__all__ = ["ensemble_table", "query", "score_table"]

# Of each side, per hit that is wanted and at least: docs/results.md has what is then missed.
_SHORTLIST, _SHORTEST = 10, 400
_WITHHELD = (
    "{} hits have no token scores: rows of so few bits or factors hold too little of these gradients, whose own scores are less than "
    "half or more than twice of the hits'"
)


def query(
    store: Store | str | Path,
    task: AbstractTask,
    queries: Dataset | Iterable[Any],
    *,
    k: int = 10,
    relative_damping: float | None = None,
    absolute_damping: float | None = None,
    damping_rule: DampingRule | None = None,
    tokens: bool = False,
    rerank: Store | str | Path | None = None,
    train: Dataset | Iterable[Any] | None = None,
    shortlist: int | None = None,
    quiet: bool = False,
    ranks: Ranks = Ranks(),
    workers: Workers | None = None,
) -> Hits:
    """The training examples that raise and lower each query's measurement most.

    With `rerank` in two stages: a scan of the store leaves a shortlist per query, and something better scores that. An example that the scan
    does not shortlist is not found.

    Args:
        store: A store or its folder.
        task: The model that the store was built with.
        queries: As `task.prepare` takes them, or already prepared.
        k: Hits on each side at most; proponents have positive scores, opponents negative ones.
        relative_damping: Share of each unit's mean eigenvalue.
        absolute_damping: Value in units of the loss's curvature.
        damping_rule: A published rule by name, see `whence.curvature.stored_damping`; without any of the three the method's own share of the
            mean eigenvalue. All three are the first stage's; a second store takes its method's own.
        tokens: Whether the text hits get a score per token, which runs the model on each hit again. They add up to the hit's score.
            A hit whose gradient, made again, scores less than half or more than twice of what its stored row does gets none, and a note
            says so.
        rerank: What scores the shortlist: "exact" for whole gradients of the model with the EK-FAC and the damping inside a store of aligned;
            or another store of the same data, or its folder.
        train: For "exact", at least the examples that the store was built from, in any order. The model runs on the shortlist only.
        shortlist: Rows kept of each query on each side; None for 10 k, and 400 at least.
        quiet: No progress on stderr.
        ranks: Processes that scan together, each its own shards; `Ranks.launched()` under torchrun. All of them return the answer, which is
            that of one process.
        workers: Who scans the store for this process, see `whence.Workers`; None scans it here.

    Returns:
        Both tails per query.

    Raises:
        BadInput: If k is not positive, tokens are to be scored that the task cannot place in a text, or ranks are given workers.
    """
    if k < 1:
        raise BadInput(found=f"k={k}", needed="1 or more", do="ask for at least one hit")
    _check_one_asks(ranks, workers)
    size = _shortlist(k, rerank, train, shortlist)
    store = store if isinstance(store, Store) else open_store(store, ranks=ranks)
    quiet = quiet or ranks.rank > 0
    asked = Asked.prepare(store, task, queries, relative_damping, absolute_damping, damping_rule, quiet)
    if tokens and not any(example.token_spans is not None for example in asked.dataset.examples):
        raise BadInput(
            found="tokens=True for queries without token positions",
            needed="queries with text, a language model and a fast tokenizer",
            do="leave tokens out",
        )
    second = None
    if rerank is not None:
        second = ExactStage.prepare(asked, train, quiet) if rerank == "exact" else _larger(asked, rerank, quiet)
    high, low = _scanned(asked, size, ranks, workers, quiet)
    unit, method, notes = asked.unit, asked.method, asked.notes
    if second is not None:
        high, low, count = reranked(second, high, low, k)
        by = "exact EK-FAC" if isinstance(second, ExactStage) else second.method
        unit = unit if isinstance(second, ExactStage) else second.unit
        method = f"{asked.method}, then {by}"
        row = f"{asked.method} rows of {asked.store.codec.row_bytes():,} bytes"
        share = f"the strongest {min(size, len(asked.store)):,} of each side of each query by {row}, {count:,} examples in all"
        notes = (*notes, f"scores by {by}, of {share}")
    hits, withheld = _both_sides(asked.store, second or asked, high, low, tokens=tokens, quiet=quiet)
    if withheld:
        notes = (*notes, _WITHHELD.format(withheld))
    return Hits(
        queries=tuple(_title(example) for example in asked.dataset.examples),
        proponents=tuple(up for up, _ in hits),
        opponents=tuple(down for _, down in hits),
        measurements=tuple(asked.rows.values.tolist()),
        query_images=tuple(example.image for example in asked.dataset.examples),
        unit=unit,
        method=method,
        num_examples=len(asked.store),
        notes=notes,
        measurement_unit=task.unit,
        stage="scan" if second is None else "exact" if isinstance(second, ExactStage) else "store",
    )


def score_table(
    store: Store | str | Path,
    task: AbstractTask,
    queries: Dataset | Iterable[Any],
    *,
    relative_damping: float | None = None,
    absolute_damping: float | None = None,
    damping_rule: DampingRule | None = None,
    weighted: bool = True,
    quiet: bool = False,
    ranks: Ranks = Ranks(),
    workers: Workers | None = None,
) -> ScoreTable:
    """Every training example's score for every query; arguments as in `query`.

    Args:
        store: A store or its folder.
        task: The model that the store was built with.
        queries: As in `query`.
        relative_damping: As in `query`.
        absolute_damping: As in `query`.
        damping_rule: As in `query`.
        weighted: Whether the weights of a store of TRAK or GraSS are multiplied in. False keeps them apart in the table's `weights`, as
            `whence.Ensemble` needs them; the table is not one of scores then.
        quiet: As in `query`.
        ranks: As in `query`.
        workers: As in `query`.

    Returns:
        The table.
    """
    _check_one_asks(ranks, workers)
    dampings = (relative_damping, absolute_damping, damping_rule)
    return _table(store, task, queries, dampings, quiet, weighted=weighted, ranks=ranks, workers=workers)


def ensemble_table(
    stores: Sequence[Store | str | Path],
    tasks: Sequence[AbstractTask],
    queries: Dataset | Iterable[Any],
    *,
    relative_damping: float | None = None,
    absolute_damping: float | None = None,
    damping_rule: DampingRule | None = None,
    quiet: bool = False,
) -> ScoreTable:
    """Scores over several models trained alike, one store each: seeds or checkpoints.

    Where rows have weights (TRAK, GraSS) scores without them and weights are averaged apart and then multiplied (Park et al. 2023, section
    3); elsewhere this is the mean of the scores.

    Args:
        stores: Stores of the same examples, built with one method.
        tasks: The model of each.
        queries: As in `query`.
        relative_damping: As in `query`.
        absolute_damping: As in `query`.
        damping_rule: As in `query`.
        quiet: No progress on stderr.

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
    dampings = (relative_damping, absolute_damping, damping_rule)
    pairs = zip(opened, tasks, strict=True)
    return mean_table([_table(store, task, queries, dampings, quiet, weighted=False) for store, task in pairs])


def _table(
    store,
    task,
    queries,
    dampings: tuple[float | None, float | None, DampingRule | None],
    quiet: bool,
    *,
    weighted: bool,
    ranks: Ranks = Ranks(),
    workers: Workers | None = None,
) -> ScoreTable:
    started = time.monotonic()
    store = store if isinstance(store, Store) else open_store(store, ranks=ranks)
    quiet = quiet or ranks.rank > 0
    asked = Asked.prepare(store, task, queries, *dampings, quiet)
    with ranks.connected(), _scan_meter(asked.store, ranks, quiet) as progress:
        if workers is not None:
            scores = workers.all_scores(
                asked.store, asked.ready,
                norms_Q=asked.norms_Q, roots=asked.roots, weighted=weighted, advance=progress.advance,
            )  # fmt: skip
        else:
            scores = all_scores(
                asked.store, asked.ready,
                norms_Q=asked.norms_Q, progress=progress, roots=asked.roots, weighted=weighted, ranks=ranks,
            )  # fmt: skip
    blueprint = asked.store.blueprint
    settings = [f"rank {blueprint.rank}"] + ([f"{blueprint.factor_rank} factors"] if blueprint.factor_rank else [])
    settings += [blueprint.projection] if blueprint.projection != method_named(blueprint.method).projection else []
    settings += [asked.damping.label] if asked.damping is not None else []
    weights = None
    has_weights = "weights" in blueprint.columns()
    if has_weights and not weighted:
        weights = torch.cat([shard["weights"] for _, shard in asked.store.shards(["weights"])]).to(scores)
    return ScoreTable(
        scores,
        asked.dataset.ids,
        asked.store.ids(),
        asked.unit,
        f"{asked.method} {', '.join(settings)}",
        asked.notes,
        bytes_per_example=asked.store.codec.row_bytes(),
        seconds=time.monotonic() - started,
        is_weighted=has_weights and weighted,
        weights=weights,
    )


def _check_one_asks(ranks: Ranks, workers: Workers | None) -> None:
    """Ranks scan for themselves.

    Raises:
        BadInput: If several are given workers.
    """
    if workers is not None and ranks.count > 1:
        raise BadInput(
            found=f"workers for each of {ranks.count} ranks",
            needed="ranks, which scan themselves, or one process with workers",
            do="leave workers out, or start one process without torchrun",
        )


def _scanned(asked: Asked, k: int, ranks: Ranks, workers: Workers | None, quiet: bool) -> tuple[Top, Top]:
    with ranks.connected(), _scan_meter(asked.store, ranks, quiet) as progress:
        if workers is None:
            return top_scores(
                asked.store, asked.ready, k, norms_Q=asked.norms_Q, progress=progress, roots=asked.roots, ranks=ranks
            )
        found = workers.top_scores(
            asked.store, asked.ready, k, norms_Q=asked.norms_Q, roots=asked.roots, advance=progress.advance
        )
        assert found is not None  # a scan that nobody gives up
        return found.high, found.low


def _scan_meter(store: Store, ranks: Ranks, quiet: bool) -> AbstractContextManager[Meter]:
    places = ranks.part(len(store.seals))
    rows = sum(seal.rows for seal in store.seals[places.start : places.stop])
    return meter("scan" if ranks.count == 1 else f"scan (rank {ranks.rank} of {ranks.count})", rows, quiet=quiet)


def _shortlist(k: int, rerank: Any, train: Any, shortlist: int | None) -> int:
    """Rows of each side that the scan keeps.

    Raises:
        BadInput: If there is no use for `train` or `shortlist`, or the shortlist is too short.
    """
    if rerank is None and (train is not None or shortlist is not None):
        name = "train" if train is not None else "shortlist"
        raise BadInput(found=f"{name} without rerank", needed="a second stage for it", do=f"pass rerank, or leave {name} out")
    if rerank is None:
        return k
    if rerank != "exact" and train is not None:
        raise BadInput(
            found="train for a second store", needed="nothing but the store", do="leave train out, or pass rerank='exact'"
        )
    if shortlist is not None and shortlist < k:
        raise BadInput(found=f"shortlist={shortlist} for k={k}", needed="at least k", do="keep more, or ask for fewer hits")
    return shortlist or max(_SHORTLIST * k, _SHORTEST)


def _larger(asked: Asked, rerank: Store | str | Path, quiet: bool) -> Asked:
    larger = rerank if isinstance(rerank, Store) else open_store(rerank)
    check_same_rows(asked.store, larger)
    return Asked.prepare(larger, asked.task, asked.dataset, None, None, None, quiet)


def _both_sides(
    store: Store, stage: Stage, high: Top, low: Top, *, tokens: bool, quiet: bool
) -> tuple[list[tuple[tuple[Hit, ...], tuple[Hit, ...]]], int]:
    """Proponents and opponents of each query, and how many of them have no token scores since these would mean nothing."""
    found, withheld = [], 0
    with meter("tokens", high.rows_QK.numel() + low.rows_QK.numel(), quiet=quiet or not tokens) as progress:
        for place in range(len(high.rows_QK)):
            sides = []
            for top, sign in ((high, 1), (low, -1)):
                pairs = zip(top.scores_QK[place].tolist(), top.rows_QK[place].tolist(), strict=True)
                # An example that raises the measurement is no opponent, however few lower it.
                hits = [hit_of(store, row, score) for score, row in pairs if score * sign > 0]
                if tokens:
                    judged = [stage.with_tokens(hit, place) for hit in hits]
                    hits = [hit for hit, _ in judged]
                    withheld += sum(is_far for _, is_far in judged)
                    progress.advance(top.rows_QK.shape[1])
                sides.append(tuple(hits))
            found.append((sides[0], sides[1]))
    return found, withheld


def _title(example: Example) -> str:
    return example.text or example.id
