"""What a reader has to know of scores that are finite and cannot be what their unit says.

Axes: Q queries, N training examples.
"""

import torch
from torch import Tensor

from whence.capture import frozen
from whence.data import Dataset, batches
from whence.pipeline.exact.prepare import Prepared
from whence.score import highest_of, impossible_sizes
from whence.tasks import AbstractTask

__all__ = ["measurements", "size_notes"]

# A first-order change of a measurement by so many times what it measures is none.
_TIMES = 1e3
_NAMED = 3


def size_notes(prepared: Prepared, queries: Dataset, scores_QN: Tensor, weights_GQ: Tensor | None = None) -> tuple[str, ...]:
    """A note of scores that are more than the measurements have room for, or far beyond anything that they could be.

    Args:
        prepared: Model and training data.
        queries: What was asked.
        scores_QN: The scores, in the unit of the measurement.
        weights_GQ: Of all queries in a row, where rows are sums of them.

    Returns:
        The note; none where scores are possible ones, or products of gradients, which have no such unit.
    """
    highest = highest_of(prepared.task, queries.examples)
    can_be_told = bool((scores_QN.abs() > _TIMES).any()) or (highest is not None and weights_GQ is None)
    if prepared.curvature is None or not can_be_told:
        return ()
    values_Q = measurements(prepared.task, queries, prepared.max_positions)
    weight = 1.0 if weights_GQ is None else max(1.0, float(weights_GQ.abs().sum(1).max()))
    absurd = _absurd(prepared, float(values_Q.abs().max()), scores_QN, weight)
    if absurd or weights_GQ is not None:
        return absurd
    return impossible_sizes(values_Q, scores_QN.abs().amax(1), highest)


def measurements(task: AbstractTask, queries: Dataset, max_positions: int) -> Tensor:
    """What every query measures, in float64 on the CPU, shape (Q,).

    Args:
        task: The model.
        queries: The queries.
        max_positions: Positions computed on at once.
    """
    values_Q = torch.zeros(len(queries), dtype=torch.float64)
    with frozen(task.model), torch.no_grad():
        for rows in batches([example.length for example in queries.examples], max_positions=max_positions):
            batch = task.collate([queries.examples[row] for row in rows])
            values_Q[list(rows)] = task.measurement(task.model, batch).double().cpu()
    return values_Q


def _absurd(prepared: Prepared, most: float, scores_QN: Tensor, weight: float) -> tuple[str, ...]:
    """Of scores far beyond what the queries measure, with the examples that have them.

    The curvature of a classifier that is certain is next to zero, the gradient of an example that it is certain and wrong of is not, and the
    one divided by the other has no bounds.
    """
    absurd_N = (scores_QN.abs() > _TIMES * weight * (1 + most)).any(0)
    if not bool(absurd_N.any()):
        return ()
    rows = absurd_N.nonzero()[:, 0].tolist()
    named = ", ".join(repr(prepared.train.ids[row]) for row in rows[:_NAMED])
    more = f" and {len(rows) - _NAMED:,} more" if len(rows) > _NAMED else ""
    return (
        f"scores of up to {float(scores_QN.abs().max()):.2g} mean nothing beside measurements of up to {most:.2g}: there is next to no "
        f"curvature where the model is certain, whatever the gradient of an example that it is wrong of; examples: {named}{more}",
    )
