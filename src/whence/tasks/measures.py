"""What a query asks about: one of a task's own measurements by name, or any function of model and batch."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from whence.errors import BadInput, UnknownOption

__all__ = ["Measure", "chosen_measure", "mean_log_odds"]

Measure = Callable[[nn.Module, Any], Tensor]
"""Gives one value per query, shape (B,), from the model and a batch of the task. It is differentiated, so it uses torch throughout."""


def chosen_measure(measure: Any, unit: str | None, units: Mapping[str, str]) -> tuple[Any, str]:
    """A measurement and its unit.

    Args:
        measure: A name or a function.
        unit: What a function's values are counted in.
        units: Of the task's own measurements, by name.

    Raises:
        BadInput: If a unit is given for a measurement that has one.
        UnknownOption: If there is no such name.
    """
    if callable(measure):
        return measure, unit or "units of the measurement"
    if measure not in units:
        raise UnknownOption(
            found=f"measure={measure!r}", needed=f"one of: {', '.join(units)}; or a function of model and batch", do="pick one"
        )
    if unit is not None:
        raise BadInput(
            found=f"unit={unit!r} for measure={measure!r}",
            needed="no unit, since that is in " + units[measure],
            do="leave unit out",
        )
    return measure, units[measure]


def mean_log_odds(loss_B: Tensor, counts_B: Tensor) -> Tensor:
    """Log-odds of the scored tokens' geometric mean probability, times their number, shape (B,).

    Args:
        loss_B: Summed negative log-likelihood of each example's scored tokens.
        counts_B: How many there are.
    """
    # Where every token has probability 1 to the last bit, the log-odds are as large as the type can tell.
    mean_B = (loss_B / counts_B).clamp_min(torch.finfo(loss_B.dtype).eps)
    return counts_B * (-mean_B - torch.log(-torch.expm1(-mean_B)))
