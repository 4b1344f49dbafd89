"""Half of a damped inverse, which leaves gradients whose plain inner product is their influence, and the whole from its half."""

from collections.abc import Sequence

import torch
from torch import Tensor

from whence.compress import Kronecker, Whitened
from whence.curvature.damping import ResolvedDamping
from whence.curvature.eigenbasis import KroneckerBlock, KroneckerCurvature
from whence.reflections import Basis

__all__ = ["solve_whitened", "whiten"]


def whiten(
    curvature: KroneckerCurvature, damping: ResolvedDamping, most_coordinates: int, device: torch.device | None = None
) -> Whitened:
    """Half of a damped inverse, restricted to the coordinates that carry most variance.

    A whitened coordinate has the variance eigenvalue / (eigenvalue + damping) under the curvature's own distribution of gradients.

    Args:
        curvature: The factors.
        damping: What is added to its eigenvalues.
        most_coordinates: How many are kept at most, over all units.
        device: Where rows will be whitened; None for where the factors are. Those that a fit reads from its folder are in memory.

    Returns:
        What whitens rows.
    """
    values = [block.values_OI + value for block, value in zip(curvature.blocks, curvature.dampings(damping), strict=True)]
    shares = [(block.values_OI / value).flatten() for block, value in zip(curvature.blocks, values, strict=True)]
    coordinates: list[Tensor | None] = [None] * len(values)
    if sum(map(len, shares)) > most_coordinates:
        # Ties at the threshold fall to the first ones.
        order = torch.cat(shares).argsort(descending=True, stable=True)[:most_coordinates]
        chosen = torch.zeros(sum(map(len, shares)), dtype=torch.bool).index_fill(0, order.cpu(), True)
        coordinates = [part.nonzero()[:, 0] for part in chosen.split([len(share) for share in shares])]

    def there(basis: Basis | None) -> Basis | None:
        return basis if basis is None or device is None else basis.to(device)

    bases = Kronecker(
        tuple(block.unit for block in curvature.blocks),
        tuple(there(block.outputs_OO) for block in curvature.blocks),
        tuple(there(block.inputs_II) for block in curvature.blocks),
    )
    weights = tuple(value.rsqrt() if device is None else value.rsqrt().to(device) for value in values)
    return Whitened(bases, weights, tuple(part if part is None or device is None else part.to(device) for part in coordinates))


def solve_whitened(whitened: Whitened, rows: Sequence[Tensor]) -> list[Tensor]:
    """The whole of the damped inverse that the halves are of, (H + damping)^-1, applied to vectors in parameter space.

    Weights of all coordinates are kept, so this is the inverse itself even where codes leave coordinates out.

    Args:
        whitened: One half.
        rows: Per unit, shape (Q, O, I).

    Returns:
        Per unit, shape (Q, O, I).
    """
    sides = zip(whitened.units, whitened.bases.outputs, whitened.bases.inputs, whitened.weights, strict=True)
    blocks = [KroneckerBlock(*parts) for parts in sides]
    return [block.back(block.into(row) * block.values_OI.to(row).square()) for block, row in zip(blocks, rows, strict=True)]
