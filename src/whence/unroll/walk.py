"""SOURCE on the query's side: a gradient carried back through the segments of a run.

Bae et al. 2024 (arXiv 2405.12186), equations 16 to 18 and appendices C and D. Axes: Q queries, O outputs, I inputs of a unit.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from whence.capture import Blocks
from whence.curvature import KroneckerBlock, KroneckerCurvature, top_eigenvalue
from whence.errors import Unsupported
from whence.records import Unit
from whence.reflections import Basis
from whence.settings import Form
from whence.unroll.averaged import Pair, averaged_filters, through_average
from whence.unroll.exponential import chebyshev, decayed, expanded, gained, shrinkage
from whence.unroll.scaling import Elementwise, Scaling
from whence.unroll.segments import Segment

__all__ = ["carry", "carry_averaged", "of_unit"]

# Share of the mean eigenvalue added to the inverse of the diagonal form: as good as none, and never a division by zero.
_TINY_DAMPING = 1e-8
# Twenty Lanczos steps find the top eigenvalue of a million to 1 % (Kuczynski and Wozniakowski 1992, theorem 3.2); the expansion needs a
# number that is not below it.
_LANCZOS, _MARGIN = 20, 1.1
# Below this share of the mean diagonal there is no gradient either, and 1 / sqrt(v) says nothing.
_DEAD = 1e-12


def carry(
    curvature: KroneckerCurvature,
    segment: Segment,
    rows: Blocks,
    scaling: Sequence[Scaling] | None,
    form: Form = "full",
) -> tuple[Blocks, Blocks]:
    """One segment, backwards.

    Training moves parameters by -X (theta - optimum) per unit of time, X = reach H + decay over the whole segment, so that of a change
    at its start exp(-X) is left at its end, and a constant gradient g adds up to X^-1 (1 - exp(-X)) reach g. An optimizer that multiplies
    gradients with a matrix P has P H instead of H. Then the exponential is that of a product of two matrices that do not commute: carried
    from products with both by a Chebyshev expansion ("full"), or of the diagonal of X alone, with the inverse of all of it ("diagonal",
    Bae et al. 2024, equation 43).

    Args:
        curvature: Mean Gauss-Newton matrix of the segment, of the per-example loss.
        segment: Its learning rates.
        rows: What is wanted of the parameters at its end, per unit of shape (Q, O, I).
        scaling: P, per unit, mean over the segment; None for SGD.
        form: For an optimizer with P.

    Returns:
        What the segment's gradients are multiplied with, and what is wanted of the parameters at its start.
    """
    carried = []
    for index, (block, row) in enumerate(zip(curvature.blocks, rows, strict=True)):
        reach, decay = of_unit(block.unit, segment.reach), of_unit(block.unit, segment.decay)
        if scaling is None:
            inside = block.into(row)
            x_OI = reach * block.values_OI.to(row).clamp_min(0) + decay
            carried.append((block.back(inside * (reach * shrinkage(x_OI))), block.back(inside * torch.exp(-x_OI))))
        elif form == "full":
            carried.append(_full(block, scaling[index], row, reach, decay, segment.is_decoupled(block.unit)))
        else:
            carried.append(_diagonal_form(block, scaling[index], row, reach, decay, segment.is_decoupled(block.unit)))
    return [taken for taken, _ in carried], [left for _, left in carried]


def carry_averaged(
    curvature: KroneckerCurvature, segment: Segment, rows: Sequence[Pair], scaling: Sequence[Scaling] | None
) -> tuple[Blocks, list[Pair]]:
    """One segment of a Schedule-Free run, backwards; see `whence.unroll.averaged`.

    Args:
        curvature: As for `carry`.
        segment: As for `carry`.
        rows: What is wanted of the fast weights and of their average at its end, per unit.
        scaling: As for `carry`.

    Returns:
        What the segment's gradients are multiplied with, and what is wanted at its start.
    """
    carried: list[tuple[Tensor, Pair]] = []
    for index, (block, wanted) in enumerate(zip(curvature.blocks, rows, strict=True)):
        steps, row = segment.averaging.get(block.unit.parameters[0]), wanted[1]
        if steps is None:  # left alone by the optimizer
            carried.append((torch.zeros_like(row), wanted))
            continue
        values_OI = block.values_OI.to(row).clamp_min(0)
        if scaling is None:
            filters = averaged_filters(steps, values_OI.double()).to(row)
            inside = [block.into(block_QOI) for block_QOI in wanted]
            taken, fast, average = (inside[0] * filters[0, part] + inside[1] * filters[1, part] for part in range(3))
            carried.append((block.back(taken), (block.back(fast), block.back(average))))
            continue
        scale = _alive(scaling[index], block)
        top, curved = _top(block, scale, row, 1.0, 0.0)
        tolerance = max(1e-10, 16 * torch.finfo(row.dtype).eps)
        taken, left = through_average(steps, lambda block_QOI, s=scale, c=curved: c(s.times(block_QOI)), wanted, top, tolerance)
        carried.append((scale.times(taken), left))
    return [taken for taken, _ in carried], [left for _, left in carried]


def of_unit(unit: Unit, values: Mapping[str, float]) -> float:
    """A joined bias counts as one column of its weight; the vectors of a norm weigh the same. 0 for what the optimizer left alone."""
    numbers: Sequence[float] = [values.get(name, 0.0) for name in unit.parameters]
    return sum(numbers) / len(numbers) if unit.outputs == 1 else numbers[0]


def _full(
    block: KroneckerBlock, scale: Scaling, row_QOI: Tensor, reach: float, decay: float, is_decoupled: bool
) -> tuple[Tensor, Tensor]:
    """X = P (reach H + decay), or reach P H + decay if weight decay is decoupled; on the query's side its transpose acts.

    Products with P (reach phi(X^T) and exp(-X^T)) share their terms. X is similar to a symmetric matrix, so an expansion of it is one of its
    eigenvalues, and neither a root nor an inverse of P is needed.
    """
    inside, beside = (0.0, decay) if is_decoupled else (decay, 0.0)
    scale = _alive(scale, block)
    tolerance = max(1e-10, 16 * torch.finfo(row_QOI.dtype).eps)
    top, curved = _top(block, scale, row_QOI, reach, inside)
    terms = [chebyshev(function(beside), top, tolerance) for function in (gained, decayed)]
    gain, left = expanded(lambda rows: curved(scale.times(rows)), row_QOI, top, terms)
    return reach * scale.times(gain), left


def _top(
    block: KroneckerBlock, scale: Scaling, row_QOI: Tensor, reach: float, inside: float
) -> tuple[float, Callable[[Tensor], Tensor]]:
    """A bound of the eigenvalues of P (reach H + inside), and the product with what is in brackets."""
    values_OI = block.values_OI.to(row_QOI).clamp_min(0)

    def curved(rows: Tensor) -> Tensor:
        return reach * block.back(block.into(rows) * values_OI) + inside * rows

    if not reach or scale.mean_inverse() is None or not bool(values_OI.any()):
        return 0.0, curved
    matrix, iterations = _Products(curved, row_QOI), min(_LANCZOS, row_QOI[0].numel())
    return _MARGIN * top_eigenvalue(matrix, lambda blocks: [scale.times(blocks[0])], iterations=iterations), curved


def _alive(scale: Scaling, block: KroneckerBlock) -> Scaling:
    """P without the parameters that the data never reaches: their 1 / sqrt(v) is 1 / eps, their gradients are zero."""
    if not isinstance(scale, Elementwise):
        return scale
    diagonal_OI = _diagonal(block).to(scale.values_OI)
    is_dead_OI = diagonal_OI <= _DEAD * diagonal_OI.mean()
    return Elementwise(scale.values_OI.masked_fill(is_dead_OI, 0))


@dataclass(frozen=True)
class _Products:
    """One unit's matrix as `top_eigenvalue` asks for it."""

    product: Callable[[Tensor], Tensor]
    like_QOI: Tensor

    def __len__(self) -> int:
        return 1

    def zeros(self, count: int) -> Blocks:
        return [self.like_QOI.new_zeros(count, *self.like_QOI.shape[1:])]

    def times(self, blocks: Blocks, chosen: Sequence[int] | None = None) -> Blocks:
        return [self.product(blocks[0])]


def _diagonal_form(
    block: KroneckerBlock, scale: Scaling, row_QOI: Tensor, reach: float, decay: float, is_decoupled: bool
) -> tuple[Tensor, Tensor]:
    """The same X with its diagonal in the exponential.

    Raises:
        Unsupported: If P is not diagonal.
    """
    if not isinstance(scale, Elementwise):
        raise Unsupported(
            found="form='diagonal' for an optimizer that mixes the entries of a gradient",
            needed="one that scales each of them, as Adam does",
            do="pass form='full'",
        )
    scale_OI = scale.values_OI.to(row_QOI)
    x_OI = scale_OI * reach * _diagonal(block).to(row_QOI) + decay * (1.0 if is_decoupled else scale_OI)
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
        found_OI = _squares_times(block.outputs_OO, found_OI)
    return found_OI if block.inputs_II is None else _squares_times(block.inputs_II, found_OI.T).T


def _squares_times(basis: Basis, values_NM: Tensor) -> Tensor:
    return basis.square().to(values_NM) @ values_NM if isinstance(basis, Tensor) else basis.squares_times(values_NM)
