"""Kronecker projection of gradients (LoGra): both sides shrink before they meet, so the gradient is never formed.

Axes: B batch, T positions, O outputs, I inputs, P projected outputs, R projected inputs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from whence.compress.projection import Random, random_matrix
from whence.records import Dense, OneHot, Pair, Side, Unit
from whence.reflections import Basis, Blocked

__all__ = ["Kronecker", "RowSums", "projected_shape"]


def projected_shape(unit: Unit, rank: int, side_divisor: int = 0) -> tuple[int, int]:
    """Projected (outputs, inputs) of a unit: rank x rank numbers, or all of it if that is less.

    A side that is shorter than the rank is kept whole and leaves its share to the other side, up to four times the rank: a vector
    should not take as many bytes as a matrix.

    Args:
        unit: The unit.
        rank: Width of both sides.
        side_divisor: Each side's length over this instead, rounded up (LoRIF's d = I / f: Li et al. 2026); 0 takes the rank.

    >>> projected_shape(Unit("w", 100, 200, ("w",)), 16), projected_shape(Unit("norm", 1, 200, ("norm",)), 16)
    ((16, 16), (1, 64))
    >>> projected_shape(Unit("w", 100, 200, ("w",)), 16, side_divisor=8)
    (13, 25)
    """
    if side_divisor:
        return -(-unit.outputs // side_divisor), -(-unit.inputs // side_divisor)
    outputs, inputs = min(unit.outputs, rank), min(unit.inputs, rank)
    if outputs < rank:
        inputs = min(unit.inputs, rank * rank // outputs, 4 * rank)
    elif inputs < rank:
        outputs = min(unit.outputs, rank * rank // inputs, 4 * rank)
    return outputs, inputs


@dataclass(frozen=True)
class Kronecker:
    """Two matrices per unit; None where a side is kept whole.

    The projected gradient of a unit is (dY P_out)^T (X P_in), which equals the Kronecker product of the two projections applied to the
    flattened gradient (Choe et al. 2024, equation 4).

    Args:
        units: The units.
        outputs: Per unit, shape (O, P) or None; a whole basis may be one of reflections.
        inputs: Per unit, shape (I, R) or None; the same.
    """

    units: tuple[Unit, ...]
    outputs: tuple[Basis | None, ...]
    inputs: tuple[Basis | None, ...]
    casts: dict[tuple[int, bool, torch.dtype], Basis] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def random(
        cls, units: Sequence[Unit], shapes: Sequence[tuple[int, int]], *, kind: Random, seed: int, device: torch.device
    ) -> "Kronecker":
        """Random projections, reproducible from the seed, the units' names and their projected shapes alone."""

        def side(unit: Unit, name: str, size: int, width: int) -> Tensor | None:
            if width >= size:
                return None
            return random_matrix(kind, size, width, seed=seed, name=f"{unit.name}:{name}").to(device)

        pairs = list(zip(units, shapes, strict=True))
        return cls(
            tuple(units),
            tuple(side(unit, "outputs", unit.outputs, width) for unit, (width, _) in pairs),
            tuple(side(unit, "inputs", unit.inputs, width) for unit, (_, width) in pairs),
        )

    def scaled(self, outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> "Kronecker":
        """The same of gradients whose rows and columns are multiplied with some factors first.

        Args:
            outputs: Per unit, shape (O,).
            inputs: Per unit, shape (I,).
        """

        def times(scale: Tensor, matrix: Basis | None) -> Tensor:
            assert matrix is None or isinstance(matrix, Tensor)  # of a random projection
            return torch.diag(scale).float() if matrix is None else (scale[:, None] * matrix).float()

        return Kronecker(
            self.units,
            tuple(times(*pair) for pair in zip(outputs, self.outputs, strict=True)),
            tuple(times(*pair) for pair in zip(inputs, self.inputs, strict=True)),
        )

    def shapes(self) -> list[tuple[int, int]]:
        """Projected (outputs, inputs) of every unit."""
        return [
            (unit.outputs if left is None else left.shape[1], unit.inputs if right is None else right.shape[1])
            for unit, left, right in zip(self.units, self.outputs, self.inputs, strict=True)
        ]

    def gains(self) -> list[float]:
        """Mean diagonal of P^T P per unit, by which an absolute damping has to be multiplied in the projected space."""
        return [_gain(left) * _gain(right) for left, right in zip(self.outputs, self.inputs, strict=True)]

    def rows(self, num_examples: int) -> "RowSums":
        """A fresh consumer for a batch."""
        return RowSums(self, num_examples)

    def position_scores(self, index: int, pair: Pair, queries: Sequence[Tensor] | Mapping[int, Tensor]) -> Tensor:
        """Each position's part of the inner product of one example's row with a query, shape (T,); see `Encoder`."""
        query_PR = queries[index]
        left_TP, right_TR = (side[0].to(query_PR.dtype) for side in self.sides(index, pair))
        return torch.einsum("tp,pr,tr->t", left_TP, query_PR.to(left_TP.device), right_TR)

    def sides(self, index: int, pair: Pair) -> tuple[Tensor, Tensor]:
        """Both sides of a pair, projected: shapes (B, T, P) and (B, T, R)."""
        return self._times(index, True, pair.outputs), self._times(index, False, pair.inputs)

    def project(self, index: int, pair: Pair) -> Tensor:
        """Projected gradients of the examples of a pair, shape (B, P, R), float32 or wider."""
        basis = self.outputs[index]
        if isinstance(basis, Blocked) or (basis is None and isinstance(pair.outputs, OneHot)):
            # Rows are added up where they belong, one-hot vectors never written out, and only the rows of a block are turned afterwards.
            rows_BOR = Pair(pair.outputs, Dense(self._times(index, False, pair.inputs))).wide().gradient()
            if basis is not None:
                here = basis.to(rows_BOR)
                rows_BOR.index_copy_(1, here.places_K, here.block_KK.T @ rows_BOR[:, here.places_K])
            return rows_BOR
        left_BTP, right_BTR = self.sides(index, pair)
        wide = torch.promote_types(torch.promote_types(left_BTP.dtype, right_BTR.dtype), torch.float32)
        return torch.bmm(left_BTP.to(wide).transpose(1, 2), right_BTR.to(wide))

    def _times(self, index: int, is_output: bool, side: Side) -> Tensor:
        matrix = (self.outputs if is_output else self.inputs)[index]
        if matrix is None:
            return side.dense()
        dtype = side.values_BTN.dtype if isinstance(side, Dense) else side.dtype
        key = (index, is_output, dtype)
        if key not in self.casts:
            self.casts[key] = matrix.to(dtype)
        cast = self.casts[key]
        if not isinstance(cast, Tensor):
            return cast.rows(side.ids_BT, side.dtype) if isinstance(side, OneHot) else cast.after(side.dense())
        return side.times(cast)


def _gain(matrix: Basis | None) -> float:
    if not isinstance(matrix, Tensor):
        return 1.0
    return float(matrix.square().sum() / matrix.shape[1])


class RowSums:
    """Adds up the projected gradients of one batch, to be passed to `capture` as its consumer.

    Args:
        kronecker: The projections.
        num_examples: Examples in the batch.
    """

    def __init__(self, kronecker: Kronecker, num_examples: int):
        self.kronecker = kronecker
        self.num_examples = num_examples
        self.rows: list[Tensor | None] = [None] * len(kronecker.units)

    def __call__(self, index: int, pair: Pair) -> None:
        """Add one pair."""
        rows_BPR = self.kronecker.project(index, pair)
        row = self.rows[index]
        self.rows[index] = rows_BPR if row is None else row + rows_BPR

    def finished(self) -> list[Tensor]:
        """Per unit the projected gradients, shape (B, P, R); zeros for a unit that the loss did not reach."""
        some_row = next((row for row in self.rows if row is not None), None)
        dtype = torch.float32 if some_row is None else some_row.dtype
        device = "cpu" if some_row is None else some_row.device
        return [
            torch.zeros(self.num_examples, *shape, dtype=dtype, device=device) if row is None else row
            for row, shape in zip(self.rows, self.kronecker.shapes(), strict=True)
        ]
