"""The skills in a corpus: training examples that teach a model alike, found by their gradients.

Axes: N training examples, K numbers of a row, C clusters, Q queries.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from whence.clusters.directions import directions, principal
from whence.clusters.spherical_kmeans import Partition, spherical_kmeans
from whence.clusters.words import distinctive_words, words_of
from whence.errors import BadInput
from whence.evaluate.tables import aligned
from whence.progress import say
from whence.records import ScoreTable
from whence.store import Store, open_store

__all__ = ["Central", "Cluster", "Clusters", "clusters"]

_WORDS, _SOURCES, _QUERIES = 8, 4, 4


@dataclass(frozen=True)
class Central:
    """An example near the middle of its cluster.

    Args:
        id: Of the example.
        source: Where it comes from.
        text: Its text, if it has one.
        cosine: With the middle.
    """

    id: str
    source: str
    text: str
    cosine: float


@dataclass(frozen=True)
class Cluster:
    """Examples whose gradients point the same way.

    Args:
        name: A few words for people: its most distinctive words, else its most frequent source, else its number.
        size: Examples.
        tightness: Mean cosine of its examples with its middle, within the directions that were clustered; 1 if all are alike.
        central: The examples nearest to the middle.
        words: Distinctive words with their z.
        sources: The most frequent sources with their counts.
        helps: Ids of the queries it helps most, each with the share of the query's score that comes from it, in the absolute sum of all.
        harms: The same of those it harms.
    """

    name: str
    size: int
    tightness: float
    central: tuple[Central, ...]
    words: tuple[tuple[str, float], ...] = ()
    sources: tuple[tuple[str, int], ...] = ()
    helps: tuple[tuple[str, float], ...] = ()
    harms: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Clusters:
    """A corpus in clusters, largest first.

    Args:
        clusters: The clusters.
        ids: Of the examples, in the order of the store.
        labels: Place in `clusters` of each example; -1 for those without a gradient, which have no direction.
        method: What was clustered.
    """

    clusters: tuple[Cluster, ...]
    ids: tuple[str, ...]
    labels: tuple[int, ...]
    method: str

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON, the examples by id."""
        return {
            "method": self.method,
            "clusters": [asdict(cluster) for cluster in self.clusters],
            "examples": dict(zip(self.ids, self.labels, strict=True)),
        }


def clusters(
    store: Store | str | Path,
    *,
    k: int = 12,
    table: ScoreTable | None = None,
    central: int = 5,
    shared: int = 32,
    seed: int = 0,
    restarts: int = 4,
    quiet: bool = False,
) -> Clusters:
    """Cluster the training examples of a store by the direction of their gradients, and say what each cluster is.

    Rows of a store of `aligned` are whitened, so two examples are near where more weight on either does the same to every query. Their
    lengths are left out: a long text and a short one that teach the same belong together. Clusters are of what the model still learns
    from its data, which need not be what a reader would sort them by.

    Args:
        store: A store of method aligned, or its folder.
        k: How many clusters; a few more than expected is better than fewer.
        table: Scores of queries for the same examples, to say which queries each cluster helps.
        central: Examples shown per cluster.
        shared: Principal directions of the rows that are clustered: what many examples share. More tell finer things apart, with more noise.
        seed: Of the starts.
        restarts: Starts, of which the tightest result is kept.
        quiet: No progress on stderr.

    Returns:
        The clusters.

    Raises:
        BadInput: If a number is out of range, or the table has other values than scores.
    """
    opened = store if isinstance(store, Store) else open_store(store)
    if not 2 <= k <= len(opened):
        raise BadInput(
            found=f"k={k} for {len(opened):,} examples", needed="from 2 to as many as there are", do="choose another k"
        )
    for name, value in (("central", central), ("shared", shared), ("restarts", restarts)):
        if value < 1:
            raise BadInput(found=f"{name}={value}", needed="1 or more", do="leave it out")
    ids = opened.ids()
    scores_QN = None if table is None else _scores(table, ids)
    rows_NK = principal(directions(opened), shared)
    placed_N = (rows_NK.square().sum(1) > 0).nonzero().flatten()
    if not quiet:
        say(f"clustering {len(placed_N):,} rows in {rows_NK.shape[1]:,} directions that they share, {restarts} starts")
    partition = spherical_kmeans(rows_NK[placed_N], k, seed=seed, restarts=restarts)
    members = _members(partition, placed_N)
    described = _described(opened, members, central)
    if table is not None and scores_QN is not None:
        described = _with_queries(described, members, scores_QN, table.query_ids)
    labels_N = torch.full((len(ids),), -1)
    for number, (rows, _) in enumerate(members):
        labels_N[rows] = number
    return Clusters(
        tuple(described), ids, tuple(labels_N.tolist()), f"aligned rows in {rows_NK.shape[1]} directions that they share"
    )


