"""Whether scores can be what their unit says.

Axes: Q queries.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from whence.data import Example
from whence.tasks import AbstractTask

__all__ = ["RELATIVE", "believable_unit", "highest_of", "impossible_sizes"]

RELATIVE = "relative units: an order, no amounts"
"""The unit of scores that cannot be changes of the measurement."""


def highest_of(task: AbstractTask, queries: Sequence[Example]) -> float | None:
    """What the queries' measurements can be at most; None where nothing is known, as of a difference of log-probabilities."""
    return None if any("foil_ids" in query.fields for query in queries) else task.highest_measurement


def impossible_sizes(values_Q: Tensor, largest_Q: Tensor, highest: float | None) -> tuple[str, ...]:
    """A note where a predicted change is more than the measurement has room for, such as +17 nats for a log-probability of -5.

    A score is a derivative, taken at the final weights. Where curvature is small it goes on rising in places where the measurement would not,
    so its order can be right while its size is not.

    Args:
        values_Q: The measurements, shape (Q,).
        largest_Q: The largest absolute score of each query, shape (Q,).
        highest: What the measurement can be at most; None where nothing is known.

    Returns:
        One note, or none.

    >>> impossible_sizes(torch.tensor([-5.0, -30.0]), torch.tensor([17.0, 3.0]), 0.0)[0].split(":")[0]
    'sizes are relative for 1 of 2 queries'
    """
    if highest is None:
        return ()
    room_Q = highest - values_Q.double()
    is_over_Q = largest_Q.double() > room_Q
    if not bool(is_over_Q.any()):
        return ()
    worst = int(torch.where(is_over_Q, largest_Q.double() - room_Q, -torch.inf).argmax())
    return (
        f"sizes are relative for {int(is_over_Q.sum()):,} of {len(values_Q):,} quer{'y' if len(values_Q) == 1 else 'ies'}: a score of "
        f"{float(largest_Q[worst]):.3g} stands beside a measurement of {float(values_Q[worst]):.3g}, which can rise by "
        f"{float(room_Q[worst]):.3g} at most; read the order, not the amounts",
    )


def believable_unit(
    unit: str, task: AbstractTask, values_Q: Tensor, scores: Sequence[Iterable[float]], queries: Sequence[Example] = ()
) -> tuple[str, tuple[str, ...]]:
    """The unit that scores can be told in, with a note where that is not the measurement's.

    Args:
        unit: What the scores are counted in; anything but the measurement's unit stays as it is.
        task: Says how high a measurement can be.
        values_Q: The measurements, shape (Q,).
        scores: Of each query, of what is shown on either side.
        queries: The queries.
    """
    largest_Q = torch.tensor([max(map(abs, shown), default=0.0) for shown in scores])
    notes = impossible_sizes(values_Q, largest_Q, highest_of(task, queries)) if unit == task.unit else ()
    return (RELATIVE if notes else unit), notes
