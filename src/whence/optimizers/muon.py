"""Muon: steps along the orthogonal part of a mean of gradients."""

import math

import torch
from torch import Tensor

from whence.optimizers.rule import Group, Rule, State, root

__all__ = ["MUON", "MUON_BFLOAT16", "muon_gain"]


def _muon(before: State, gradient: Tensor, group: Group, count: int) -> dict[str, Tensor]:
    mean, direction = _mixed(before, gradient, group)
    return _stepped(before, group, _orthogonal(direction, group), mean)


def _muon_bfloat16(before: State, gradient: Tensor, group: Group, count: int) -> dict[str, Tensor]:
    """As `torch.optim.Muon` has it: the polynomial is computed in bfloat16. What that rounds away is taken as a constant."""
    mean, direction = _mixed(before, gradient, group)
    exact = _orthogonal(direction, group)
    rounded = _orthogonal(direction.detach().bfloat16(), group).to(exact.dtype)
    return _stepped(before, group, exact + (rounded - exact).detach(), mean)


def _mixed(before: State, gradient: Tensor, group: Group) -> tuple[Tensor, Tensor]:
    momentum = group["momentum"]
    mean = before["momentum_buffer"] + (1 - momentum) * (gradient - before["momentum_buffer"])
    return mean, gradient + momentum * (mean - gradient) if group["nesterov"] else mean


def _stepped(before: State, group: Group, direction: Tensor, mean: Tensor) -> dict[str, Tensor]:
    weight, rate = before["weights"], group["lr"]
    weight = weight * (1 - rate * group["weight_decay"]) - rate * muon_gain(group, weight.shape) * direction
    return {"weights": weight, "momentum_buffer": mean}


def _orthogonal(matrix: Tensor, group: Group) -> Tensor:
    """A few steps of the quintic iteration that takes singular values to about 1."""
    a, b, c = group["ns_coefficients"]
    x = matrix.mT if matrix.shape[-2] > matrix.shape[-1] else matrix
    x = (
        x / root(x.square().sum()).clamp_min(group.get("eps", 1e-7))
        if x.dtype != torch.bfloat16
        else x / x.norm().clamp_min(1e-7)
    )
    for _ in range(group["ns_steps"]):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if matrix.shape[-2] > matrix.shape[-1] else x


def muon_gain(group: Group, shape: torch.Size) -> float:
    """What the learning rate is multiplied with for a shape."""
    if group.get("adjust_lr_fn") == "match_rms_adamw":
        return 0.2 * math.sqrt(max(shape[0], shape[1]))
    return math.sqrt(max(1.0, shape[0] / shape[1]))


_NEEDS = ("momentum", "nesterov", "weight_decay", "ns_coefficients", "ns_steps")


def _keys(axes: int) -> tuple[str, ...]:
    return ("momentum_buffer",)


MUON = Rule("muon", _NEEDS, _keys, _muon, is_decoupled=lambda group: True)
MUON_BFLOAT16 = Rule("muon in bfloat16", _NEEDS, _keys, _muon_bfloat16, is_decoupled=lambda group: True, tolerance=0.02)
