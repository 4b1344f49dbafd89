"""Which rule a step followed, told by the step itself: names of classes promise nothing.

Before a step the weights, gradients and state of a few parameters are kept; after it every rule that their state leaves possible is held
against what the step made of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from whence.optimizers.averaging import averaging_of
from whence.optimizers.rule import Rule
from whence.optimizers.rules import candidates

__all__ = ["Watch", "counted", "flat_state", "fitting_rules"]

# Larger ones are looked at only where a group has no other.
_LARGE = 1 << 22
# How far a formula may be from a step in double and in half precision, as shares of the step.
_DOUBLE, _HALF = 1e-6, 0.05


def flat_state(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a parameter's state, those in lists as KEY[0], KEY[1], and so on."""
    tensors = {}
    for key, value in state.items():
        if isinstance(value, Tensor):
            tensors[key] = value
        elif isinstance(value, list | tuple):
            tensors |= {f"{key}[{index}]": part for index, part in enumerate(value) if isinstance(part, Tensor)}
    return tensors


def counted(state: Mapping[str, Any], counters: Mapping[str, Any]) -> int:
    """How many steps a state has seen, as it says itself or its group does; of one that does not say, whether it saw any."""
    if not state:
        return 0
    for counter, key in ((state, "step"), (counters, "step"), (counters, "k")):
        if key in counter:
            return int(counter[key])
    return 1


@dataclass(frozen=True)
class _Seen:
    parameter: Tensor
    gradient: Tensor | None
    weights: Tensor
    state: dict[str, Tensor]
    count: int


class Watch:
    """A few parameters of an optimizer's groups, before a step.

    Args:
        optimizer: About to step.
        has_closure: Whether the step computes its gradients itself.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, has_closure: bool = False):
        self.optimizer = optimizer
        self.groups = [dict(group) for group in optimizer.param_groups]
        scale = getattr(optimizer, "grad_scale", None)  # fused optimizers divide by it themselves
        self._scale = None if scale is None else scale.detach().clone()
        self._seen = [
            [
                _seen(optimizer, p, group, None if has_closure else _unscaled(p, scale))
                for p in _chosen(group["params"], has_closure)
            ]
            for group in self.groups
        ]

    def fitting(self) -> list[list[str] | None]:
        """After the step, per group the names of the rules that it followed; None where nothing moved."""
        return [self._of_group(number) for number in range(len(self._seen))]

    def states(self) -> list[list[str]]:
        """After the step, per group the keys that the state of its parameters has."""
        by_group = [[self.optimizer.state.get(p, {}) for p in group["params"]] for group in self.groups]
        return [sorted({str(key) for state in some for key in state}) for some in by_group]

    def _of_group(self, number: int) -> list[str] | None:
        group, fitting = {**self.groups[number]}, None
        if "weight_lr_power" in group and "scheduled_lr" in group:
            group["lr"] = float(self.optimizer.param_groups[number]["scheduled_lr"])
            group["share"], _ = averaging_of(group).step(group, group["lr"])
        for seen in self._seen[number]:
            after = flat_state(self.optimizer.state.get(seen.parameter, {}))
            fits = None
            # As it was before the step; if it was not there yet, or the step's own hooks changed it, as it is after.
            for gradient in (seen.gradient, _unscaled(seen.parameter, self._scale)):
                if gradient is not None and not fits:
                    states = (seen.state, after)
                    fits = fitting_rules(seen.weights, seen.parameter.detach(), gradient, states, group, seen.count)
            if fits is not None:
                fitting = fits if fitting is None else [name for name in fitting if name in fits]
        return fitting


def _chosen(parameters: Sequence[Tensor], has_closure: bool) -> list[Tensor]:
    """The smallest with one axis and the smallest with more, of those that have a gradient, or will have."""
    alive = [p for p in parameters if not p.is_complex() and (p.requires_grad if has_closure else p.grad is not None)]
    kinds = [[p for p in alive if (p.ndim > 1) == is_matrix] for is_matrix in (False, True)]
    smallest = [min(kind, key=lambda p: p.numel()) for kind in kinds if kind]
    small = [p for p in smallest if p.numel() <= _LARGE]
    return small or smallest[:1]


def _unscaled(p: Tensor, scale: Tensor | None) -> Tensor | None:
    """A copy of a parameter's gradient, without the scale of a gradient scaler."""
    if p.grad is None or p.grad.is_sparse:
        return None
    return p.grad.detach().clone() if scale is None else p.grad.detach() / scale.to(p.grad)


def _seen(optimizer: torch.optim.Optimizer, p: Tensor, group: Mapping[str, Any], gradient: Tensor | None) -> _Seen:
    state = optimizer.state.get(p, {})
    copies = {key: value.detach().clone() for key, value in flat_state(state).items()}
    return _Seen(p, gradient, p.detach().clone(), copies, counted(state, group))


def fitting_rules(
    before: Tensor, after: Tensor, gradient: Tensor, states: tuple[Mapping[str, Tensor], Mapping[str, Tensor]], group: Mapping[str, Any],
    count: int,
) -> list[str] | None:  # fmt: skip
    """Names of the rules that take a parameter and its state from before a step to after it.

    Args:
        before: The weights.
        after: The weights after the step.
        gradient: That it was given.
        states: The optimizer's state of the parameter, before and after.
        group: Settings, with the learning rate as "lr".
        count: Steps that the state has seen.

    Returns:
        The names; None if the weights did not move.
    """
    if not bool((before != after).any()):
        return None
    return [
        rule.name
        for rule in candidates(group, states[1], before.ndim)
        if _fits(rule, before, after, gradient, states, group, count)
    ]


def _fits(
    rule: Rule, before: Tensor, after: Tensor, gradient: Tensor, states: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
    group: Mapping[str, Any], count: int,
) -> bool:  # fmt: skip
    recorded, after_state = states
    before_state = {key: recorded.get(key, torch.zeros_like(after_state[key])) for key in rule.keys(before.ndim)}
    try:
        predicted = rule.step({"weights": before, **before_state}, gradient.to(before.dtype), group, count)
    except (TypeError, ValueError, KeyError, ArithmeticError, RuntimeError):  # settings of these names that mean something else
        return False
    allowed = {torch.float64: _DOUBLE, torch.float32: rule.tolerance}.get(before.dtype, _HALF)
    if before.dtype == torch.float64 and rule.tolerance > _HALF / 5:
        allowed = rule.tolerance
    for key in ("weights", *(rule.keys(before.ndim) if rule.checked is None else rule.checked)):
        if key not in predicted or not torch.is_floating_point(predicted[key]):
            continue
        there = after if key == "weights" else after_state[key]
        start = before if key == "weights" else before_state[key]
        apart, way = float((predicted[key] - there).double().norm()), float((there - start).double().norm())
        if not apart <= allowed * way + 4 * torch.finfo(there.dtype).eps * float(there.double().norm()):
            return False
    return True
