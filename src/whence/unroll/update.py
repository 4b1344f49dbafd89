"""What a step of an optimizer does to weights and state, as a function that can be differentiated.

SGD, Adam and AdamW as torch computes them, clipping of the gradients' norm included. Everything is a formula on plain tensors, so that
`torch.func` gives its derivative in either direction.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from whence.errors import Unsupported

__all__ = ["Update", "Values", "update_of"]

Values = dict[str, dict[str, Tensor]]
"""By kind ("weights", "first", "second") and name of the parameter: its value, its momentum, its second moment."""

_KINDS = ("SGD", "Adam", "AdamW")


@dataclass(frozen=True)
class Update:
    """One step of the optimizer.

    Args:
        groups: By parameter, the settings of its group, with the learning rate as "lr".
        is_adaptive: Whether the optimizer divides by the root of second moments.
        factor: What the gradients were multiplied with, by clipping.
        limit: What clipping cut their norm to; None where the factor is to be taken as a constant.
    """

    groups: Mapping[str, Mapping[str, Any]]
    is_adaptive: bool
    factor: float
    limit: float | None = None

    def kinds(self, name: str) -> tuple[str, ...]:
        """What the optimizer keeps of a parameter besides its value."""
        if self.is_adaptive:
            return ("first", "second")
        return ("first",) if self.groups[name].get("momentum", 0.0) else ()

    def __call__(self, values: Values, gradients: Mapping[str, Tensor], counts: Mapping[str, int]) -> Values:
        """Weights and state after the step.

        Args:
            values: Before it.
            gradients: Of the loss; a parameter without one is left alone, as torch does.
            counts: By parameter, how many steps its state has seen.
        """
        factor = self._factor(gradients)
        stepped: Values = {kind: dict(rows) for kind, rows in values.items()}
        step = self._adam if self.is_adaptive else self._sgd
        for name, gradient in gradients.items():
            before = {kind: values[kind][name] for kind in ("weights", *self.kinds(name))}
            for kind, value in step(before, gradient * factor, self.groups[name], counts.get(name, 0)).items():
                stepped[kind][name] = value
        return stepped

    def _factor(self, gradients: Mapping[str, Tensor]) -> Tensor | float:
        if self.limit is None:
            return self.factor
        norm = torch.stack([gradient.square().sum() for gradient in gradients.values()]).sum().sqrt()
        return (self.limit / (norm + 1e-6)).clamp_max(1.0)  # as torch.nn.utils.clip_grad_norm_

    @staticmethod
    def _sgd(before: Mapping[str, Tensor], gradient: Tensor, group: Mapping[str, Any], count: int) -> dict[str, Tensor]:
        weight = before["weights"]
        gradient = gradient + group["weight_decay"] * weight
        momentum = group.get("momentum", 0.0)
        if not momentum:
            return {"weights": weight - group["lr"] * gradient}
        # The first gradient fills the buffer whole, whatever the dampening.
        share = 1 - group.get("dampening", 0.0) if count else 1.0
        first = momentum * before["first"] + share * gradient
        direction = gradient + momentum * first if group.get("nesterov") else first
        return {"weights": weight - group["lr"] * direction, "first": first}

    @staticmethod
    def _adam(before: Mapping[str, Tensor], gradient: Tensor, group: Mapping[str, Any], count: int) -> dict[str, Tensor]:
        weight, rate, decay = before["weights"], group["lr"], group["weight_decay"]
        beta1, beta2 = group["betas"]
        if group["decoupled_weight_decay"]:
            weight = weight * (1 - rate * decay)
        else:
            gradient = gradient + decay * weight
        first = beta1 * before["first"] + (1 - beta1) * gradient
        second = beta2 * before["second"] + (1 - beta2) * gradient * gradient
        # As torch orders it, so that a replay in single precision stays near the run.
        root = _root(second) / math.sqrt(1 - beta2 ** (count + 1))
        moved = first / (root + group["eps"])
        return {"weights": weight - rate / (1 - beta1 ** (count + 1)) * moved, "first": first, "second": second}


def update_of(settings: Mapping[str, Any], rates: list[float], factor: float, limit: float | None = None) -> Update:
    """The step that a run recorded.

    Args:
        settings: The optimizer's, as the run wrote them down.
        rates: Learning rate of every group.
        factor: By clipping.
        limit: See `Update`.

    Returns:
        The step.

    Raises:
        Unsupported: If the optimizer is one whose steps are not known here.
    """
    kind, groups = settings["optimizer"], settings["groups"]
    odd = [name for name in ("amsgrad", "maximize") if any(group.get(name) for group in groups)]
    if kind not in _KINDS or odd:
        raise Unsupported(
            found=f"a run with {kind}{' with ' + odd[0] if odd else ''}",
            needed="SGD, Adam or AdamW, without amsgrad and maximize",
            do="choose another method, such as ekfac",
        )
    by_name = {
        name: {"decoupled_weight_decay": kind == "AdamW", **group, "lr": rate}
        for group, rate in zip(groups, rates, strict=True)
        for name in group["parameters"]
    }
    return Update(by_name, kind != "SGD", factor, limit)


def _root(values: Tensor) -> Tensor:
    """The square root with derivative 0 at 0, where no gradient has come by yet and the first moment is 0, too."""
    is_positive = values > 0
    return torch.where(is_positive, torch.where(is_positive, values, 1.0).sqrt(), 0.0)