def _scores(table: ScoreTable, ids: Sequence[str]) -> Tensor:
    """Scores of a table for these examples, shape (Q, N).

    Raises:
        BadInput: If it has other values.
    """
    if table.values != "scores":
        raise BadInput(
            found=f"a table whose values are {table.values}",
            needed="scores for queries, which each cluster helps or harms",
            do="pass a table of `score_table` or `attribute`",
        )
    return aligned(table, table.query_ids, ids)


def _members(partition: Partition, placed_N: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Per cluster, largest first, the places of its examples and their cosines with the middle, nearest first."""
    members = []
    for cluster in range(len(partition.centers_CK)):
        inside = (partition.labels_N == cluster).nonzero().flatten()
        order = partition.cosines_N[inside].argsort(descending=True, stable=True)
        if len(inside):
            members.append((placed_N[inside[order]], partition.cosines_N[inside[order]]))
    return sorted(members, key=lambda member: -len(member[0]))


def _described(store: Store, members: Sequence[tuple[Tensor, Tensor]], central: int) -> list[Cluster]:
    cluster_of = {row: number for number, (rows, _) in enumerate(members) for row in rows.tolist()}
    shown = {row for rows, _ in members for row in rows[:central].tolist()}
    words: list[Counter[str]] = [Counter() for _ in members]
    sources: list[Counter[str]] = [Counter() for _ in members]
    seen: dict[int, dict[str, Any]] = {}
    for row, example in enumerate(store.examples()):
        if row in cluster_of:
            words[cluster_of[row]].update(words_of(example.get("text", "")))
            sources[cluster_of[row]].update([example["source"]] if example.get("source") else [])
        if row in shown:
            seen[row] = example
    described = []
    telling = distinctive_words(words, _WORDS)
    for number, (rows, cosines) in enumerate(members):
        nearest = tuple(
            Central(seen[row]["id"], seen[row].get("source", ""), seen[row].get("text", ""), cosine)
            for row, cosine in zip(rows[:central].tolist(), cosines[:central].tolist(), strict=True)
        )
        frequent = tuple(sources[number].most_common(_SOURCES))
        name = ", ".join(word for word, _ in telling[number][:3]) or (frequent[0][0] if frequent else f"cluster {number + 1}")
        tightness = float(cosines.double().mean())
        described.append(Cluster(name, len(rows), tightness, nearest, tuple(telling[number]), frequent))
    return described


def _with_queries(
    described: Sequence[Cluster], members: Sequence[tuple[Tensor, Tensor]], scores_QN: Tensor, query_ids: Sequence[str]
) -> list[Cluster]:
    """The same with the queries that each helps and harms: shares, so that queries of any size compare."""
    whole_Q = scores_QN.abs().sum(1).clamp_min(torch.finfo(scores_QN.dtype).tiny)
    changed = []
    for cluster, (rows, _) in zip(described, members, strict=True):
        shares_Q = scores_QN[:, rows].sum(1) / whole_Q
        order = shares_Q.argsort(descending=True, stable=True).tolist()
        named = [(query_ids[query], float(shares_Q[query])) for query in order]
        helps = tuple(pair for pair in named[:_QUERIES] if pair[1] > 0)
        harms = tuple(pair for pair in named[::-1][:_QUERIES] if pair[1] < 0)
        changed.append(replace(cluster, helps=helps, harms=harms))
    return changed
