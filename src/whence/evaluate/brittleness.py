"""How few examples carry a prediction? Remove a query's proponents, train again, and see whether its class flips.

Axes: S seeds, Q queries, N training examples, K numbers of removed examples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from whence.errors import BadInput
from whence.evaluate.retrain import Measure, Retraining, Run, Train
from whence.evaluate.statistics import Interval, mean_interval
from whence.evaluate.tables import checked
from whence.records import ScoreTable

__all__ = ["Brittleness", "brittleness"]

CONDITIONS = ("proponents", "random, same label", "random")


@dataclass(frozen=True)
class Brittleness:
    """Which queries flip when how many examples are gone.

    Args:
        method: What the scores were made by.
        ks: Numbers of removed examples, ascending.
        query_ids: Of the queries that every full run gets right; the others are left out.
        num_queries: Queries asked about, those left out included.
        flipped_at: By condition, for each query the smallest k at which it flipped, or None.
        num_runs: Training runs behind it, full ones included.
    """

    method: str
    ks: tuple[int, ...]
    query_ids: tuple[str, ...]
    num_queries: int
    flipped_at: Mapping[str, tuple[int | None, ...]]
    num_runs: int

    def share(self, condition: str, k: int) -> Interval:
        """Share of queries flipped by k removals or fewer, with a 95 % t-interval over queries.

        Args:
            condition: "proponents", "random, same label" or "random".
            k: Any number.
        """
        flipped_Q = [num_removed is not None and num_removed <= k for num_removed in self.flipped_at[condition]]
        return mean_interval(torch.tensor(flipped_Q, dtype=torch.float64))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return {
            "method": self.method,
            "num_queries": self.num_queries,
            "num_kept": len(self.query_ids),
            "num_runs": self.num_runs,
            "shares": {
                condition: {str(k): self.share(condition, k).to_dict() for k in self.ks} for condition in self.flipped_at
            },
            "flipped_at": {
                condition: dict(zip(self.query_ids, flips, strict=True)) for condition, flips in self.flipped_at.items()
            },
        }


def brittleness(
    train: Train,
    correct: Measure,
    table: ScoreTable,
    labels: Tensor,
    query_labels: Tensor,
    retraining: Retraining,
    *,
    ks: Sequence[int],
    draw_seed: int = 0,
) -> Brittleness:
    """Remove each query's k strongest proponents, retrain, and see whether the query flips.

    The measure of Ilyas et al. 2022, arXiv 2202.00622, as used by Park et al. 2023, arXiv 2303.14186. A query counts as flipped when it is
    right in less than half of the seeds; once flipped it counts for every larger k, so k is searched upwards and only for queries that
    stand. Two controls remove as many examples at random, from the query's class and from all.
    There the examples for a smaller k are among those for a larger one, as with proponents.

    Args:
        train: Called with a mask of shape (N,), True for what is kept, and a seed; returns a model.
        correct: Called with a model; returns for each query 1 if it gets the class right and 0 if not, shape (Q,).
        table: Scores; columns in the order of the mask, rows in the order of `correct`.
        labels: Class of each training example, shape (N,).
        query_labels: Class of each query, shape (Q,).
        retraining: Seeds, folder and workers.
        ks: How many to remove.
        draw_seed: Of the random examples.

    Returns:
        Flips per condition, of the queries that every full run gets right.

    Raises:
        BadInput: If the shapes do not fit, ks repeat, a k leaves too little or its class has too few examples, `correct` gives
            something else than 0 and 1, or no query is right in every full run.
    """
    scores_QN = checked(table)
    ks = tuple(sorted(ks))
    _check(scores_QN, labels, query_labels, ks)

    done = retraining.measured(train, correct, [Run((), seed) for seed in retraining.seeds], scores_QN.shape[1])
    right_queries = _always_right(torch.stack([done[Run((), seed)] for seed in retraining.seeds]), len(scores_QN))
    orders = _orders(scores_QN, labels, query_labels, right_queries, ks[-1], draw_seed)
    flipped: dict[tuple[str, int], int] = {}
    for k in ks:
        standing = [key for key in orders if key not in flipped]
        runs = {key: [Run(tuple(sorted(orders[key][:k])), seed) for seed in retraining.seeds] for key in standing}
        done |= retraining.measured(train, correct, [run for each in runs.values() for run in each], scores_QN.shape[1])
        for (condition, query), each in runs.items():
            if sum(float(done[run][query]) for run in each) < len(each) / 2:
                flipped[condition, query] = k
    return Brittleness(
        table.method,
        ks,
        tuple(table.query_ids[query] for query in right_queries),
        len(scores_QN),
        {condition: tuple(flipped.get((condition, query)) for query in right_queries) for condition in CONDITIONS},
        len(done),
    )


def _always_right(right_SQ: Tensor, num_queries: int) -> list[int]:
    """The queries that every full run gets right.

    Raises:
        BadInput: If there are none, or what was measured does not say which.
    """
    if right_SQ.shape[1] != num_queries or not bool(((right_SQ == 0) | (right_SQ == 1)).all()):
        raise BadInput(
            found=f"{right_SQ.shape[1]} values from {float(right_SQ.min()):g} to {float(right_SQ.max()):g} for {num_queries} queries",
            needed="1 for each query that the model gets right and 0 for the others",
            do="let `correct` compare classes, in the order of the table",
        )
    queries = right_SQ.bool().all(0).nonzero()[:, 0].tolist()
    if not queries:
        raise BadInput(
            found=f"none of {num_queries} queries right in all {len(right_SQ)} full runs",
            needed="one or more",
            do="train longer, or ask about other queries",
        )
    return queries


def _orders(
    scores_QN: Tensor, labels: Tensor, query_labels: Tensor, queries: Sequence[int], most: int, seed: int
) -> dict[tuple[str, int], list[int]]:
    """By condition and query, the examples in the order in which they are removed.

    Raises:
        BadInput: If a class has too few.
    """
    generator = torch.Generator().manual_seed(seed)
    orders = {}
    for query in queries:
        same = (labels.cpu() == query_labels.cpu()[query]).nonzero()[:, 0]
        if len(same) < most:
            raise BadInput(
                found=f"{len(same)} training examples with the label {int(query_labels[query])} of a query",
                needed=f"at least {most}, for the control that removes as many of the same label",
                do="ask for smaller ks",
            )
        best = scores_QN[query].sort(descending=True, stable=True).indices
        drawn = same[torch.randperm(len(same), generator=generator)], torch.randperm(len(labels), generator=generator)
        for condition, order in zip(CONDITIONS, (best, *drawn), strict=True):
            orders[condition, query] = order[:most].tolist()
    return orders


def _check(scores_QN: Tensor, labels: Tensor, query_labels: Tensor, ks: Sequence[int]) -> None:
    if (tuple(query_labels.shape), tuple(labels.shape)) != ((len(scores_QN),), (scores_QN.shape[1],)):
        raise BadInput(
            found=f"labels of shape {tuple(labels.shape)} and {tuple(query_labels.shape)} for a table of {tuple(scores_QN.shape)}",
            needed="one label per training example and one per query",
            do="pass them in the order of the table",
        )
    if not ks or ks[0] < 1 or ks[-1] >= scores_QN.shape[1] or len(set(ks)) != len(ks):
        raise BadInput(
            found=f"ks={tuple(ks)} for {scores_QN.shape[1]} training examples",
            needed="positive numbers, all different, that leave something to train on",
            do="pass for instance (20, 40, 80)",
        )
