"""Second moments of both sides of gradient pairs: the factors of K-FAC.

A unit may be used in two ways, by layers that multiply and by tables that look rows up (a tied embedding and head). Each way is a *role* with
factors of its own, since a sum of Kronecker products is no Kronecker product.

Axes: B batch, T positions, R real positions of a batch, N length of a side's vectors.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from whence.capture import Plan
from whence.records import OneHot, Pair, Side

__all__ = ["FactorSums", "Sharing"]

Sharing = Literal["expand", "reduce"]

# Columns of a second moment computed at a time.
_BLOCK = 128


@dataclass
class FactorSums:
    """Adds up the factors of one batch, to be passed to `capture` as its consumer.

    Args:
        plan: The units.
        sharing: How positions that share a weight are treated (Eschenhagen et al. 2023, section 3): "expand" takes each as an example of its
            own, "reduce" sums output gradients and averages inputs over an example's positions first.
        largest_side: A longer side, and one that is one-hot, keeps only the diagonal of its second moment.
        mask_BT: True at real positions; padding has no output gradient, but it does have inputs.
        draws: Independent inputs per example, whose positions are reduced apart.
        sums: `outputs.i.role` and `inputs.i.role`, shape (N, N) or, for a diagonal, (N,), and the positions counted, `count.i.role`.
    """

    plan: Plan
    sharing: Sharing
    largest_side: int
    mask_BT: Tensor | None
    draws: int = 1
    sums: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, index: int, pair: Pair) -> None:
        """Add one pair."""
        role = "lookup" if isinstance(pair.outputs, OneHot) else "product"
        pair = pair.wide()
        # Rows of a gradient that was written out are neither summed nor padding.
        is_reduced = self.sharing == "reduce" and pair.is_by_position
        if is_reduced and pair.shape[1] % self.draws == 0:
            pair = pair.folded(pair.shape[0] * self.draws)
        batch, length = pair.shape
        # A pair with other positions than the data's, such as a pooled layer's, has no padding.
        has_mask = pair.is_by_position and self.mask_BT is not None and self.mask_BT.numel() == batch * length
        real_BT = self.mask_BT.view(batch, length) if has_mask and self.mask_BT is not None else None
        for name, side in (("outputs", pair.outputs), ("inputs", pair.inputs)):
            moment = self._reduced(side, real_BT, name) if is_reduced else self._expanded(side, real_BT)
            self._add(f"{name}.{index}.{role}", moment)
        counted = batch if is_reduced else batch * length if real_BT is None else int(real_BT.sum())
        self._add(f"count.{index}.{role}", torch.tensor(counted, dtype=torch.float64))

    def _expanded(self, side: Side, real_BT: Tensor | None) -> Tensor:
        if isinstance(side, OneHot):
            ids_R = side.ids_BT.flatten() if real_BT is None else side.ids_BT[real_BT]
            return torch.bincount(ids_R, minlength=side.size).to(side.dtype)
        values_BTN = side.dense()
        return self._moment(values_BTN.flatten(0, 1) if real_BT is None else values_BTN[real_BT])

    def _reduced(self, side: Side, real_BT: Tensor | None, name: str) -> Tensor:
        if isinstance(side, OneHot):
            first_B1 = torch.arange(len(side.ids_BT), device=side.ids_BT.device)[:, None] * side.size
            keys_BT = side.ids_BT + first_B1
            keys, counts = torch.unique(keys_BT.flatten() if real_BT is None else keys_BT[real_BT], return_counts=True)
            squares = counts.to(side.dtype).square()
            return squares.new_zeros(side.size).index_add_(0, keys % side.size, squares)
        values_BTN = side.dense()
        if real_BT is not None:
            values_BTN = values_BTN * real_BT[..., None]
        total_BN = values_BTN.sum(1)
        if name == "inputs":
            total_BN = total_BN / (values_BTN.shape[1] if real_BT is None else real_BT.sum(1, keepdim=True).clamp_min(1))
        return self._moment(total_BN)

    def _moment(self, rows_RN: Tensor) -> Tensor:
        is_full = 1 < rows_RN.shape[1] <= self.largest_side
        return _gram(rows_RN) if is_full else rows_RN.square().sum(0)

    def _add(self, name: str, value: Tensor) -> None:
        self.sums[name] = value if name not in self.sums else self.sums[name] + value


def _gram(rows_RN: Tensor) -> Tensor:
    """rows^T rows, its upper half computed and mirrored: on a long side this product is most of the pass."""
    size = rows_RN.shape[1]
    found_NN = rows_RN.new_empty(size, size)
    for start in range(0, size, _BLOCK):
        part = rows_RN[:, start : start + _BLOCK].T @ rows_RN[:, start:]
        found_NN[start : start + _BLOCK, start:] = part
        found_NN[start:, start : start + _BLOCK] = part.T
    return found_NN
