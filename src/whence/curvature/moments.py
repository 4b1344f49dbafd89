"""Second moments of both sides of gradient pairs: the factors of K-FAC.

A unit may be used in two ways, by layers that multiply and by tables that look rows up (a tied embedding and head). Each way is a *role* with
factors of its own, since a sum of Kronecker products is no Kronecker product.

Axes: B batch, T positions, R real positions of a batch, N length of a side's vectors.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from whence.capture import Plan
from whence.curvature.sides import Probes, directions_of
from whence.records import Dense, OneHot, Pair
from whence.settings import Sharing
from whence.tasks import fitting_mask

__all__ = ["FactorSums"]

# Columns of a second moment computed at a time.
_BLOCK = 128


@dataclass
class FactorSums:
    """Adds up the factors of one batch, to be passed to `capture` as its consumer.

    Args:
        plan: The units.
        sharing: How positions that share a weight are treated (Eschenhagen et al. 2023, section 3): "expand" takes each as an example of its
            own, "reduce" sums output gradients and averages inputs over an example's positions first.
        probes: What sides that are too long for a whole second moment are sketched with, beside its diagonal; one-hot sides have no more than
            that.
        masks: True at real positions, as `AbstractTask.positions` gives them; padding has no output gradient, but it does have inputs.
        draws: Independent inputs per example, whose positions are reduced apart.
        sums: `outputs.i.role` and `inputs.i.role`, shape (N, N) or, for a diagonal, (N,), with what `Probes.sums` adds of a
            cut side; and the positions counted, `count.i.role`.
    """

    plan: Plan
    sharing: Sharing
    probes: Probes
    masks: Tensor | tuple[Tensor, ...] | None
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
        mask = fitting_mask(self.masks, batch * length) if pair.is_by_position else None
        real_BT = None if mask is None else mask.reshape(batch, length)
        for name, side in (("outputs", pair.outputs), ("inputs", pair.inputs)):
            if isinstance(side, OneHot):
                counts_N = _counts_of_examples(side, real_BT) if is_reduced else _counts(side, real_BT)
                self._add(f"{name}.{index}.{role}", counts_N)
                continue
            rows_RN = _reduced(side, real_BT, name) if is_reduced else _expanded(side, real_BT)
            is_full = directions_of(side.size, self.probes.config) == side.size
            self._add(f"{name}.{index}.{role}", _gram(rows_RN) if is_full else rows_RN.square().sum(0))
            for more, value in self.probes.sums(index, name, rows_RN).items():
                self._add(f"{more}.{index}.{role}", value)
        counted = batch if is_reduced else batch * length if real_BT is None else int(real_BT.sum())
        self._add(f"count.{index}.{role}", torch.tensor(counted, dtype=torch.float64))

    def _add(self, name: str, value: Tensor) -> None:
        self.sums[name] = value if name not in self.sums else self.sums[name] + value


def _counts(side: OneHot, real_BT: Tensor | None) -> Tensor:
    """The diagonal of a one-hot side's second moment, which is all of it."""
    ids_R = side.ids_BT.flatten() if real_BT is None else side.ids_BT[real_BT]
    return torch.bincount(ids_R, minlength=side.size).to(side.dtype)


def _counts_of_examples(side: OneHot, real_BT: Tensor | None) -> Tensor:
    """The same of sums over an example's positions."""
    first_B1 = torch.arange(len(side.ids_BT), device=side.ids_BT.device)[:, None] * side.size
    keys_BT = side.ids_BT + first_B1
    keys, counts = torch.unique(keys_BT.flatten() if real_BT is None else keys_BT[real_BT], return_counts=True)
    squares = counts.to(side.dtype).square()
    return squares.new_zeros(side.size).index_add_(0, keys % side.size, squares)


def _expanded(side: Dense, real_BT: Tensor | None) -> Tensor:
    """Every real position's vector."""
    values_BTN = side.dense()
    return values_BTN.flatten(0, 1) if real_BT is None else values_BTN[real_BT]


def _reduced(side: Dense, real_BT: Tensor | None, name: str) -> Tensor:
    """Every example's sum of output gradients or mean of inputs."""
    values_BTN = side.dense()
    if real_BT is not None:
        values_BTN = values_BTN * real_BT[..., None]
    total_BN = values_BTN.sum(1)
    if name == "inputs":
        total_BN = total_BN / (values_BTN.shape[1] if real_BT is None else real_BT.sum(1, keepdim=True).clamp_min(1))
    return total_BN


def _gram(rows_RN: Tensor) -> Tensor:
    """rows^T rows, its upper half computed and mirrored: on a long side this product is most of the pass."""
    size = rows_RN.shape[1]
    found_NN = rows_RN.new_empty(size, size)
    for start in range(0, size, _BLOCK):
        part = rows_RN[:, start : start + _BLOCK].T @ rows_RN[:, start:]
        found_NN[start : start + _BLOCK, start:] = part
        found_NN[start:, start : start + _BLOCK] = part.T
    return found_NN
