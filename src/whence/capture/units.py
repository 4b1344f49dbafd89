"""Which parameters are attributed, grouped into units, and which are not: coverage, told aloud."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from torch import nn

from whence.capture.rules import Rule, rule_for
from whence.errors import Unsupported
from whence.records import Unit
from whence.sharded_weights import is_offloaded, is_sharded, refuse_split_ties, refuse_wrapped, settle
from whence.tasks import AbstractTask

__all__ = ["Coverage", "LayerUse", "Plan", "plan_units"]


@dataclass(frozen=True)
class LayerUse:
    """One layer's part in the units.

    Args:
        name: Name of the module.
        module: The module.
        rule: How it is captured.
        weight_unit: Index of the unit that its weight belongs to; None if the weight is not tracked.
        bias_unit: The same for its bias; equal to `weight_unit` when the bias is joined to the weight.
    """

    name: str
    module: Any
    rule: Rule
    weight_unit: int | None
    bias_unit: int | None


@dataclass(frozen=True)
class Coverage:
    """How much of the model is attributed.

    Args:
        tracked: Number of attributed parameters.
        total: Number of parameters in the model.
        left_out: Names of those that are not.
    """

    tracked: int
    total: int
    left_out: tuple[str, ...]

    def __str__(self) -> str:
        share = f"tracking {self.tracked:,} of {self.total:,} parameters ({self.tracked / self.total:.1%})"
        if not self.left_out:
            return share
        more = f" and {len(self.left_out) - 4} more" if len(self.left_out) > 4 else ""
        return f"{share}; left out: {', '.join(self.left_out[:4])}{more}"


@dataclass(frozen=True)
class Plan:
    """What capture will do.

    Args:
        units: Groups of parameters, in the model's order.
        layers: The layers that feed them through hooks.
        functional: Names of the parameters that go through `torch.func`, one unit each, at the end of `units`.
        coverage: What is tracked and what is not.
    """

    units: tuple[Unit, ...]
    layers: tuple[LayerUse, ...]
    functional: tuple[str, ...]
    coverage: Coverage


def plan_units(task: AbstractTask) -> Plan:
    """Group the task's tracked parameters into units.

    Tied weights are one unit fed by several layers. A bias is joined to its layer's weight as a last input column unless either is
    shared or only one of them is tracked.

    Raises:
        Unsupported: If a tracked parameter has no rule and the functional twin was not asked for, or cannot be had: the model is wrapped by
            something that hides its parameters, or spread in a way that capture does not reach.
    """
    model, tracked = task.model, task.tracked
    refuse_wrapped(model)
    refuse_split_ties(model, tracked)
    settle(model)
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    owners: dict[str, list[tuple[str, Any, str]]] = defaultdict(list)
    for module_name, module in model.named_modules():
        for role, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if name_of[id(parameter)] in tracked:
                owners[name_of[id(parameter)]].append((module_name, module, role))

    rules = {id(module): _rule(module_name, module) for uses in owners.values() for module_name, module, _ in uses}
    # A module without a rule may hold a parameter for one that has one, as heads of encoders do with the bias of their last layer. Should it
    # use the parameter itself, the check before a build finds the difference.
    covered = {name: [use for use in uses if _covered(rules[id(use[1])], use[2])] for name, uses in owners.items()}
    owners = {name: covered[name] or uses for name, uses in owners.items()}
    odd = [name for name in owners if not covered[name]]
    chosen = frozenset() if isinstance(task.functional, bool) else task.functional
    refused = [] if task.functional is True else [name for name in odd if name not in chosen]
    if refused:
        _, module, _ = owners[refused[0]][0]
        raise Unsupported(
            found=f"{len(refused)} parameter(s) that no layer rule covers, the first {refused[0]!r} of a {type(module).__name__}",
            needed="Linear, Conv1D, Embedding, LayerNorm, RMSNorm, GroupNorm, BatchNorm with running statistics, Conv1d or Conv2d",
            do=f"{'pass functional=True' if not chosen else f'add {refused[0]!r} to functional'} (slower, any layer), or leave them out "
            "with ignore=[...]",
        )
    odd = [name for name in owners if name in odd or name in chosen]
    if odd and (is_sharded(model) or is_offloaded(model)):
        raise Unsupported(
            found=f"the parameter {odd[0]!r} for torch.func in a model that is spread over processes or devices",
            needed="layers with a rule there, since torch.func swaps weights that are not in one place",
            do=f"leave it out with ignore=[{odd[0]!r}], or load the model whole",
        )

    units: list[Unit] = []
    unit_of: dict[str, int] = {}
    for name, uses in owners.items():
        if name in odd or name in unit_of:
            continue
        module_name, module, role = uses[0]
        rule = rules[id(module)]
        assert rule is not None
        outputs, inputs = rule.matrix(module.weight).shape if role == "weight" else (1, module.bias.numel())
        parameters = [name]
        bias = getattr(module, "bias", None)
        if role == "weight" and bias is not None and len(uses) == 1:
            bias_name = name_of[id(bias)]
            if bias_name not in odd and len(owners.get(bias_name, ())) == 1:
                parameters.append(bias_name)
                inputs += bias.numel() if rule.vector else 1
        for parameter in parameters:
            unit_of[parameter] = len(units)
        units.append(Unit(name, outputs, inputs, tuple(parameters), tuple(use[0] for use in uses)))

    sizes = dict(model.named_parameters())
    uses = (
        LayerUse(name, module, rule, *(_unit_of(module, role, name_of, unit_of) for role in ("weight", "bias")))
        for name, module, rule in _layers(model, rules)
    )
    # A layer that feeds no unit is not touched: one that is given some positions only would not stand it.
    layers = tuple(use for use in uses if use.weight_unit is not None or use.bias_unit is not None)
    units += [Unit(name, 1, sizes[name].numel(), (name,)) for name in odd]
    coverage = Coverage(
        sum(sizes[name].numel() for name in tracked),
        sum(parameter.numel() for parameter in sizes.values()),
        tuple(name for name in sizes if name not in tracked),
    )
    return Plan(tuple(units), layers, tuple(odd), coverage)


def _rule(name: str, module: nn.Module) -> Rule | None:
    try:
        return rule_for(module)
    except Unsupported as error:
        raise Unsupported(found=f"{error.found}: layer {name!r}", needed=error.needed, do=error.do) from None


def _covered(rule: Rule | None, role: str) -> bool:
    return rule is not None and role in ("weight", "bias")


def _layers(model: nn.Module, rules: dict[int, Rule | None]) -> list[tuple[str, nn.Module, Rule]]:
    found = []
    for name, module in model.named_modules():
        rule = rules.get(id(module))
        if rule is not None:
            found.append((name, module, rule))
    return found


def _unit_of(module: nn.Module, role: str, name_of: dict[int, str], unit_of: dict[str, int]) -> int | None:
    parameter = getattr(module, role, None)
    return None if parameter is None else unit_of.get(name_of[id(parameter)])
