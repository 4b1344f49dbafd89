"""What to do when memory was too little for a batch."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import nn

from whence.errors import OutOfMemory
from whence.sharded_weights import is_sharded

__all__ = ["in_halves", "is_out_of_memory"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_halves(items: Sequence[Item], run: Callable[[Sequence[Item]], Result], model: nn.Module) -> list[Result]:
    """Run on all items at once, or, where memory does not suffice, on halves, quarters and so on.

    Args:
        items: What to run on.
        run: Called with a part of them; must not keep anything from a call that failed.
        model: What runs. One that is split over processes has to run equally often in all of them, so nothing is halved there.

    Returns:
        One result per part, in order.

    Raises:
        OutOfMemory: If a single item does not fit, or the model is split and a batch does not.
        RuntimeError: Whatever else `run` raises.
    """
    try:
        return [run(items)]
    except MemoryError:
        pass
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise error
    # Outside the handler, so that the failed call's tensors are gone.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if is_sharded(model):
        raise OutOfMemory(
            found=f"no memory for a batch of {len(items)} examples in one of the processes that the model is split over",
            needed="batches that fit everywhere, since all processes run equally many",
            do="pass a smaller batch_positions (--batch-positions), or switch on gradient checkpointing",
        )
    if len(items) == 1:
        raise OutOfMemory(
            found="no memory for a batch of one example",
            needed="room for one forward and backward pass",
            do="use shorter examples (long='split', a smaller max_length), bfloat16 weights, gradient checkpointing, or fewer draws of "
            "diffusion at once (at_once)",
        )
    half = len(items) // 2
    return in_halves(items[:half], run, model) + in_halves(items[half:], run, model)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory does not suffice."""
    is_one = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return is_one or "allocate memory" in str(error) or "out of memory" in str(error)
