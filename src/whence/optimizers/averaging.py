"""Schedule-Free SGD and AdamW (Defazio et al. 2024, arXiv 2405.15682): a fast iterate z, its average x, and y between both.

Gradients are taken at y = (1 - b) z + b x, and the model is used at x. The optimizer keeps z, and the parameters are y while it is in
training mode and x in evaluation mode.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from whence.optimizers.rule import Group, Rule, State, root

__all__ = [
    "SCHEDULE_FREE_ADAMW",
    "SCHEDULE_FREE_SGD",
    "Averaging",
    "averaging_of",
    "mix_of",
    "weights_averaged",
    "weights_stepped",
]


@dataclass(frozen=True)
class Averaging:
    """How far the average of a group is.

    Args:
        steps: Made so far.
        weight_sum: Of what went into the average.
        largest: Learning rate so far.
    """

    steps: int = 0
    weight_sum: float = 0.0
    largest: float = -1.0

    def step(self, group: Group, rate: float) -> tuple[float, "Averaging"]:
        """The next step's share c in the average, x' = (1 - c) x + c z', and how far it is then.

        Args:
            group: Settings of the group.
            rate: Learning rate of the step, warmup included.
        """
        largest = max(rate, self.largest)
        weight = (self.steps + 1) ** group["r"] * largest ** group["weight_lr_power"]
        total = self.weight_sum + weight
        return (weight / total if total else 0.0), replace(self, steps=self.steps + 1, weight_sum=total, largest=largest)


def averaging_of(counters: Mapping[str, Any]) -> Averaging:
    """What an optimizer's group says of itself."""
    return Averaging(int(counters.get("k", 0)), float(counters.get("weight_sum", 0.0)), float(counters.get("lr_max", -1.0)))


def mix_of(group: Group) -> float:
    """b, the share of the average in the weights that gradients are taken at."""
    return float(group["betas"][0] if "betas" in group else group["momentum"])


def weights_averaged(value: Tensor, z: Tensor, group: Group) -> Tensor:
    """X from y, to the bit as the optimizer's `eval()` makes it."""
    return torch.lerp(value, z.to(value), 1 - 1 / mix_of(group))


def weights_stepped(value: Tensor, z: Tensor, group: Group) -> Tensor:
    """Y from x, to the bit as the optimizer's `train()` makes it."""
    return torch.lerp(value, z.to(value), 1 - mix_of(group))


def _adamw(before: State, gradient: Tensor, group: Group, count: int) -> dict[str, Tensor]:
    two = group["betas"][1]
    second = two * before["exp_avg_sq"] + (1 - two) * gradient * gradient
    direction = gradient / (root(second / (1 - two ** (count + 1))) + group["eps"])
    return {**_stepped(before, direction, group, count), "exp_avg_sq": second}


def _sgd(before: State, gradient: Tensor, group: Group, count: int) -> dict[str, Tensor]:
    return _stepped(before, gradient, group, count)


def _stepped(before: State, direction: Tensor, group: Group, count: int) -> dict[str, Tensor]:
    y, rate, share = before["weights"], group["lr"], group["share"]
    z = before["z"] if count else y  # it begins where the weights are
    direction = direction + group["weight_decay"] * y
    moved = y + share * (z - y) + rate * (mix_of(group) * (1 - share) - 1) * direction
    return {"weights": moved, "z": z - rate * direction}


def _diagonal(state: State, group: Group, count: int) -> Tensor:
    corrected = state["exp_avg_sq"] / (1 - group["betas"][1] ** count)
    return 1.0 / (corrected.sqrt() + group["eps"])


_NEEDS = ("weight_decay", "r", "weight_lr_power")
SCHEDULE_FREE_ADAMW = Rule(
    "schedule-free adamw", (*_NEEDS, "betas", "eps"), lambda axes: ("z", "exp_avg_sq"), _adamw,
    is_decoupled=lambda group: True, diagonal=_diagonal, is_averaged=True,
)  # fmt: skip
SCHEDULE_FREE_SGD = Rule(
    "schedule-free sgd", (*_NEEDS, "momentum"), lambda axes: ("z",), _sgd, is_plain=True, is_averaged=True,
)  # fmt: skip
