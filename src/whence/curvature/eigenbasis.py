"""Curvature as eigenvalues in a Kronecker product of two orthonormal bases per unit: what K-FAC and EK-FAC share.

Axes: Q vectors in parameter space, O outputs, I inputs, K roles of a unit (see `moments`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from whence.curvature.damping import ResolvedDamping
from whence.errors import BadInput
from whence.matmul import times_transposed
from whence.records import Unit
from whence.reflections import Basis

__all__ = ["KroneckerBlock", "KroneckerCurvature"]

# Numbers of a unit's vectors that are solved for in place at a time.
_SOLVE_NUMBERS = 1 << 19


@dataclass(frozen=True)
class KroneckerBlock:
    """One unit's curvature, diagonal in the basis (outputs x inputs).

    Args:
        unit: The unit.
        outputs_OO: Orthonormal columns, (O, O); None for the identity.
        inputs_II: The same for the inputs.
        values_OI: Eigenvalues, not damped, in the curvature of the per-example loss.
    """

    unit: Unit
    outputs_OO: Basis | None
    inputs_II: Basis | None
    values_OI: Tensor

    @property
    def mean_eigenvalue(self) -> float:
        """Trace over the number of parameters."""
        return float(self.values_OI.double().mean())

    def on(self, device: torch.device) -> "KroneckerBlock":
        """The same on a device."""
        left, right = (None if side is None else side.to(device) for side in (self.outputs_OO, self.inputs_II))
        return KroneckerBlock(self.unit, left, right, self.values_OI.to(device))

    def into(self, rows_QOI: Tensor) -> Tensor:
        """Coordinates in the basis: outputs^T rows inputs."""
        return _into(_into(rows_QOI.mT, self.outputs_OO).mT, self.inputs_II)

    def back(self, rows_QOI: Tensor) -> Tensor:
        """From coordinates in the basis to parameters: outputs rows inputs^T."""
        return _back(_back(rows_QOI.mT, self.outputs_OO).mT, self.inputs_II)


def _into(rows_N: Tensor, basis: Basis | None) -> Tensor:
    """Vectors along the last axis, in coordinates of the basis."""
    if basis is None:
        return rows_N
    return times_transposed(rows_N, basis.T.to(rows_N)) if isinstance(basis, Tensor) else basis.after(rows_N)


def _back(rows_N: Tensor, basis: Basis | None) -> Tensor:
    """The way back."""
    if basis is None:
        return rows_N
    return times_transposed(rows_N, basis.to(rows_N)) if isinstance(basis, Tensor) else basis.back(rows_N)


@dataclass(frozen=True)
class KroneckerCurvature:
    """Block-diagonal curvature of a model, one block per unit of its plan.

    Args:
        blocks: The blocks, in the plan's order.
        kfac: What K-FAC's own eigenvalues in the same bases are products of: per unit, shapes (K, O) and (K, I), to be summed over K.
        note: Labels and data that it was fitted with, for people.
    """

    blocks: tuple[KroneckerBlock, ...]
    kfac: tuple[tuple[Tensor, Tensor], ...]
    note: str

    def uncorrected(self) -> "KroneckerCurvature":
        """The same bases with K-FAC's own eigenvalues."""
        pairs = zip(self.blocks, self.kfac, strict=True)
        return replace(
            self, blocks=tuple(replace(block, values_OI=left_KO.T @ right_KI) for block, (left_KO, right_KI) in pairs)
        )

    def on(self, device: torch.device) -> "KroneckerCurvature":
        """The same on a device."""
        kfac = tuple((left_KO.to(device), right_KI.to(device)) for left_KO, right_KI in self.kfac)
        return KroneckerCurvature(tuple(block.on(device) for block in self.blocks), kfac, self.note)

    def trace(self) -> float:
        """Sum of all eigenvalues."""
        return sum(float(block.values_OI.double().sum()) for block in self.blocks)

    def dampings(self, damping: ResolvedDamping) -> list[float]:
        """What is added to every unit's eigenvalues."""
        means = [block.mean_eigenvalue for block in self.blocks]
        least = damping.least(means, self.blocks[0].values_OI.dtype)
        return [max(damping.of_unit(block.unit, mean), least) for block, mean in zip(self.blocks, means, strict=True)]

    def floor_note(self, damping: ResolvedDamping) -> str:
        """Which units get more damping than was asked for, since rounding needs it; empty if none does."""
        pairs = zip(self.blocks, self.dampings(damping), strict=True)
        raised = [block.unit.name for block, value in pairs if value > damping.of_unit(block.unit, block.mean_eigenvalue)]
        if not raised:
            return ""
        return f"damping of {len(raised)} units ({raised[0]!r} first) is raised to what rounding adds to their eigenvalues"

    def solve(self, rows: Sequence[Tensor], damping: ResolvedDamping, *, in_place: bool = False) -> list[Tensor]:
        """(H + damping)^-1 applied to vectors in parameter space (George et al. 2018, section 3.2; Grosse et al. 2023, equation 20).

        Args:
            rows: Per unit, shape (Q, O, I).
            damping: Added to every eigenvalue, unit by unit.
            in_place: Whether the rows may be written over.

        Returns:
            Per unit, shape (Q, O, I).
        """
        damped = self._damped(rows, damping)
        if not in_place:
            return [block.back(block.into(row) / values) for block, row, values in zip(self.blocks, rows, damped, strict=True)]
        for block, row, values in zip(self.blocks, rows, damped, strict=True):
            # A few at a time: on the way through the basis there are several of each.
            for part in row.split(max(1, _SOLVE_NUMBERS // values.numel())):
                part.copy_(block.back(block.into(part) / values))
        return list(rows)

    def half(self, rows: Sequence[Tensor], damping: ResolvedDamping) -> list[Tensor]:
        """(H + damping)^-1/2 applied, left in the basis: inner products of two halves are preconditioned ones.

        Args:
            rows: Per unit, shape (Q, O, I).
            damping: As in `solve`.

        Returns:
            Per unit, shape (Q, O, I), in coordinates of the basis.
        """
        damped = self._damped(rows, damping)
        return [block.into(row) * values.rsqrt() for block, row, values in zip(self.blocks, rows, damped, strict=True)]

    def _damped(self, rows: Sequence[Tensor], damping: ResolvedDamping) -> Iterator[Tensor]:
        """Eigenvalues plus damping, one unit after the other: they are as many as parameters.

        Raises:
            BadInput: If the vectors are not of these units.
        """
        shapes = [tuple(row.shape[1:]) for row in rows]
        if shapes != [tuple(block.values_OI.shape) for block in self.blocks]:
            raise BadInput(
                found=f"vectors of {len(shapes)} units, the first of shape {shapes[0] if shapes else None}",
                needed=f"{len(self.blocks)} units, the first of shape {tuple(self.blocks[0].values_OI.shape)}",
                do="take the gradients with the plan that the curvature was fitted with",
            )
        values = zip(rows, self.blocks, self.dampings(damping), strict=True)
        return (block.values_OI.to(row) + value for row, block, value in values)
