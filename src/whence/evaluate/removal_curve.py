"""How much worse do the queries get, the more of the highest scored examples are gone?

Axes: Q queries, N training examples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from whence.errors import BadInput
from whence.evaluate.removal import RemovalResult, random_removals, removal_test
from whence.evaluate.retrain import Measure, Retraining, Train
from whence.evaluate.statistics import Interval
from whence.evaluate.tables import checked
from whence.records import ScoreTable

__all__ = ["RemovalCurve", "removal_curve"]


@dataclass(frozen=True)
class RemovalCurve:
    """Rise of the queries' mean loss by the share of examples removed.

    Args:
        method: What the scores were made by.
        fractions: Shares of the training examples, ascending.
        num_removed: The same in examples.
        result: The runs behind it, with the conditions "top N" and "random N" for each number of examples.
    """

    method: str
    fractions: tuple[float, ...]
    num_removed: tuple[int, ...]
    result: RemovalResult

    def rise(self, fraction: float) -> Interval:
        """Mean rise of the loss without the highest scored, over queries and seeds; interval over seeds.

        Args:
            fraction: One of those that were asked for.
        """
        return self.result.conditions[f"top {self._number(fraction)}"].overall

    def random(self, fraction: float) -> Interval:
        """The same without as many random examples.

        Args:
            fraction: One of those that were asked for.
        """
        return self.result.conditions[f"random {self._number(fraction)}"].overall

    def over_random(self, fraction: float) -> Interval:
        """The first minus the second, paired by seed.

        Args:
            fraction: One of those that were asked for.
        """
        number = self._number(fraction)
        return self.result.difference(f"top {number}", f"random {number}")

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return {
            "method": self.method,
            "num_seeds": len(self.result.seeds),
            "points": [
                {
                    "fraction": fraction,
                    "num_removed": number,
                    "top": self.rise(fraction).to_dict(),
                    "random": self.random(fraction).to_dict(),
                    "over_random": self.over_random(fraction).to_dict(),
                }
                for fraction, number in zip(self.fractions, self.num_removed, strict=True)
            ],
        }

    def _number(self, fraction: float) -> int:
        return self.num_removed[self.fractions.index(fraction)]


def removal_curve(
    train: Train,
    measure: Measure,
    table: ScoreTable,
    retraining: Retraining,
    *,
    fractions: Sequence[float] = (0.01, 0.05, 0.1),
) -> RemovalCurve:
    """Retrain without the highest scored shares of the data, for all queries of the table at once.

    One order serves the whole table: examples by the sum of their scores over the queries, which is their predicted effect on the sum of
    the queries' measurements. That holds for scores in the measurement's unit; of cosines and other scores without one the sum is a
    convention, and a query with larger scores weighs more. As many random examples, drawn anew for each seed, are the control. For a
    single query pass a table of one row.

    Args:
        train: Called with a mask of shape (N,), True for what is kept, and a seed; returns a model.
        measure: Called with a model; returns the loss of each query, shape (Q,).
        table: Scores; columns in the order of the mask.
        retraining: Seeds, folder and workers.
        fractions: Shares of the training examples to remove, rounded to whole examples.

    Returns:
        Rises per fraction, and those of the control.

    Raises:
        BadInput: If a fraction comes to no example or to all of them, or two to the same number.
    """
    scores_N = checked(table).sum(0)
    fractions = tuple(sorted(fractions))
    numbers = tuple(round(fraction * len(scores_N)) for fraction in fractions)
    if not numbers or numbers[0] < 1 or numbers[-1] >= len(scores_N) or len(set(numbers)) != len(numbers):
        raise BadInput(
            found=f"the fractions {fractions} of {len(scores_N)} examples, which are {numbers} examples",
            needed="different numbers of examples, at least 1 and not all",
            do="choose other fractions",
        )
    order = scores_N.sort(descending=True, stable=True).indices.tolist()
    removals = {}
    for number in numbers:
        removals[f"top {number}"] = [order[:number]]
        removals[f"random {number}"] = [random_removals(len(scores_N), number, seed=seed) for seed in retraining.seeds]
    result = removal_test(train, measure, len(scores_N), removals, retraining)
    return RemovalCurve(table.method, fractions, numbers, result)
