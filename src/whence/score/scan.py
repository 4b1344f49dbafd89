"""Scoring by streaming the store: memory does not grow with the number of training examples.

Axes: Q queries, N rows, K hits, P projected outputs, R projected inputs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from whence.distributed import Ranks
from whence.errors import NonFinite, StoreChanged
from whence.progress import Meter
from whence.score.whitening import whitened_norms
from whence.store import Store

__all__ = ["Ends", "Top", "all_scores", "both_ends", "row_scores", "shard_scores", "top_scores", "united_top"]

Part = TypeVar("Part")
# Scores among which hits are looked for at once.
_JOINED_SCORES = 1 << 20


@dataclass(frozen=True)
class Top:
    """The strongest rows of each query.

    Args:
        scores_QK: Scores, strongest first.
        rows_QK: Their rows in the store.
    """

    scores_QK: Tensor
    rows_QK: Tensor


def shard_scores(
    store: Store,
    queries: Sequence[Tensor],
    norms_Q: Tensor | None,
    *,
    roots: Sequence[Tensor] | None = None,
    weighted: bool = True,
    ranks: Ranks = Ranks(),
) -> Iterator[tuple[int, Tensor]]:
    """Scores of all rows, shard by shard.

    Args:
        store: The rows.
        queries: Preconditioned queries, per unit of shape (Q, P, R), already scaled to the score's unit.
        norms_Q: For cosines the norms of the queries; None for inner products.
        roots: For cosines of whitened rows what whitens them, per unit; None takes the norms that are stored.
        weighted: Whether the rows' weights, if there are any, are multiplied in.
        ranks: Processes that scan together; only this one's shards.

    Yields:
        The number of the shard's first row, and scores of shape (Q, rows).

    Raises:
        NonFinite: If a score is NaN or infinite.
    """
    score = _scorer(store, queries, norms_Q, roots, weighted=weighted)
    for start, tensors in store.shards(ranks=ranks):
        scores_QN = score(tensors)
        _check_finite(store, scores_QN, range(start, start + scores_QN.shape[1]))
        yield start, scores_QN


def top_scores(
    store: Store,
    queries: Sequence[Tensor],
    k: int,
    *,
    norms_Q: Tensor | None,
    progress: Meter,
    roots: Sequence[Tensor] | None = None,
    ranks: Ranks = Ranks(),
) -> tuple[Top, Top]:
    """The k highest and the k lowest scores of every query, in one pass.

    Several connected processes pass over their own shards each and put together what they find: k hits a query of each travel.

    Args:
        store: The rows.
        queries: As in `shard_scores`.
        k: Hits wanted on each side.
        norms_Q: As in `shard_scores`.
        progress: Advanced by rows.
        roots: As in `shard_scores`.
        ranks: As in `shard_scores`.

    Returns:
        Highest first, and lowest first. Equal scores come in row order.
    """
    scores = shard_scores(store, queries, norms_Q, roots=roots, ranks=ranks)
    ends = both_ends(scores, queries[0], k, progress=progress)
    if ranks.count == 1:
        return ends.high, ends.low
    best = _of_one_store(ranks, store, (ends.high, ends.low))
    return united_top([high for high, _ in best], k, largest=True), united_top([low for _, low in best], k, largest=False)


@dataclass(frozen=True)
class Ends:
    """What a scan keeps.

    Args:
        high: The strongest rows of each query, highest first.
        low: The same of the lowest scores.
        sums_QG2: Per group of rows the sums of its positive and of its negative scores, float64; None if no groups were given.
        scores_QN: Every score; None unless asked for.
    """

    high: Top
    low: Top
    sums_QG2: Tensor | None = None
    scores_QN: Tensor | None = None


def both_ends(
    scores: Iterator[tuple[int, Tensor]],
    queries: Tensor,
    k: int,
    *,
    progress: Meter,
    keep: Mapping[int, Tensor] | None = None,
    groups: tuple[Tensor, int] | None = None,
    is_whole: bool = False,
) -> Ends:
    """Both ends of every query's ranking, and sums over groups of rows, in one pass over scores: the only scan there is.

    Args:
        scores: The number of the first row, and scores of shape (Q, rows), as `shard_scores` yields them.
        queries: Any tensor with a leading axis of queries and the scores' type.
        k: Hits wanted on each side.
        progress: Advanced by rows.
        keep: By query which rows may be its hits, boolean, shape (N,); all for a query that is not in it. Others come last, with infinite
            scores.
        groups: The group of each row, shape (N,), and how many groups there are, to sum scores over; of all rows, whatever may be a hit.
        is_whole: Whether every score is wanted, too, which takes room for all of them.

    Returns:
        Equal scores in row order.
    """
    count = len(queries)
    parts: list[Tensor] = []
    high = low = Top(queries.new_zeros(count, 0), torch.zeros(count, 0, dtype=torch.long))
    sums_QG2 = None if groups is None else torch.zeros(count, groups[1], 2, dtype=torch.float64)
    for start, scores_QN in _joined_shards(scores, progress):
        parts += [scores_QN] if is_whole else []
        if groups is not None and sums_QG2 is not None:
            _add_groups(sums_QG2, scores_QN, groups[0][start : start + scores_QN.shape[1]])
        up_QN = down_QN = scores_QN
        if keep:
            out_QN = torch.zeros(scores_QN.shape, dtype=torch.bool)
            for query, keep_N in keep.items():
                out_QN[query] = ~keep_N[start : start + scores_QN.shape[1]]
            up_QN, down_QN = scores_QN.masked_fill(out_QN, -torch.inf), scores_QN.masked_fill(out_QN, torch.inf)
        high = _merged_top(high, up_QN, start, k, largest=True)
        low = _merged_top(low, down_QN, start, k, largest=False)
    return Ends(high, low, sums_QG2, torch.cat(parts, 1) if is_whole else None)


def _add_groups(sums_QG2: Tensor, scores_QN: Tensor, group_N: Tensor) -> None:
    # Two places for every group, the second for scores below 0: one pass over the scores, which are many.
    places_N = 2 * group_N.long()
    for sums_G2, scores_N in zip(sums_QG2, scores_QN, strict=True):
        sums_G2.view(-1).add_(torch.bincount(places_N + (scores_N < 0), scores_N.double(), sums_G2.numel()))


def all_scores(
    store: Store,
    queries: Sequence[Tensor],
    *,
    norms_Q: Tensor | None,
    progress: Meter,
    roots: Sequence[Tensor] | None = None,
    weighted: bool = True,
    ranks: Ranks = Ranks(),
) -> Tensor:
    """Every score, shape (Q, N), for evaluation; arguments as in `shard_scores`."""
    parts = []
    for _, scores_QN in shard_scores(store, queries, norms_Q, roots=roots, weighted=weighted, ranks=ranks):
        parts.append(scores_QN)
        progress.advance(scores_QN.shape[1])
    return torch.cat([part for theirs in _of_one_store(ranks, store, parts) for part in theirs], 1)


def row_scores(
    store: Store,
    queries: Sequence[Tensor],
    rows: Sequence[int],
    *,
    norms_Q: Tensor | None,
    roots: Sequence[Tensor] | None = None,
) -> Tensor:
    """Scores of some rows only, shape (Q, rows), reading nothing else.

    Args:
        store: The rows.
        queries: As in `shard_scores`.
        rows: Ascending.
        norms_Q: As in `shard_scores`.
        roots: As in `shard_scores`.

    Returns:
        In the order of the rows.
    """
    score = _scorer(store, queries, norms_Q, roots, weighted=True)
    scores_QN = torch.cat([score(tensors) for tensors in store.rows(rows)], 1)
    _check_finite(store, scores_QN, rows)
    return scores_QN


def _joined_shards(shards: Iterator[tuple[int, Tensor]], progress: Meter) -> Iterator[tuple[int, Tensor]]:
    """Scores of several shards as one: looking for hits takes many small steps, which few queries would feel.

    Args:
        shards: What `shard_scores` yields.
        progress: Advanced by rows.

    Yields:
        As `shard_scores` does.
    """
    first, waiting = 0, []
    for start, scores_QN in shards:
        first = first if waiting else start
        waiting.append(scores_QN)
        progress.advance(scores_QN.shape[1])
        if sum(scores.numel() for scores in waiting) >= _JOINED_SCORES:
            yield first, torch.cat(waiting, 1)
            waiting = []
    if waiting:
        yield first, torch.cat(waiting, 1)


def _merged_top(top: Top, scores_QN: Tensor, start: int, k: int, *, largest: bool) -> Top:
    """The k strongest rows so far, once more rows are scored.

    Args:
        top: The strongest before.
        scores_QN: Scores of the rows that follow.
        start: Number of the first of these.
        k: Rows wanted.
        largest: Whether the highest are wanted, else the lowest.

    Returns:
        Strongest first; equal scores in row order.
    """
    if top.scores_QK.shape[1] < k:
        new_scores, new_rows = _strongest(scores_QN, min(k, scores_QN.shape[1]), largest=largest)
    else:
        new_scores, new_rows = _better(scores_QN, top.scores_QK[:, -1:], largest=largest)
    if not new_rows.shape[1]:
        return top
    return united_top([top, Top(new_scores, new_rows + start)], k, largest=largest)


def united_top(tops: Sequence[Top], k: int, *, largest: bool) -> Top:
    """The k strongest of several lists, of rows that are in one of them only.

    Args:
        tops: Each with the k strongest of some rows, or all of these.
        k: Rows wanted.
        largest: Whether the highest are wanted, else the lowest.

    Returns:
        Strongest first; equal scores in row order, whatever the order of the lists.
    """
    scores = torch.cat([top.scores_QK for top in tops], 1)
    rows = torch.cat([top.rows_QK for top in tops], 1)
    by_row = rows.argsort(dim=1)
    scores, rows = scores.gather(1, by_row), rows.gather(1, by_row)
    order = scores.argsort(dim=1, descending=largest, stable=True)[:, :k]
    return Top(scores.gather(1, order), rows.gather(1, order))


def _of_one_store(ranks: Ranks, store: Store, own: Part) -> list[Part]:
    """What every rank found, in order.

    Raises:
        StoreChanged: If they opened different stores, since it was written to in between.
    """
    parts = ranks.gathered((store.digest if ranks.count > 1 else "", own))
    if len({digest for digest, _ in parts}) > 1:
        raise StoreChanged(
            found=f"a store in {store.folder} that changed while {ranks.count} ranks opened it",
            needed="the same one for all of them",
            do="wait until nobody writes to it and run the same command again",
        )
    return [part for _, part in parts]


def _scorer(
    store: Store, queries: Sequence[Tensor], norms_Q: Tensor | None, roots: Sequence[Tensor] | None, *, weighted: bool
) -> Callable[[dict[str, Tensor]], Tensor]:
    inner_products = store.codec.scorer(queries)

    def score(tensors: dict[str, Tensor]) -> Tensor:
        scores_QN = inner_products(tensors).contiguous()
        if norms_Q is not None:
            tiny = torch.finfo(scores_QN.dtype).tiny
            norms_N = tensors["norms"] if roots is None else whitened_norms(store, tensors, roots)
            scores_QN = scores_QN / (norms_Q[:, None] * norms_N.to(scores_QN)).clamp_min(tiny)
        if weighted and "weights" in tensors:
            scores_QN = scores_QN * tensors["weights"].to(scores_QN)
        return scores_QN

    return score


def _check_finite(store: Store, scores_QN: Tensor, rows: Sequence[int]) -> None:
    """Refuse scores that are no numbers.

    Raises:
        NonFinite: Naming the first example that has one.
    """
    # The sum is not finite if one score is not, and takes one pass; it may also have grown too large by itself.
    if not bool(scores_QN.sum().isfinite()) and not bool(torch.isfinite(scores_QN).all()):
        query, column = (~torch.isfinite(scores_QN)).nonzero()[0].tolist()
        raise NonFinite(
            found=f"a score of query {query} for the example {store.example(rows[column])['id']!r} that is NaN or infinite",
            needed="finite scores",
            do="raise the damping, and check the store with `whence verify`",
        )


def _strongest(scores_QN: Tensor, count: int, *, largest: bool) -> tuple[Tensor, Tensor]:
    """So many scores of each query and their places; of equal scores, among which `topk` picks any, the first ones."""
    found_QK, places_QK = torch.topk(scores_QN, count, largest=largest)
    last_Q1 = found_QK[:, -1:]
    equal_QN = scores_QN == last_Q1
    better_QN = scores_QN > last_Q1 if largest else scores_QN < last_Q1
    room_Q1 = count - better_QN.sum(1, keepdim=True)
    if bool((equal_QN.sum(1, keepdim=True) > room_Q1).any()):
        chosen_QN = better_QN | (equal_QN & (equal_QN.cumsum(1) <= room_Q1))
        places_QK = chosen_QN.nonzero()[:, 1].view(len(scores_QN), count)
        found_QK = scores_QN.gather(1, places_QK)
    return found_QK, places_QK


def _better(scores_QN: Tensor, last_Q1: Tensor, *, largest: bool) -> tuple[Tensor, Tensor]:
    """Scores that belong before the last of k hits, and their places: after a few shards a handful, where sorting would take them all.

    Returns:
        Shapes (Q, most of any query), filled up with what comes after every hit.
    """
    query_M, row_M = (scores_QN > last_Q1 if largest else scores_QN < last_Q1).nonzero(as_tuple=True)
    count_Q = torch.bincount(query_M, minlength=len(scores_QN))
    place_M = torch.arange(len(query_M)) - (count_Q.cumsum(0) - count_Q)[query_M]
    most = int(count_Q.max())
    found_QK = scores_QN.new_full((len(scores_QN), most), -torch.inf if largest else torch.inf)
    rows_QK = torch.zeros(len(scores_QN), most, dtype=torch.long)
    found_QK[query_M, place_M], rows_QK[query_M, place_M] = scores_QN[query_M, row_M], row_M
    return found_QK, rows_QK
