"""What an optimizer multiplies gradients with, read off its state: P, a symmetric matrix without negative eigenvalues, unit by unit.

Axes: Q vectors, O outputs, I inputs, M the smaller of both.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from whence.capture import Plan, as_blocks
from whence.unroll.run import Run
from whence.unroll.segments import settings_at
from whence.unroll.states import check_moved, state_of

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
        mask_OI: 1 for entries that the optimizer steps, 0 for a bias that rides along.
    """

    left_OM: Tensor
    right_IM: Tensor
    singular_M: Tensor
    least: float
    gain: float
    mask_OI: Tensor

    def times(self, rows_QOI: Tensor) -> Tensor:
        """P applied to every vector."""
        if self.least == 0:
            return torch.zeros_like(rows_QOI)
        left_OM, right_IM, s_M = (value.to(rows_QOI) for value in (self.left_OM, self.right_IM, self.singular_M))
        mask_OI = self.mask_OI.to(rows_QOI)
        rows_QOI = rows_QOI * mask_OI
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
        return self.gain * found_QOI * mask_OI

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


def scaling_of(run: Run, plan: Plan, steps: Sequence[int]) -> list[Scaling]:
    """P of an optimizer: 1 / (sqrt(v) + eps) of Adam, v bias-corrected; the turn of the direction of Muon.

    Args:
        run: The run.
        plan: Units of the model.
        steps: Checkpoints over which P is averaged.

    Returns:
        One per unit.
    """
    if settings_at(run.record, steps[0] - 1)["optimizer"] == "Muon":
        by_step = [_muon(run, plan, step) for step in steps]
        return [Mean(parts) for parts in zip(*by_step, strict=True)]
    preconditioner = run.preconditioner(steps)
    like = {name: preconditioner[name][None] for unit in plan.units for name in unit.parameters}
    return [Elementwise(block[0]) for block in as_blocks(plan, like)]


def _muon(run: Run, plan: Plan, step: int) -> list[Scaling]:
    tensors, start = run.tensors(step), run.tensors(run.checkpoints[0])
    settings = settings_at(run.record, step - 1)
    group_of = {name: group for group in settings["groups"] for name in group["parameters"]}
    names = [name for unit in plan.units for name in unit.parameters]
    zeros = {name: torch.zeros_like(tensors[f"model.{name}"]) for name in names}
    states = {name: state_of(settings, name, tensors) for name in names if name in group_of}
    for name, state in states.items():
        if not state:
            check_moved(settings, name, start[f"model.{name}"], tensors[f"model.{name}"])
    momenta = {name: state["momentum_buffer"] for name, state in states.items() if state}
    buffers = as_blocks(plan, {name: momenta.get(name, zeros[name])[None] for name in names})
    masks = as_blocks(plan, {name: (zeros[name] + (name in momenta))[None] for name in names})
    scalings: list[Scaling] = []
    for unit, buffer_1OI, mask_1OI in zip(plan.units, buffers, masks, strict=True):
        left_OM, singular_M, right_MI = torch.linalg.svd(buffer_1OI[0].double(), full_matrices=False)
        group, least, gain = group_of.get(unit.parameters[0]), 0.0, 1.0
        if group is not None:
            slope = float(group["ns_coefficients"][0]) ** group["ns_steps"]
            least = float(singular_M.square().sum().sqrt()) / slope
            gain = _gain(group, tensors[f"model.{unit.parameters[0]}"].shape)
        scalings.append(Orthogonal(left_OM, right_MI.T, singular_M, least, gain, mask_1OI[0]))
    return scalings


def _gain(group: Mapping[str, Any], shape: torch.Size) -> float:
    """What `torch.optim.Muon` multiplies the learning rate with."""
    if group.get("adjust_lr_fn") == "match_rms_adamw":
        return 0.2 * math.sqrt(max(shape[0], shape[1]))
    return math.sqrt(max(1.0, shape[0] / shape[1]))
