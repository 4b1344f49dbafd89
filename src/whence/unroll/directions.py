"""Where the optimizer of a recorded run would go if a step were made of one example alone.

Axes: B examples, O outputs, I inputs.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from whence.capture import Blocks, Plan, as_blocks, as_parameters
from whence.errors import Unsupported
from whence.optimizers import counted
from whence.unroll.run import Run
from whence.unroll.segments import Segment
from whence.unroll.states import RuledGroup, check_moved, counters_of, settings_at, state_of

__all__ = ["Directions", "directions_of"]

# Rules that treat every number by itself, so that many gradients go through them at once.
_ELEMENTWISE = ("sgd", "momentum", "adam", "adamw")


@dataclass(frozen=True)
class Directions:
    """What a checkpoint's optimizer makes of a gradient in its next step: Gamma of Xia et al. (2024, section 2.2), without weight decay.

    Args:
        plan: Units of the model.
        model: The run's.
        groups: By parameter, its group and the rule that it follows, with its learning rates as a share of the largest as "lr".
        states: By parameter the optimizer's state, with an axis of 1 in front; zeros where there is none.
        counts: By parameter, how many steps that has seen.
        scale: What the gradient of an example's loss is multiplied with in a step of this example alone.
        rate: Largest sum of learning rates over the segment.
    """

    plan: Plan
    model: nn.Module
    groups: Mapping[str, RuledGroup]
    states: Mapping[str, Mapping[str, Tensor]]
    counts: Mapping[str, int]
    scale: float
    rate: float

    def __call__(self, gradients: Blocks) -> Blocks:
        """The way of each gradient, per unit, shape (B, O, I): the step's opposite, so that it points along the gradient."""
        ways = {}
        for name, gradient in as_parameters(self.plan, self.model, gradients).items():
            group = self.groups.get(name)
            if group is None:  # another's, or nobody's
                ways[name] = torch.zeros_like(gradient)
                continue
            before = {"weights": torch.zeros_like(gradient[:1]), **self.states[name]}
            settings: Any = {**group, "weight_decay": 0.0}
            ways[name] = -group["rule"].step(before, self.scale * gradient, settings, self.counts[name])["weights"]
        return as_blocks(self.plan, ways)


def directions_of(run: Run, plan: Plan, model: nn.Module, segment: Segment) -> Directions:
    """The directions of a segment's last checkpoint.

    Args:
        run: The run.
        plan: Units of the model.
        model: The run's.
        segment: Up to the checkpoint from the one before.

    Returns:
        The directions.

    Raises:
        Unsupported: If the optimizer does not treat every number by itself.
    """
    step = segment.checkpoints[-1]
    settings, tensors, start = settings_at(run.record, step - 1), run.tensors(step), run.tensors(run.checkpoints[0])
    rates: dict[str, float] = {}
    for number in range(segment.start, segment.stop):
        for group, rate in zip(run.groups(number), run.log.rates[number], strict=True):
            for name in group["parameters"]:
                rates[name] = rates.get(name, 0.0) + rate
    largest = max(rates.values())
    weights = [math.fsum(run.log.weights[number]) * run.log.factors[number] for number in range(segment.start, segment.stop)]
    groups, states, counts = {}, {}, {}
    for group in run.groups(step - 1):
        _check_rule(group)
        for name in group["parameters"]:
            value, state = tensors[f"model.{name}"], state_of(settings, group, name, tensors)
            if not state:
                check_moved(settings, group, name, start[f"model.{name}"], value)
            groups[name] = {**group, "lr": rates[name] / largest if largest else 0.0}
            counts[name] = counted(state, counters_of(group, tensors))
            states[name] = {key: state.get(key, torch.zeros_like(value))[None] for key in group["rule"].keys(value.ndim)}
    device = next(model.parameters()).device
    states = {name: {key: value.to(device) for key, value in state.items()} for name, state in states.items()}
    return Directions(plan, model, groups, states, counts, math.fsum(weights) / len(weights), largest)


def _check_rule(group: RuledGroup) -> None:
    """Refuse what is no optimizer of numbers.

    Raises:
        Unsupported: If it is.
    """
    if group["rule"].name not in _ELEMENTWISE:
        raise Unsupported(
            found=f"less for a run with the optimizer rule {group['rule'].name!r} on {group['parameters'][0]!r}",
            needed="Adam, AdamW or SGD, whose update of a number depends on that number's gradient alone",
            do="choose method='source', or leave such parameters out with ignore=[...] to the task where another optimizer steps the rest",
        )
