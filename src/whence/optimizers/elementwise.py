"""SGD and the optimizers that divide by roots of second moments: SGD with momentum, Adam, AdamW, LAMB."""

import math

import torch
from torch import Tensor

from whence.optimizers.rule import Group, Rule, State, flag, root

__all__ = ["ADAM", "ADAMW", "LAMB", "MOMENTUM", "SGD"]


def _sgd(before: State, gradient: Tensor, group: Group, count: int) -> dict[str, Tensor]:
    gradient = gradient + group["weight_decay"] * before["weights"]
    return {"weights": before["weights"] - group["lr"] * gradient}


def _momentum(before: State, gradient: Tensor, group: Group, count: int) -> dict[str, Tensor]:
    weight, momentum = before["weights"], group["momentum"]
    gradient = gradient + group["weight_decay"] * weight
    # The first gradient fills the buffer whole, whatever the dampening.
    share = 1 - group.get("dampening", 0.0) if count else 1.0
    mean = momentum * before["momentum_buffer"] + share * gradient
    direction = gradient + momentum * mean if group.get("nesterov") else mean
    return {"weights": weight - group["lr"] * direction, "momentum_buffer": mean}


def _moments(before: State, gradient: Tensor, group: Group, count: int) -> tuple[Tensor, Tensor, Tensor, float]:
    """Both moments, the root of the second with its bias corrected, and the first's correction."""
    beta1, beta2 = group["betas"]
    first = beta1 * before["exp_avg"] + (1 - beta1) * gradient
    second = beta2 * before["exp_avg_sq"] + (1 - beta2) * gradient * gradient
    # As torch orders it, so that a replay in single precision stays near the run.
    return first, second, root(second) / math.sqrt(1 - beta2 ** (count + 1)), 1 - beta1 ** (count + 1)


def _adam(before: State, gradient: Tensor, group: Group, count: int) -> dict[str, Tensor]:
    weight = before["weights"]
    first, second, scale, bias = _moments(before, gradient + group["weight_decay"] * weight, group, count)
    return {"weights": weight - group["lr"] / bias * (first / (scale + group["eps"])), "exp_avg": first, "exp_avg_sq": second}


def _adamw(before: State, gradient: Tensor, group: Group, count: int) -> dict[str, Tensor]:
    weight = before["weights"] * (1 - group["lr"] * group["weight_decay"])
    first, second, scale, bias = _moments(before, gradient, group, count)
    return {"weights": weight - group["lr"] / bias * (first / (scale + group["eps"])), "exp_avg": first, "exp_avg_sq": second}


def _adam_diagonal(state: State, group: Group, count: int) -> Tensor:
    corrected = state["exp_avg_sq"] / (1 - group["betas"][1] ** count)
    return 1.0 / (corrected.sqrt() + group["eps"])


def _lamb(before: State, gradient: Tensor, group: Group, count: int) -> dict[str, Tensor]:
    """Adam's step without the second moment's correction, made as long as the weights (You et al. 2020, arXiv 1904.00962, algorithm 2)."""
    beta1, beta2 = group["betas"]
    weight, rate, decay = before["weights"], group["lr"], group["weight_decay"]
    first = beta1 * before["exp_avg"] + (1 - beta1 if group["grad_averaging"] else 1.0) * gradient
    second = beta2 * before["exp_avg_sq"] + (1 - beta2) * gradient * gradient
    if group["weight_decouple"]:
        weight = weight * (1 - rate * decay)
    moved = first / (root(second) + group["eps"])
    if not group["weight_decouple"]:
        moved = moved + decay * weight
    length = root(weight.square().sum()).clamp(max=_LONGEST)
    own = root(moved.square().sum())
    ratio = torch.where((length > 0) & (own > 0), length / (own + group["eps"]), 1.0)
    state_after = {"exp_avg": first, "exp_avg_sq": second, "trust_ratio": ratio}
    return {"weights": weight - rate / (1 - beta1 ** (count + 1)) * ratio * moved, **state_after}


# Length of weights from which on LAMB's steps grow no more.
_LONGEST = 10.0


def _lamb_accepts(group: Group) -> bool:
    return not any(group.get(name) for name in ("adam", "adam_debias", "adanorm", "rectify", "fixed_decay"))


def _lamb_diagonal(state: State, group: Group, count: int) -> Tensor:
    share = 1.0 if group["grad_averaging"] else 1 / (1 - group["betas"][0])  # a sum of gradients instead of a mean
    return share * state["trust_ratio"] / (state["exp_avg_sq"].sqrt() + group["eps"])


def _moment_keys(axes: int) -> tuple[str, ...]:
    return ("exp_avg", "exp_avg_sq")


SGD = Rule(
    "sgd", ("weight_decay", "momentum", "dampening"), lambda axes: (), _sgd,
    accepts=lambda group: not group["momentum"], is_plain=True,
)  # fmt: skip
MOMENTUM = Rule(
    "momentum", ("weight_decay", "momentum", "dampening"), lambda axes: ("momentum_buffer",), _momentum,
    accepts=flag("momentum"), is_plain=True,
    # Terminal velocity (Bae et al. 2024, appendix D.2); the means that others keep of gradients have it at once.
    gain=lambda group: (1 - group.get("dampening", 0.0)) / (1 - group["momentum"]),
)  # fmt: skip
ADAM = Rule("adam", ("betas", "eps", "weight_decay"), _moment_keys, _adam, diagonal=_adam_diagonal)
ADAMW = Rule(
    "adamw", ("betas", "eps", "weight_decay"), _moment_keys, _adamw, is_decoupled=lambda group: True, diagonal=_adam_diagonal
)
LAMB = Rule(
    "lamb", ("betas", "eps", "weight_decay", "grad_averaging", "weight_decouple"),
    lambda axes: ("exp_avg", "exp_avg_sq", "trust_ratio"), _lamb,
    accepts=_lamb_accepts, is_decoupled=flag("weight_decouple"), diagonal=_lamb_diagonal,
)  # fmt: skip
