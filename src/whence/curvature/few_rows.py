"""How many vectors the second moments of a fit are sums of: with few of them, a sketch holds all there is of a long side."""

from collections import Counter
from math import ceil

from whence.capture import Plan, capture
from whence.curvature.labels import choose_labels
from whence.curvature.sides import LONG_SIDE
from whence.data import Dataset
from whence.records import Pair
from whence.settings import FitConfig
from whence.sharded_weights import is_sharded
from whence.tasks import AbstractTask

__all__ = ["few_rows"]


def few_rows(task: AbstractTask, plan: Plan, dataset: Dataset, config: FitConfig) -> int | None:
    """Vectors that a side's second moment is a sum of, at most: its rank is not larger.

    Layers may be applied at other places than the data's positions, or several times at each, so that is counted on the shortest and the
    longest example, which bounds every example between them: rows grow by the position, or are as many for each.

    Args:
        task: Model and likelihood.
        plan: Its units.
        dataset: What the curvature is averaged over.
        config: Labels and samples.

    Returns:
        The number; None where no side is long, none is twice as long as there are positions, or sizes were asked for.
    """
    if config.largest_side is not None or config.directions is not None:
        return None
    longest = max(max(unit.outputs, unit.inputs) for unit in plan.units)
    positions = sum(example.length for example in dataset.examples)
    if longest <= LONG_SIDE or 2 * positions > longest or is_sharded(task.model):
        return None
    examples = sorted(dataset.examples, key=lambda example: example.length)
    a_position = 0.0
    for example in examples[:: max(len(examples) - 1, 1)]:
        rows: Counter[int] = Counter()

        def count(index: int, pair: Pair, rows: Counter[int] = rows) -> None:
            rows[index] += pair.shape[0] * pair.shape[1]

        batch = task.collate([example])
        capture(task, plan, batch, count, num_examples=1, alone=lambda _, batch=batch: batch)
        a_position = max(a_position, max(rows.values(), default=0) / max(example.length, 1))
    rule = choose_labels(task, dataset.examples, config.labels, samples=config.samples, seed=config.seed)
    return ceil(a_position * positions) * rule.passes
