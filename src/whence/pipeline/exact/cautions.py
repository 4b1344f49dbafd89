"""What a reader has to know of scores that are finite and mean nothing.

Axes: Q queries, N training examples.
"""

import torch
from torch import Tensor

from whence.capture import frozen
from whence.data import Dataset, batches
from whence.pipeline.exact.prepare import Prepared

__all__ = ["absurd_scores"]

# A first-order change of a measurement by so many times what it measures is none.
_TIMES = 1e3
_NAMED = 3


def absurd_scores(prepared: Prepared, queries: Dataset, scores_QN: Tensor, weight: float = 1.0) -> list[str]:
    """A note of scores that are far beyond what the queries measure, with the examples that have them.

    The curvature of a classifier that is certain is next to zero, the gradient of an example that it is certain and wrong of is not, and the
    one divided by the other has no bounds.

    Args:
        prepared: Model and training data.
        queries: What was asked.
        scores_QN: The scores, in the unit of the measurement.
        weight: Of all queries in a row, where rows are sums of them.

    Returns:
        The note; none where scores are possible ones, or products of gradients, which have no such unit.
    """
    if prepared.curvature is None or not bool((scores_QN.abs() > _TIMES).any()):
        return []
    task, values = prepared.task, []
    with frozen(task.model), torch.no_grad():
        for rows in batches([example.length for example in queries.examples], max_positions=prepared.max_positions):
            batch = task.collate([queries.examples[row] for row in rows])
            values.append(task.measurement(task.model, batch).double().abs().max().cpu())
    most = float(torch.stack(values).max())
    absurd_N = (scores_QN.abs() > _TIMES * weight * (1 + most)).any(0)
    if not bool(absurd_N.any()):
        return []
    rows = absurd_N.nonzero()[:, 0].tolist()
    named = ", ".join(repr(prepared.train.ids[row]) for row in rows[:_NAMED])
    more = f" and {len(rows) - _NAMED:,} more" if len(rows) > _NAMED else ""
    return [
        f"scores of up to {float(scores_QN.abs().max()):.2g} mean nothing beside measurements of up to {most:.2g}: there is next to no "
        f"curvature where the model is certain, whatever the gradient of an example that it is wrong of; examples: {named}{more}"
    ]
