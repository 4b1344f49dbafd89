"""Steps that a gradient scaler leaves out, since a gradient overflowed float16."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from whence.errors import Unsupported

__all__ = ["check_scaler", "overflowed", "watched_scaler"]


def check_scaler(scaler: Any, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Refuse a scaler that steps several optimizers, which a record cannot hold.

    Args:
        scaler: A `torch.amp.GradScaler`, or None.
        optimizers: Of the run.

    Raises:
        Unsupported: If it would leave out the steps of one of several.
    """
    if len(optimizers) > 1 and scaler is not None:
        raise Unsupported(
            found="a scaler that steps several optimizers",
            needed="one, since it may leave out the step of one and not the other's",
            do="train in bfloat16 or float32",
        )


@contextmanager
def watched_scaler(scaler: Any, after: Callable[[torch.optim.Optimizer], None]) -> Iterator[None]:
    """Tell somebody after each of a scaler's steps, whether the optimizer was called or not.

    Args:
        scaler: A `torch.amp.GradScaler`, or None.
        after: Takes the optimizer that the scaler was to step.

    Yields:
        Nothing.
    """
    if scaler is None:
        yield
        return
    step = scaler.step

    def stepped(optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
        result = step(optimizer, *args, **kwargs)
        after(optimizer)
        return result

    scaler.step = stepped
    try:
        yield
    finally:
        scaler.step = step


def overflowed(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a step that was called did nothing: fused optimizers look for overflows themselves."""
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(found_inf)
