"""Does training on what was retrieved raise the query's measurement? One more step, looked at, and taken back.

Axes: Q queries, N training examples, K lengths of the list.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from whence.capture import frozen, put_back
from whence.data import Dataset, Example
from whence.errors import BadInput, NonFinite
from whence.evaluate.statistics import Interval, mean_interval
from whence.evaluate.tables import aligned
from whence.progress import meter
from whence.records import ScoreTable
from whence.tasks import AbstractTask

__all__ = ["TailPatch", "tail_patch"]


@dataclass(frozen=True)
class TailPatch:
    """Increase of the queries' measurement by a training step on retrieved and on random examples.

    Args:
        method: What the scores were made by.
        unit: Of the measurement.
        learning_rate: Length of the step.
        together: Whether each step was on all k examples, or on one at a time with the increases averaged.
        ks: Lengths of the list, ascending.
        increases_QK: By the k strongest proponents.
        random_QK: By as many random examples that are none of the longest list.
    """

    method: str
    unit: str
    learning_rate: float
    together: bool
    ks: tuple[int, ...]
    increases_QK: Tensor
    random_QK: Tensor

    def increase(self, k: int) -> Interval:
        """Mean increase by the first k proponents with a 95 % t-interval over queries.

        Args:
            k: One of the lengths that were asked for.
        """
        return mean_interval(self.increases_QK[:, self.ks.index(k)])

    def over_random(self, k: int) -> Interval:
        """Mean increase minus that by random examples, paired by query; interval as in `increase`.

        Args:
            k: One of the lengths that were asked for.
        """
        return mean_interval((self.increases_QK - self.random_QK)[:, self.ks.index(k)])

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return {
            "method": self.method,
            "unit": self.unit,
            "learning_rate": self.learning_rate,
            "together": self.together,
            "increase": {str(k): self.increase(k).to_dict() for k in self.ks},
            "random": {str(k): mean_interval(self.random_QK[:, index]).to_dict() for index, k in enumerate(self.ks)},
            "over_random": {str(k): self.over_random(k).to_dict() for k in self.ks},
        }


@dataclass(frozen=True, kw_only=True)
class TailSteps:
    """Which steps are taken.

    Args:
        learning_rate: Length of a step; the last one of the training run is the natural choice.
        ks: How many proponents.
        together: One step on the mean loss of all k, instead of one on each example alone with the increases averaged.
        seed: Of the random examples, drawn for each query from outside its longest list.

    Raises:
        BadInput: If the learning rate is not positive, or a k is not positive or repeats.
    """

    learning_rate: float
    ks: Sequence[int] = (1, 3, 5, 10)
    together: bool = False
    seed: int = 0

    def __post_init__(self):
        if not self.learning_rate > 0:
            raise BadInput(
                found=f"learning_rate={self.learning_rate}", needed="a positive number", do="pass the last one of the training"
            )
        if not self.ks or min(self.ks) < 1 or len(set(self.ks)) != len(self.ks):
            raise BadInput(found=f"ks={tuple(self.ks)}", needed="positive numbers, all different", do="correct them")


def tail_patch(
    task: AbstractTask,
    train: Dataset,
    queries: Dataset,
    table: ScoreTable,
    steps: TailSteps,
    *,
    quiet: bool = False,
) -> TailPatch:
    """Take one gradient step on each query's proponents and measure the query again (Chang et al. 2024, arXiv 2410.17413).

    Each step starts at the task's present weights: plain gradient descent on the tracked parameters, weights -= learning_rate x gradient,
    with the loss as the task has it, summed over an example's positions. By default a step is on one example, and the increases of the
    first k are averaged; `together` steps once on the mean loss of all k. The published measure takes the optimizer of the training
    run; where that was an adaptive one, lengths of steps differ, the sign and the order of methods need not. In half precision a
    short step may be lost to rounding.

    The weights come back bit for bit, whatever happens.

    Args:
        task: Model, loss and measurement.
        train: The training examples.
        queries: The queries.
        table: Scores over both, matched by id.
        steps: Length and number of the steps.
        quiet: No progress on stderr.

    Returns:
        Increases by proponents and by random examples; positive where the step raised the measurement.

    Raises:
        BadInput: If there are fewer than 2 x the largest k examples.
        NonFinite: If a step leads to a measurement that is NaN or infinite.
    """
    ks, together = tuple(sorted(steps.ks)), steps.together
    if 2 * ks[-1] > len(train):
        raise BadInput(
            found=f"ks={ks} for {len(train)} training examples",
            needed="twice as many examples as the largest",
            do="ask for fewer",
        )
    ids = [dataset.ids for dataset in (queries, train)]
    order_QN = aligned(table, *ids).sort(dim=1, descending=True, stable=True).indices
    picked_QK = _outside(order_QN[:, ks[-1] :], ks[-1], steps.seed)
    # A step is a set of examples; what several queries have in common is done once.
    wanted: dict[tuple[int, ...], set[int]] = defaultdict(set)
    for chosen_QK in (order_QN, picked_QK):
        for query, rows in enumerate(chosen_QK[:, : ks[-1]].tolist()):
            for step in _steps(rows, ks, together):
                wanted[step].add(query)
    before = {query: _measured(task, example) for query, example in enumerate(queries.examples)}
    increases: dict[tuple[tuple[int, ...], int], float] = {}
    with meter("tail-patch", len(wanted), quiet=quiet) as progress:
        for step, asking_queries in wanted.items():
            with _stepped(task, [train.examples[row] for row in step], steps.learning_rate):
                for query in sorted(asking_queries):
                    increases[step, query] = _measured(task, queries.examples[query]) - before[query]
            progress.advance()
    both = [
        torch.tensor(
            [_averages(rows, ks, together, query, increases) for query, rows in enumerate(chosen_QK.tolist())],
            dtype=torch.float64,
        )
        for chosen_QK in (order_QN[:, : ks[-1]], picked_QK)
    ]
    return TailPatch(table.method, task.unit, steps.learning_rate, together, ks, *both)


def _outside(rest_QR: Tensor, count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([rest_R[torch.randperm(len(rest_R), generator=generator)[:count]] for rest_R in rest_QR])


def _steps(rows: Sequence[int], ks: Sequence[int], together: bool) -> list[tuple[int, ...]]:
    """The steps behind one query's numbers: the first k at once, or each alone."""
    return [tuple(sorted(rows[:k])) for k in ks] if together else [(row,) for row in rows]


