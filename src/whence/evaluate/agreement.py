"""Do two score tables tell the same story? Two methods, two seeds, a proxy and the model itself.

Axes: Q queries, N training examples, K top or bottom examples.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from whence.errors import BadInput
from whence.evaluate.ranks import spearman
from whence.evaluate.statistics import Interval, mean_interval
from whence.evaluate.tables import aligned, checked
from whence.records import ScoreTable

__all__ = ["Agreement", "agreement"]


@dataclass(frozen=True)
class Agreement:
    """How alike two tables order the training examples, query by query.

    Args:
        methods: What the two tables were made by.
        query_ids: In the order of the first table.
        k: Length of the compared ends.
        num_examples: Training examples in either table.
        spearman_Q: Rank correlation over all training examples.
        top_Q: Share of the k strongest proponents that both name.
        bottom_Q: The same for the k strongest opponents.
    """

    methods: tuple[str, str]
    query_ids: tuple[str, ...]
    k: int
    num_examples: int
    spearman_Q: Tensor
    top_Q: Tensor
    bottom_Q: Tensor

    @property
    def chance(self) -> float:
        """Share of the k that two random orders have in common on average."""
        return self.k / self.num_examples

    @property
    def spearman(self) -> Interval:
        """Mean over queries with a 95 % t-interval: how far it may move with other queries of the same kind."""
        return mean_interval(self.spearman_Q)

    @property
    def top(self) -> Interval:
        """Mean overlap of the proponents, interval as in `spearman`."""
        return mean_interval(self.top_Q)

    @property
    def bottom(self) -> Interval:
        """Mean overlap of the opponents, interval as in `spearman`."""
        return mean_interval(self.bottom_Q)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return {
            "methods": list(self.methods),
            "k": self.k,
            "num_examples": self.num_examples,
            "chance": self.chance,
            "spearman": self.spearman.to_dict(),
            "top": self.top.to_dict(),
            "bottom": self.bottom.to_dict(),
            "queries": {
                name: {"spearman": rho, "top": top, "bottom": bottom}
                for name, rho, top, bottom in zip(
                    self.query_ids, self.spearman_Q.tolist(), self.top_Q.tolist(), self.bottom_Q.tolist(), strict=True
                )
            },
        }


def agreement(first: ScoreTable, second: ScoreTable, *, k: int = 10) -> Agreement:
    """Compare the orders of two tables, matched by id.

    Only orders are compared: tables in different units, such as a cosine and nats, may be held against each other. Ties at the edge of the k
    are decided by the place in the first table, in both; a table with many equal scores overlaps with itself more than it knows.

    Args:
        first: One table.
        second: Another over the same queries and training examples, in any order.
        k: How many of the strongest proponents and opponents to compare.

    Returns:
        Per query and on average.

    Raises:
        BadInput: If k is not between 1 and the number of training examples.

    >>> table = ScoreTable(torch.tensor([[3.0, 2.0, 1.0]]), ("q",), ("a", "b", "c"), "nats", "one")
    >>> other = ScoreTable(torch.tensor([[1.0, 3.0, 9.0]]), ("q",), ("c", "a", "b"), "nats", "other")
    >>> found = agreement(table, other, k=1)
    >>> found.spearman.mean, found.top.mean, found.bottom.mean
    (0.5, 0.0, 1.0)
    """
    first_QN = checked(first)
    num_examples = first_QN.shape[1]
    if not 1 <= k <= num_examples:
        raise BadInput(found=f"k={k} for {num_examples} training examples", needed="1 to their number", do="choose another k")
    second_QN = aligned(second, first.query_ids, first.train_ids)
    return Agreement(
        (first.method, second.method),
        first.query_ids,
        k,
        num_examples,
        spearman(first_QN, second_QN),
        _overlap(first_QN, second_QN, k),
        _overlap(-first_QN, -second_QN, k),
    )


def _overlap(first_QN: Tensor, second_QN: Tensor, k: int) -> Tensor:
    chosen_QN = []
    for scores_QN in (first_QN, second_QN):
        top_QK = scores_QN.sort(dim=1, descending=True, stable=True).indices[:, :k]
        chosen_QN.append(torch.zeros_like(scores_QN, dtype=torch.bool).scatter_(1, top_QK, True))
    return (chosen_QN[0] & chosen_QN[1]).sum(1).double() / k
