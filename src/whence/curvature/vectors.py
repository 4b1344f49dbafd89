"""Arithmetic of vectors in parameter space, many at a time.

Axes: Q vectors, D all numbers of one vector, O x I a unit's matrix.
"""

import torch
from torch import Tensor

from whence.capture import Blocks

__all__ = ["added", "flatten", "inner", "random_like", "scaled", "split"]


def inner(left: Blocks, right: Blocks) -> Tensor:
    """Inner product of each pair of vectors over all units, shape (Q,), float64, on the CPU, where solvers keep their books.

    >>> inner([torch.ones(2, 1, 3)], [torch.full((2, 1, 3), 2.0)])
    tensor([6., 6.], dtype=torch.float64)
    """
    parts = [torch.linalg.vecdot(a.flatten(1), b.flatten(1)).double() for a, b in zip(left, right, strict=True)]
    return torch.stack([part.to(parts[0].device) for part in parts]).sum(0).cpu()


def scaled(blocks: Blocks, factors: Tensor | float) -> Blocks:
    """Each vector times its factor, shape (Q,), or all times one number."""
    if isinstance(factors, Tensor):
        return [block * factors.to(block)[:, None, None] for block in blocks]
    return [block * factors for block in blocks]


def added(left: Blocks, right: Blocks, factors: Tensor | float = 1.0) -> Blocks:
    """The sum left + factors * right, vector by vector.

    >>> added([torch.ones(1, 1, 2)], [torch.ones(1, 1, 2)], -0.5)
    [tensor([[[0.5000, 0.5000]]])]
    """
    return [a + b for a, b in zip(left, scaled(right, factors), strict=True)]


def flatten(blocks: Blocks) -> Tensor:
    """The vectors as rows, units one after another, shape (Q, D)."""
    return torch.cat([block.flatten(1) for block in blocks], 1)


def split(rows_QD: Tensor, like: Blocks) -> Blocks:
    """The inverse of `flatten`.

    Args:
        rows_QD: The rows, any number of them.
        like: Blocks with the shapes of the units.

    Returns:
        Per unit, shape (Q, O, I).
    """
    parts = rows_QD.split([block[0].numel() for block in like], 1)
    return [part.reshape(-1, *block.shape[1:]) for part, block in zip(parts, like, strict=True)]


def random_like(like: Blocks, count: int, generator: torch.Generator) -> Blocks:
    """Standard normal vectors with the units, type and device of others.

    Args:
        like: Where units, type and device are taken from.
        count: How many vectors.
        generator: On the CPU, so that a seed gives the same numbers on every device.

    Returns:
        Per unit, shape (count, O, I).
    """
    return [torch.randn(count, *block.shape[1:], generator=generator, dtype=torch.float64).to(block) for block in like]
