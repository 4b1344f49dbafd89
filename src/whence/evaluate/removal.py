"""Are the scores true? Leave examples out, train again, and see what happens to the queries.

Axes: S seeds, Q queries.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whence.errors import BadInput
from whence.evaluate.retrain import Measure, Retraining, Run, Train
from whence.evaluate.statistics import Interval, mean_interval, or_none

__all__ = ["ConditionResult", "RemovalResult", "random_removals", "removal_test"]

BASELINE = "none"


@dataclass(frozen=True)
class ConditionResult:
    """What leaving one kind of examples out did to the queries.

    A rise is a query's loss after training without the examples, minus its loss after training on all of them with the same seed.

    Args:
        rises_SQ: Rise per seed and query, in the unit of the loss.
        num_removed: Examples left out, per seed.
    """

    rises_SQ: Tensor
    num_removed: tuple[int, ...]

    @property
    def rises(self) -> Tensor:
        """Mean rise of each query over seeds, shape (Q,)."""
        return self.rises_SQ.mean(0)

    @property
    def standard_errors(self) -> Tensor:
        """Standard error over seeds of each query's mean rise, shape (Q,); NaN with one seed."""
        num_seeds = len(self.rises_SQ)
        if num_seeds < 2:
            return torch.full_like(self.rises, math.nan)
        return self.rises_SQ.std(0) / math.sqrt(num_seeds)

    @property
    def overall(self) -> Interval:
        """Mean rise over queries and seeds with a 95 % t-interval over seeds.

        Queries are averaged within each seed first. So the interval tells how far the mean over *these* queries may move with other seeds,
        and with other draws where each seed has its own. It says nothing about other queries. Each value is paired with the full
        run of its seed.
        """
        return mean_interval(self.rises_SQ.mean(1))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        errors = [or_none(value) for value in self.standard_errors.tolist()]
        return {
            "num_removed": list(self.num_removed),
            "rises": self.rises.tolist(),
            "standard_errors": errors,
            "rises_by_seed": self.rises_SQ.tolist(),
            "overall": self.overall.to_dict(),
        }


@dataclass(frozen=True)
class RemovalResult:
    """Outcome of a removal test.

    Args:
        seeds: One full run and one run per condition for each.
        baseline_SQ: Loss of each query after training on everything.
        conditions: By name, in the order given.
    """

    seeds: tuple[int, ...]
    baseline_SQ: Tensor
    conditions: Mapping[str, ConditionResult]

    def difference(self, name: str, other: str) -> Interval:
        """How much more one condition raises the queries' mean loss than another, paired by seed; interval as in `overall`."""
        rises_SQ = self.conditions[name].rises_SQ - self.conditions[other].rises_SQ
        return mean_interval(rises_SQ.mean(1))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return {
            "seeds": list(self.seeds),
            "baseline": self.baseline_SQ.mean(0).tolist(),
            "conditions": {name: condition.to_dict() for name, condition in self.conditions.items()},
        }


def removal_test(
    train: Train,
    measure: Measure,
    num_examples: int,
    removals: Mapping[str, Sequence[Iterable[int]]],
    retraining: Retraining,
) -> RemovalResult:
    """Retrain without each set of examples, several times, and measure every query.

    For each seed there is one run on everything and one per condition. Results are kept in the folder, one small file per run: a second
    call trains only what is missing.

    Args:
        train: Called with a mask of shape (num_examples,), True for what is kept, and a seed; returns a model.
        measure: Called with a model; returns the loss of each query, shape (Q,).
        num_examples: Number of training examples.
        removals: Per condition, the indices to leave out: one set for all seeds, or one set per seed.
        retraining: Seeds, folder and workers.

    Returns:
        Rises against the full run of the same seed.

    Raises:
        BadInput: If a condition has the wrong number of sets, a bad index, or leaves nothing to train on.
    """
    seeds = retraining.seeds
    plan = {BASELINE: [Run((), seed) for seed in seeds]}
    for name, sets in removals.items():
        if name == BASELINE or len(sets) not in (1, len(seeds)):
            raise BadInput(
                found=f"condition {name!r} with {len(sets)} sets",
                needed=f"1 set for all seeds or {len(seeds)} sets, and a name other than {BASELINE!r} (always run)",
                do="give one list of indices per seed",
            )
        checked = [_checked(name, indices, num_examples) for indices in sets]
        plan[name] = [Run(checked[index % len(checked)], seed) for index, seed in enumerate(seeds)]
    runs = [plan[name][index] for index in range(len(seeds)) for name in plan]
    losses = retraining.measured(train, measure, runs, num_examples)
    baseline_SQ = torch.stack([losses[run] for run in plan.pop(BASELINE)])
    conditions = {
        name: ConditionResult(torch.stack([losses[run] for run in runs]) - baseline_SQ, tuple(len(run.removed) for run in runs))
        for name, runs in plan.items()
    }
    return RemovalResult(tuple(seeds), baseline_SQ, conditions)


def random_removals(num_examples: int, count: int, exclude: Iterable[int] = (), seed: int = 0) -> list[int]:
    """Examples drawn at random, to compare a chosen set with.

    Args:
        num_examples: Number of training examples.
        count: How many to draw.
        exclude: Indices that must not be drawn, such as the chosen set itself.
        seed: The same seed draws the same set.

    Returns:
        Different indices, ascending.

    Raises:
        BadInput: If there are not enough to draw from.

    >>> random_removals(5, 3, exclude=[0, 4])
    [1, 2, 3]
    """
    left = np.setdiff1d(np.arange(num_examples), np.fromiter(exclude, dtype=np.int64))
    if count > len(left):
        raise BadInput(found=f"{len(left)} examples to draw from", needed=f"at least {count}", do="draw fewer")
    return sorted(np.random.default_rng(seed).choice(left, count, replace=False).tolist())


def _checked(name: str, indices: Iterable[int], num_examples: int) -> tuple[int, ...]:
    removed = tuple(sorted({int(index) for index in indices}))
    if removed and not 0 <= removed[0] <= removed[-1] < num_examples:
        wrong = removed[0] if removed[0] < 0 else removed[-1]
        raise BadInput(
            found=f"index {wrong} in condition {name!r}",
            needed=f"0 to {num_examples - 1}",
            do="pass places in the dataset",
        )
    if len(removed) == num_examples:
        raise BadInput(found=f"condition {name!r}, which removes everything", needed="something left", do="remove fewer")
    return removed
