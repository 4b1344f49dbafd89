"""What an optimizer multiplies gradients with, read off its state: P, a symmetric matrix without negative eigenvalues, unit by unit.

Axes: Q vectors, O outputs, I inputs, M the smaller of both.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from whence.capture import Plan
from whence.capture.blocks import as_block
from whence.errors import Unsupported
from whence.optimizers import Rule, counted, muon_gain
from whence.records import Unit
from whence.unroll.run import Run
from whence.unroll.segments import Segment
from whence.unroll.states import RuledGroup, check_moved, counters_of, settings_at, state_of

__all__ = ["Elementwise", "Orthogonal", "Scaling", "scaling_of"]


class Scaling(Protocol):
    """P of one unit."""

    def times(self, rows_QOI: Tensor) -> Tensor:
        """P applied to every vector."""
        ...

    def mean_inverse(self) -> float | None:
        """Mean of 1 / P where it is not zero; None where all of it is."""
        ...


@dataclass(frozen=True)
class Elementwise:
    """P that scales every entry of a gradient by itself, as Adam does.

    Args:
        values_OI: Its diagonal.
    """

    values_OI: Tensor

    def times(self, rows_QOI: Tensor) -> Tensor:
        """P applied to every vector."""
        return rows_QOI * self.values_OI.to(rows_QOI)

    def mean_inverse(self) -> float | None:
        """Mean of 1 / P where it is not zero; None where all of it is."""
        alive = self.values_OI.double()[self.values_OI > 0]
        return float((1 / alive).mean()) if len(alive) else None


@dataclass(frozen=True)
class Orthogonal:
    """P of an optimizer that steps along U V^T of a gradient U diag(s) V^T, as Muon does: how much that direction turns.

    U V^T is the gradient of the nuclear norm, so P is the norm's second derivative: a change E of the gradient is seen in the bases, where
    what it has in common with its transpose is lost, (E_ij - E_ji) / (s_i + s_j) is what the direction turns by, and rows outside V count
    1 / s_i. A matrix (M M^T)^-1/2 on the left, which is often put in its place, takes length and common part for changes of direction, too.
    Muon's polynomial has a finite slope at 0, so singular values count as at least the length over that slope.

    Args:
        left_OM: U.
        right_IM: V.
        singular_M: s.
        least: What singular values count as at least.
        gain: Factor of the step that depends on the shape.
    """

    left_OM: Tensor
    right_IM: Tensor
    singular_M: Tensor
    least: float
    gain: float

    def times(self, rows_QOI: Tensor) -> Tensor:
        """P applied to every vector."""
        if self.least == 0:
            return torch.zeros_like(rows_QOI)
        left_OM, right_IM, s_M = (value.to(rows_QOI) for value in (self.left_OM, self.right_IM, self.singular_M))
        # The direction U diag(f) V^T with f = s / least up to 1: nothing but U V^T where singular values are large enough.
        f_M = (s_M / self.least).clamp_max(1)
        sums_MM, steps_MM = s_M[:, None] + s_M, (s_M[:, None] - s_M).abs()
        turned_MM = torch.where(
            sums_MM > 0, (f_M[:, None] + f_M) / sums_MM.clamp_min(1e-30), torch.full_like(sums_MM, 1 / self.least)
        )
        turned_MM = turned_MM.clamp_max(1 / self.least)
        slope_MM = torch.where((s_M[:, None] < self.least) & (s_M < self.least), 1 / self.least, 0.0).to(rows_QOI)
        grown_MM = torch.where(steps_MM > 1e-6 * self.least, (f_M[:, None] - f_M).abs() / steps_MM.clamp_min(1e-30), slope_MM)
        inside_QMM = left_OM.T @ rows_QOI @ right_IM
        both_QMM, apart_QMM = (inside_QMM + inside_QMM.mT) / 2, (inside_QMM - inside_QMM.mT) / 2
        found_QOI = left_OM @ (grown_MM * both_QMM + turned_MM * apart_QMM) @ right_IM.T
        # Rows or columns outside the smaller side's range: only one of the two is not empty.
        weight_M = 1 / s_M.clamp_min(self.least)
        along_QMI = left_OM.T @ rows_QOI - inside_QMM @ right_IM.T
        across_QOM = rows_QOI @ right_IM - left_OM @ inside_QMM
        found_QOI = found_QOI + left_OM @ (weight_M[:, None] * along_QMI) + (across_QOM * weight_M) @ right_IM.T
        return self.gain * found_QOI

    def mean_inverse(self) -> float | None:
        """Mean of 1 / P where it is not zero; None where all of it is."""
        return None if self.least == 0 else float(self.singular_M.double().clamp_min(self.least).mean()) / self.gain


@dataclass(frozen=True)
class Mean:
    """Mean of several.

    Args:
        parts: Of the same unit.
    """

    parts: Sequence[Scaling]

    def times(self, rows_QOI: Tensor) -> Tensor:
        """P applied to every vector."""
        return torch.stack([part.times(rows_QOI) for part in self.parts]).mean(0)

    def mean_inverse(self) -> float | None:
        """Mean of 1 / P where it is not zero; None where all of it is."""
        inverses = [value for part in self.parts if (value := part.mean_inverse()) is not None]
        return sum(inverses) / len(inverses) if inverses else None


@dataclass(frozen=True)
class Turned:
    """P on both sides of a matrix: turned into bases, scaled there entry by entry, and turned back, as SOAP and Shampoo do.

    Args:
        left_OO: Basis of the outputs, its vectors in columns; None for none.
        right_II: Of the inputs.
        values_OI: What is scaled with in these bases.
    """

    left_OO: Tensor | None
    right_II: Tensor | None
    values_OI: Tensor

    def times(self, rows_QOI: Tensor) -> Tensor:
        """P applied to every vector."""
        left, right = (None if side is None else side.to(rows_QOI) for side in (self.left_OO, self.right_II))
        rows_QOI = rows_QOI if left is None else left.T @ rows_QOI
        rows_QOI = (rows_QOI if right is None else rows_QOI @ right) * self.values_OI.to(rows_QOI)
        rows_QOI = rows_QOI if left is None else left @ rows_QOI
        return rows_QOI if right is None else rows_QOI @ right.T

    def mean_inverse(self) -> float | None:
        """Mean of 1 / P where it is not zero; None where all of it is."""
        return Elementwise(self.values_OI).mean_inverse()


@dataclass(frozen=True)
class TurnedOver:
    """P of a matrix for its transpose.

    Args:
        inner: P of the matrix.
    """

    inner: Scaling

    def times(self, rows_QOI: Tensor) -> Tensor:
        """P applied to every vector."""
        return self.inner.times(rows_QOI.mT).mT

    def mean_inverse(self) -> float | None:
        """Mean of 1 / P where it is not zero; None where all of it is."""
        return self.inner.mean_inverse()


@dataclass(frozen=True)
class Sided:
    """P that is one symmetric matrix on each side, as Shampoo's.

    Args:
        left_OO: On the outputs; None for none.
        right_II: On the inputs.
    """

    left_OO: Tensor | None
    right_II: Tensor

    def times(self, rows_QOI: Tensor) -> Tensor:
        """P applied to every vector."""
        rows_QOI = rows_QOI @ self.right_II.to(rows_QOI)
        return rows_QOI if self.left_OO is None else self.left_OO.to(rows_QOI) @ rows_QOI

    def mean_inverse(self) -> float | None:
        """Mean of 1 / P where it is not zero; None where all of it is."""
        sides = [side.double() for side in (self.left_OO, self.right_II) if side is not None]
        if not all(bool(side.any()) for side in sides):
            return None
        return math.prod(float((1 / torch.linalg.eigvalsh(side)).mean()) for side in sides)


@dataclass(frozen=True)
class Beside:
    """P of the parameters of a unit that lie side by side in its matrix: a weight and its bias, the vectors of a norm.

    Args:
        parts: P of each, in order.
        shapes: Of what each part takes, without the vectors in front.
    """

    parts: Sequence[Scaling]
    shapes: Sequence[tuple[int, int]]

    def times(self, rows_QOI: Tensor) -> Tensor:
        """P applied to every vector."""
        outputs = rows_QOI.shape[1]
        pieces = rows_QOI.split([math.prod(shape) // outputs for shape in self.shapes], -1)
        products = [
            part.times(piece.reshape(-1, *shape)).reshape(piece.shape)
            for part, piece, shape in zip(self.parts, pieces, self.shapes, strict=True)
        ]
        return torch.cat(products, -1)

    def mean_inverse(self) -> float | None:
        """Mean of 1 / P where it is not zero, weighted by size; None where all of it is."""
        inverses = [(part.mean_inverse(), math.prod(shape)) for part, shape in zip(self.parts, self.shapes, strict=True)]
        alive = [(value, size) for value, size in inverses if value is not None]
        return sum(value * size for value, size in alive) / sum(size for _, size in alive) if alive else None


def scaling_of(run: Run, plan: Plan, segment: Segment) -> list[Scaling]:
    """P of an optimizer, mean over a segment's checkpoints: what a gradient is multiplied with besides the learning rate.

    1 / (sqrt(v) + eps) of Adam and what steps like it, v bias-corrected; the turn of Muon's direction; the roots of Shampoo's two sides;
    Adam's in the bases that SOAP has; 1 of SGD. A bias beside a weight has its own, times its learning rates over the weight's.

    Args:
        run: The run.
        plan: Units of the model.
        segment: Of which it is the mean.

    Returns:
        One per unit.

    Raises:
        Unsupported: If an optimizer mixes the entries of a parameter that is no matrix.
    """
    diagonals = run.preconditioner(segment.checkpoints)
    tensors = [run.tensors(step) for step in segment.checkpoints]
    groups = {name: group for group in run.groups(segment.stop - 1) for name in group["parameters"]}
    settings, start = settings_at(run.record, segment.stop - 1), run.tensors(run.checkpoints[0])
    scalings: list[Scaling] = []
    for unit in plan.units:
        gains = {name: _relative_reach(segment, unit, name) for name in unit.parameters}
        mixed = [name for name in unit.parameters if name in groups and not _is_elementwise(groups[name]["rule"])]
        plain = {name for name in unit.parameters if name in groups and groups[name]["rule"].is_plain}
        values = {name: torch.ones_like(diagonals[name]) if name in plain else diagonals[name] for name in unit.parameters}
        if not mixed:
            scalings.append(Elementwise(as_block(plan, unit, {name: (values[name] * gains[name])[None] for name in values})[0]))
            continue
        parts = []
        for checkpoint in tensors:
            own = []
            for name in unit.parameters:
                value = checkpoint[f"model.{name}"]
                if name not in mixed:
                    own.append(Elementwise(values[name].reshape(-1, value.shape[-1] if value.ndim == 2 else value.numel())))
                    continue
                state = state_of(settings, groups[name], name, checkpoint)
                if not state:
                    check_moved(settings, groups[name], name, start[f"model.{name}"], value)
                count = counted(state, counters_of(groups[name], checkpoint))
                own.append(_of_parameter(groups[name], name, state, value, count))
            parts.append(_joined(plan, unit, own, checkpoint))
        scalings.append(parts[0] if len(parts) == 1 else Mean(parts))
    return scalings


def _is_elementwise(rule: Rule) -> bool:
    return rule.is_plain or rule.diagonal is not None


def _relative_reach(segment: Segment, unit: Unit, name: str) -> float:
    """Learning rates of a bias over those of the weight that it rides along with, by which both are multiplied afterwards."""
    own, first = segment.reach.get(name, 0.0), segment.reach.get(unit.parameters[0], 0.0)
    return own / first if unit.outputs > 1 and own and first else 1.0


def _of_parameter(group: RuledGroup, name: str, state: Mapping[str, Tensor], value: Tensor, count: int) -> Scaling:
    """P of a parameter whose rule mixes its entries: on a matrix in its own shape, on a vector as one row.

    Raises:
        Unsupported: If the parameter is neither.
    """
    kind = group["rule"].name
    if value.ndim not in (1, 2):
        raise Unsupported(
            found=f"{kind} on {name!r}, which has {value.ndim} axes",
            needed="a matrix or a vector",
            do="choose another method, such as ekfac, or leave it out with ignore=[...] to the task",
        )
    if not state:
        return Elementwise(torch.zeros_like(value).reshape(-1, value.shape[-1]))
    if kind == "shampoo":
        roots = [state[f"inv_pre_cond_{axis}"] for axis in range(value.ndim)]
        return Sided(roots[0], roots[1]) if value.ndim == 2 else Sided(None, roots[0])
    if kind == "soap":
        grown = math.sqrt(1 - group["betas"][1] ** (count - 1))
        scale = (grown / (state["exp_avg_sq"].sqrt() + group["eps"])).reshape(-1, value.shape[-1])
        return Turned(state.get("Q[0]") if value.ndim == 2 else None, state.get("Q[1]"), scale)
    return _muon(group, state["momentum_buffer"])


def _joined(plan: Plan, unit: Unit, parts: Sequence[Scaling], tensors: Mapping[str, Tensor]) -> Scaling:
    """P of a unit's matrix from those of its parameters, turned over where the matrix holds the weight so."""
    values = {name: tensors[f"model.{name}"] for name in unit.parameters}
    first = values[unit.parameters[0]]
    # Numbered, so that it shows where every entry went.
    positions = torch.arange(first.numel(), dtype=torch.float64).view(first.shape)
    block_OI = as_block(
        plan, unit, {name: positions[None] if value is first else value[None].double() for name, value in values.items()}
    )[0]
    columns = block_OI.shape[1] - sum(value.numel() for value in values.values() if value is not first) // len(block_OI)
    weight_OI = block_OI[:, :columns]
    is_turned = (
        first.ndim == 2
        and 1 not in first.shape
        and weight_OI.shape == positions.T.shape
        and bool((weight_OI == positions.T).all())
    )
    shapes: list[tuple[int, int]] = []
    for value in values.values():
        rows, columns = math.prod(value.shape[:-1]), value.shape[-1]
        shapes.append((columns, rows) if is_turned and value is first else (rows, columns))
    return Beside([TurnedOver(parts[0]) if is_turned else parts[0], *parts[1:]], shapes)


def _muon(group: RuledGroup, buffer_OI: Tensor) -> Scaling:
    left_OM, singular_M, right_MI = torch.linalg.svd(buffer_OI.double(), full_matrices=False)
    slope = float(group["ns_coefficients"][0]) ** group["ns_steps"]
    least = float(singular_M.square().sum().sqrt()) / slope
    return Orthogonal(left_OM, right_MI.T, singular_M, least, muon_gain(group, buffer_OI.shape))
