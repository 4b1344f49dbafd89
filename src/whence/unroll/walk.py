"""SOURCE on the query's side: a gradient carried back through the segments of a run.

Bae et al. 2024 (arXiv 2405.12186), equations 16 to 18 and appendices C and D. Axes: Q queries, O outputs, I inputs of a unit.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from whence.capture import Blocks, Plan, as_blocks
from whence.curvature import KroneckerBlock, KroneckerCurvature
from whence.records import Unit
from whence.unroll.segments import Segment

__all__ = ["carry", "shrinkage"]

# Share of the mean eigenvalue added to the inverse behind an adaptive optimizer: as good as none, and never a division by zero.
_TINY_DAMPING = 1e-8


def carry(
    plan: Plan, curvature: KroneckerCurvature, segment: Segment, rows: Blocks, preconditioner: Mapping[str, Tensor] | None
) -> tuple[Blocks, Blocks]:
    """One segment, backwards.

    Training moves parameters by -X (theta - optimum) per unit of time, X = reach H + decay over the whole segment, so that of a change
    at its start exp(-X) is left at its end, and a constant gradient g adds up to X^-1 (1 - exp(-X)) reach g. An adaptive optimizer has P H
    instead of H, P diagonal: there the exponential is taken of the diagonal of X alone (Bae et al. 2024, equation 43), the inverse
    of all of it.

    Args:
        plan: The units.
        curvature: Mean Gauss-Newton matrix of the segment, of the per-example loss.
        segment: Its learning rates.
        rows: What is wanted of the parameters at its end, per unit of shape (Q, O, I).
        preconditioner: P by parameter, mean over the segment; None for SGD.

    Returns:
        What the segment's gradients are multiplied with, and what is wanted of the parameters at its start.
    """
    scales = None
    if preconditioner is not None:
        like = {name: preconditioner[name][None] for unit in plan.units for name in unit.parameters}
        scales = [block[0] for block in as_blocks(plan, like)]
    taken, left = [], []
    for index, (block, row) in enumerate(zip(curvature.blocks, rows, strict=True)):
        reach, decay = _of_unit(block.unit, segment.reach), _of_unit(block.unit, segment.decay)
        if scales is None:
            inside = block.into(row)
            x_OI = reach * block.values_OI.to(row).clamp_min(0) + decay
            taken.append(block.back(inside * (reach * shrinkage(x_OI))))
            left.append(block.back(inside * torch.exp(-x_OI)))
        else:
            made = _adaptive(block, row, scales[index].to(row), reach, decay, segment.is_decoupled)
            taken.append(made[0])
            left.append(made[1])
    return taken, left


def shrinkage(x: Tensor) -> Tensor:
    """(1 - exp(-x)) / x, which is 1 at 0, for x >= 0.

    >>> shrinkage(torch.tensor([0.0, 1.0], dtype=torch.float64))
    tensor([1.0000, 0.6321], dtype=torch.float64)
    """
    safe = x.clamp_min(torch.finfo(x.dtype).tiny)
    return torch.where(x > 0, -torch.expm1(-safe) / safe, torch.ones_like(x))


def _adaptive(
    block: KroneckerBlock, row_QOI: Tensor, scale_OI: Tensor, reach: float, decay: float, is_decoupled: bool
) -> tuple[Tensor, Tensor]:
    """X = P (reach H + decay), or reach P H + decay if weight decay is decoupled."""
    diagonal_OI = _diagonal(block).to(row_QOI)
    x_OI = scale_OI * reach * diagonal_OI + decay * (1.0 if is_decoupled else scale_OI)
    left_QOI = row_QOI * torch.exp(-x_OI)
    if reach == 0 or not bool(scale_OI.any()):
        return torch.zeros_like(row_QOI), left_QOI
    # (reach P H + decay)^-1 reach P = (H + decay / (reach P))^-1, where P is taken as its mean over the unit.
    damping = decay / reach * (float((1 / scale_OI[scale_OI > 0]).mean()) if is_decoupled else 1.0)
    values_OI = block.values_OI.to(row_QOI).clamp_min(0) + damping + _TINY_DAMPING * block.mean_eigenvalue
    values_OI = values_OI.clamp_min(torch.finfo(row_QOI.dtype).tiny)
    return block.back(block.into(row_QOI * -torch.expm1(-x_OI)) / values_OI), left_QOI


def _diagonal(block: KroneckerBlock) -> Tensor:
    """Diagonal of the curvature in parameters, shape (O, I)."""
    found_OI = block.values_OI.clamp_min(0)
    if block.outputs_OO is not None:
        found_OI = block.outputs_OO.square().to(found_OI) @ found_OI
    return found_OI if block.inputs_II is None else found_OI @ block.inputs_II.square().to(found_OI).T


def _of_unit(unit: Unit, values: Mapping[str, float]) -> float:
    """A joined bias counts as one column of its weight; the vectors of a norm weigh the same. 0 for what the optimizer left alone."""
    found: Sequence[float] = [values.get(name, 0.0) for name in unit.parameters]
    return sum(found) / len(found) if unit.outputs == 1 else found[0]
