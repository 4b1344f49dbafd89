"""Vectors taken back through a graph, as many at once as it allows."""

from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

__all__ = ["pulled"]


def pulled(outputs: Sequence[Tensor], inputs: Sequence[Tensor], vectors: Sequence[Tensor], at_once: int) -> list[Tensor | None]:
    """Every vector taken back from outputs to inputs; the graph is kept.

    Args:
        outputs: Where the vectors are.
        inputs: Where they go.
        vectors: For every output, with the number of vectors in front.
        at_once: Vectors taken together.

    Returns:
        For every input, with the number of vectors in front; None where nothing comes from.

    Raises:
        RuntimeError: Whatever autograd raises for one vector.
    """
    chunks = zip(*(vector.split(at_once) for vector in vectors), strict=True)
    chunked = [_together(outputs, inputs, chunk) for chunk in chunks]
    return [None if parts[0] is None else torch.cat(parts) for parts in zip(*chunked, strict=True)]


def _together(outputs: Sequence[Tensor], inputs: Sequence[Tensor], vectors: Sequence[Tensor]) -> Sequence[Tensor | None]:
    def pull(chosen: Sequence[Tensor], is_batched: bool) -> Sequence[Tensor | None]:
        return torch.autograd.grad(outputs, inputs, chosen, retain_graph=True, allow_unused=True, is_grads_batched=is_batched)

    with suppress(RuntimeError):  # one by one where an operation cannot be done for several at once, or memory does not suffice
        if len(vectors[0]) > 1:
            return pull(vectors, True)
    each = [pull([vector[row] for vector in vectors], False) for row in range(len(vectors[0]))]
    return [None if parts[0] is None else torch.stack(parts) for parts in zip(*each, strict=True)]