def _averages(rows, ks, together, query, increases) -> list[float]:
    increases_found = [increases[step, query] for step in _steps(rows, ks, together)]
    return increases_found if together else [sum(increases_found[:k]) / k for k in ks]


@contextmanager
def _stepped(task: AbstractTask, examples: Sequence[Example], learning_rate: float) -> Iterator[None]:
    """The task's model one step further, and back."""
    parameters = [value for name, value in task.model.named_parameters() if name in task.tracked]
    with put_back(task.model, parameters):
        gradients = _gradients(task, parameters, examples)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    parameter.sub_(gradient, alpha=learning_rate)
        yield


def _gradients(task: AbstractTask, parameters: Sequence[Tensor], examples: Sequence[Example]) -> list[Tensor | None]:
    gradients_before = [parameter.grad for parameter in parameters]
    try:
        with frozen(task.model), torch.enable_grad():
            for parameter in parameters:
                parameter.requires_grad_(True)
                parameter.grad = None
            # Not autograd.grad, which reentrant checkpointing refuses.
            task.loss(task.model, task.collate(examples)).mean().backward()
        return [parameter.grad for parameter in parameters]
    finally:
        for parameter, gradient in zip(parameters, gradients_before, strict=True):
            parameter.grad = gradient


def _measured(task: AbstractTask, query: Example) -> float:
    """Alone, so that its value does not depend on what it is batched with.

    Raises:
        NonFinite: If it is NaN or infinite.
    """
    with frozen(task.model), torch.no_grad():
        value = float(task.measurement(task.model, task.collate([query])))
    if value - value != 0:
        raise NonFinite(
            found=f"a measurement of {value} for the query {query.id!r}",
            needed="a finite number before and after each step",
            do="lower the learning rate, or check the model if it is that of its own weights",
        )
    return value
