"""The rule that an optimizer follows: what it keeps of a parameter, and a step as a formula.

A formula works on plain tensors, so that `torch.func` gives its derivative in either direction, and a step that was watched can be held
against it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["SETTINGS", "Group", "Rule", "State", "flag", "root"]

Group = Mapping[str, Any]
"""Settings of a group of parameters, with the learning rate as "lr"."""

State = Mapping[str, Tensor]
"""What is known of one parameter: its value as "weights", and the optimizer's state by the optimizer's own keys."""

SETTINGS = (
    "momentum",
    "dampening",
    "nesterov",
    "betas",
    "eps",
    "weight_decay",
    "amsgrad",
    "maximize",
    "decoupled_weight_decay",
    "ns_coefficients",
    "ns_steps",
    "adjust_lr_fn",
    "r",
    "warmup_steps",
    "weight_lr_power",
    "weight_decouple",
    "fixed_decay",
    "matrix_eps",
    "grad_averaging",
    "max_grad_norm",
    "adam",
    "adam_debias",
    "adanorm",
    "rectify",
    "correct_bias",
    "normalize_gradient",
    "merge_dims",
)
"""What rules read of a group besides its learning rate; a run keeps these."""


def _no_scale(group: Group) -> float:
    return 1.0


def _no(group: Group) -> bool:
    return False


@dataclass(frozen=True)
class Rule:
    """What an optimizer does to one parameter.

    Args:
        name: Of the rule, as a run's record has it.
        needs: Settings that the formula reads; a group without one follows another rule.
        keys: What the optimizer keeps of a parameter with so many axes.
        step: Weights and state after a step, from those before, the gradient, the group and the number of steps that the state has seen.
        accepts: Whether the formula is right for a group's settings.
        is_decoupled: Whether weight decay bypasses what gradients are multiplied with.
        is_plain: Whether gradients are multiplied with nothing but the learning rate.
        gain: How far a gradient moves the weights in the end, in learning rates.
        diagonal: The diagonal of what gradients are multiplied with, from the state after so many steps; None where it is no diagonal.
        is_averaged: Whether the model is used at an average of the weights that the steps make.
        is_differentiable: Whether the derivative of the formula is that of the step.
        checked: Keys of the state that the formula gives as they are; None for all.
        tolerance: How far the formula may be from the step, as a share of it, in float32.
    """

    name: str
    needs: tuple[str, ...]
    keys: Callable[[int], tuple[str, ...]]
    step: Callable[[State, Tensor, Group, int], dict[str, Tensor]]
    accepts: Callable[[Group], bool] = lambda group: True
    is_decoupled: Callable[[Group], bool] = _no
    is_plain: bool = False
    gain: Callable[[Group], float] = _no_scale
    diagonal: Callable[[State, Group, int], Tensor] | None = None
    is_averaged: bool = False
    is_differentiable: bool = True
    checked: tuple[str, ...] | None = None
    tolerance: float = 1e-4


def flag(name: str) -> Callable[[Group], bool]:
    """Whether a group has a setting that is true."""
    return lambda group: bool(group.get(name))


def root(values: Tensor) -> Tensor:
    """The square root with derivative 0 at 0, where no gradient has come by yet and the first moment is 0, too."""
    is_positive = values > 0
    return torch.where(is_positive, torch.where(is_positive, values, 1.0).sqrt(), 0.0)
