"""Do the highest scores point at the documents that state the fact?

Axes: Q queries, K lengths of the list.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from whence.errors import BadInput
from whence.evaluate.statistics import Interval, mean_interval
from whence.evaluate.tables import checked
from whence.records import ScoreTable

__all__ = ["FactTracing", "fact_tracing"]


@dataclass(frozen=True)
class FactTracing:
    """Where the gold documents stand, query by query.

    Args:
        method: What the scores were made by.
        query_ids: One per query.
        ks: Lengths of the list, ascending.
        first_rank_Q: Place of the first gold document, from 1.
        strict_QK: Share of a query's gold documents among the first k; at most k over their number.
    """

    method: str
    query_ids: tuple[str, ...]
    ks: tuple[int, ...]
    first_rank_Q: Tensor
    strict_QK: Tensor

    @property
    def mrr(self) -> Interval:
        """Mean of 1 / place of the first gold document, with a 95 % t-interval over queries."""
        return mean_interval(1 / self.first_rank_Q.double())

    def recall(self, k: int) -> Interval:
        """Share of queries with a gold document among the first k, interval as in `mrr`.

        Args:
            k: Any length.
        """
        return mean_interval((self.first_rank_Q <= k).double())

    def strict_recall(self, k: int) -> Interval:
        """Mean share of a query's gold documents among the first k, interval as in `mrr`.

        Args:
            k: One of the lengths that were asked for.
        """
        return mean_interval(self.strict_QK[:, self.ks.index(k)])

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return {
            "method": self.method,
            "num_queries": len(self.query_ids),
            "mrr": self.mrr.to_dict(),
            "recall": {str(k): self.recall(k).to_dict() for k in self.ks},
            "strict_recall": {str(k): self.strict_recall(k).to_dict() for k in self.ks},
            "first_ranks": dict(zip(self.query_ids, self.first_rank_Q.tolist(), strict=True)),
        }


def fact_tracing(table: ScoreTable, gold: Mapping[str, frozenset[str]], ks: Sequence[int] = (1, 3, 5, 10)) -> FactTracing:
    """Mean reciprocal rank and recall of the gold documents.

    The two measures of Akyürek et al. 2022, arXiv 2205.11482, and Chang et al. 2024, arXiv 2410.17413.

    Ties are broken against the method: a gold document stands behind every other document with the same score. So scores that say nothing
    get nothing, however the documents are ordered.

    Args:
        table: Scores; the highest come first.
        gold: By query id, the ids of the documents that state the fact; queries that the table does not have are passed over.
        ks: Lengths of the list.

    Returns:
        Ranks and recalls.

    Raises:
        BadInput: If a query has no gold, a gold document is not in the table, or a k is not positive or repeats.

    >>> table = ScoreTable(torch.tensor([[0.3, 0.9, 0.1]]), ("q",), ("a", "b", "c"), "nats", "toy")
    >>> found = fact_tracing(table, {"q": frozenset({"a", "c"})}, ks=(1, 2))
    >>> found.mrr.mean, found.recall(2).mean, found.strict_recall(2).mean
    (0.5, 1.0, 0.5)
    """
    scores_QN = checked(table)
    if not ks or min(ks) < 1 or len(set(ks)) != len(ks):
        raise BadInput(found=f"ks={tuple(ks)}", needed="positive numbers, all different", do="pass for instance (1, 10)")
    index_of = {key: number for number, key in enumerate(table.train_ids)}
    first, strict = [], []
    for query, scores_N in zip(table.query_ids, scores_QN, strict=True):
        wanted = gold.get(query, frozenset())
        if not wanted or not wanted <= index_of.keys():
            raise BadInput(
                found=f"{len(wanted)} gold documents of the query {query!r}, {len(wanted - index_of.keys())} of them not in the table",
                needed="one or more, all of them scored",
                do="score every document, with the ids that the facts have",
            )
        ranks = _pessimistic(scores_N, torch.tensor(sorted(index_of[key] for key in wanted)))
        first.append(int(ranks[0]))
        strict.append([float((ranks <= k).double().mean()) for k in sorted(ks)])
    strict_QK = torch.tensor(strict, dtype=torch.float64)
    return FactTracing(table.method, table.query_ids, tuple(sorted(ks)), torch.tensor(first), strict_QK)


def _pessimistic(scores_N: Tensor, gold: Tensor) -> Tensor:
    """Ranks of the gold documents from 1, ascending, each behind all others of its score."""
    is_other_N = torch.ones(len(scores_N), dtype=torch.bool)
    is_other_N[gold] = False
    others = scores_N[is_other_N].sort().values
    best_first = scores_N[gold].sort(descending=True).values
    not_below = len(others) - torch.searchsorted(others, best_first)
    return not_below + torch.arange(1, len(gold) + 1)
