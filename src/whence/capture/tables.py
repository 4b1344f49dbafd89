"""Tables of rows that are looked up in other ways than by ids with an axis for the examples: places, and distances between them.

Axes: N rows of a table, R inputs of the model.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from whence.capture.swapped import with_weights
from whence.errors import Unsupported

__all__ = ["bias_method", "rows_looked_up"]

# What attention layers with a table of distances call the method that looks them up: T5 and its like, MPNet.
_BIAS_METHODS = ("compute_bias", "compute_position_bias")


def rows_looked_up(table: nn.Embedding, call: Callable[[], Any], output: Tensor, axis: int) -> Tensor | None:
    """Which row of a table each vector of an output is: what the same call gives of a table of row numbers.

    So ids that a layer makes itself, from a mask, a length or distances, need not be known to be found.

    Args:
        table: The layer.
        call: What looks rows up in it.
        output: What that gave.
        axis: Of the output, along which a row lies.

    Returns:
        The numbers, in the output's shape without that axis; None if the call does something else than look up, or the weight is not in one
        place.
    """
    weight = table.weight
    numbers = torch.arange(len(weight), dtype=torch.float64, device=output.device)[:, None].expand(weight.shape)
    try:
        with torch.no_grad():
            numbered = with_weights(table, {"weight": numbers}, call)
    except Unsupported:
        return None
    if not isinstance(numbered, Tensor) or numbered.shape != output.shape:
        return None
    ids = numbered.movedim(axis, -1)[..., 0].round().long().clamp(0, len(weight) - 1)
    is_lookup = torch.equal(weight.detach().to(output)[ids], output.detach().movedim(axis, -1))
    return ids if is_lookup else None


def bias_method(owner: nn.Module | None) -> str:
    """The method of an attention layer that looks distances up for all examples at once; "" if it has none."""
    return next((name for name in _BIAS_METHODS if callable(getattr(owner, name, None))), "")
