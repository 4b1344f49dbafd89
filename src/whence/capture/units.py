"""Which parameters are attributed, grouped into units, and which are not: coverage, told aloud."""

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.jit import ScriptModule

from whence.capture.rules import Rule, rule_for
from whence.capture.tables import bias_method
from whence.errors import Unsupported
from whence.internals import BATCH_NORMS
from whence.records import Unit
from whence.sharded_weights import is_offloaded, is_sharded, refuse_split_ties, refuse_wrapped, settle
from whence.tasks import AbstractTask

__all__ = ["Coverage", "LayerUse", "Plan", "Route", "listed", "num_numbers", "plan_units", "way_out"]

# Share of the tracked parameters up to which those without a rule go through the twin unasked.
_FEW = 0.02

# By parameter, the modules that hold it: their name, they themselves, and what they call it.
Owners = dict[str, list[tuple[str, Any, str]]]


@dataclass(frozen=True)
class LayerUse:
    """One layer's part in the units.

    Args:
        name: Name of the module.
        module: The module.
        rule: How it is captured.
        weight_unit: Index of the unit that its weight belongs to; None if the weight is not tracked.
        bias_unit: The same for its bias; equal to `weight_unit` when the bias is joined to the weight.
        owner: Of a table of distances, the attention layer whose method `bias_method` looks them up for all examples at once.
    """

    name: str
    module: Any
    rule: Rule
    weight_unit: int | None
    bias_unit: int | None
    owner: Any = None

    @property
    def units(self) -> set[int]:
        """The units that it feeds."""
        return {unit for unit in (self.weight_unit, self.bias_unit) if unit is not None}


@dataclass(frozen=True)
class Coverage:
    """How much of the model is attributed.

    Args:
        tracked: Number of attributed parameters.
        total: Number of parameters in the model.
        left_out: Names of those that are not.
        unasked: Names of those that go through the functional twin without being asked for, as there are few of them.
    """

    tracked: int
    total: int
    left_out: tuple[str, ...]
    unasked: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"tracking {self.tracked:,} of {self.total:,} parameters ({self.tracked / self.total:.1%})"
        if self.unasked:
            text += f"; in a pass of their own through torch.func, having no layer rule: {_first_names(self.unasked)}"
        return f"{text}; left out: {_first_names(self.left_out)}" if self.left_out else text


def _first_names(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


@dataclass
class Route:
    """What the check has found out about a model, by which capture goes: filled by `check_task`, empty until then.

    Args:
        twin: Units that hooks get wrong, though their layers have rules.
        side_by_side: Whether the twin may run examples under `vmap`.
        has_twin: Whether the task lets the twin make units of layers that have rules.
        has_tangents: Whether forward-mode derivatives go through the model; found out by the first product that fails.
        are_tangents_known: Whether they were held against derivatives that go back.
        uses: By layer, the ways in which it was seen used, see `whence.capture.hooks`.
        is_checked: Whether those are proven, so that another one is not let pass any more.
        flat: Names of tables that were given ids of one axis.
        bare: Of these, names of those whose axis is none of the examples: what they look up all examples share.
    """

    twin: set[int] = field(default_factory=set)
    side_by_side: bool = True
    has_twin: bool = False
    has_tangents: bool = True
    are_tangents_known: bool = False
    uses: dict[str, set[str]] = field(default_factory=dict)
    is_checked: bool = False
    flat: set[str] = field(default_factory=set)
    bare: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Plan:
    """What capture will do.

    Args:
        units: Groups of parameters, in the model's order.
        layers: The layers that feed them through hooks.
        functional: Names of the parameters that go through `torch.func`, one unit each, at the end of `units`.
        coverage: What is tracked and what is not.
        route: What has been found out about the model since.
    """

    units: tuple[Unit, ...]
    layers: tuple[LayerUse, ...]
    functional: tuple[str, ...]
    coverage: Coverage
    route: Route = field(default_factory=Route, compare=False)

    @property
    def twin_units(self) -> list[int]:
        """Indices of the units that no hook makes."""
        return sorted({*self.route.twin, *range(len(self.units) - len(self.functional), len(self.units))})


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
    _refuse_batch_statistics(model)
    refuse_split_ties(model, tracked)
    settle(model)
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    owners = _owners(task, name_of)
    rules = {id(module): _rule(module_name, module) for uses in owners.values() for module_name, module, _ in uses}
    # A module without a rule may hold a parameter for one that has one, as heads of encoders do with the bias of their last layer. Should it
    # use the parameter itself, the check before a build finds the difference.
    covered = {name: [use for use in uses if _covered(rules[id(use[1])], *use[1:])] for name, uses in owners.items()}
    owners = {name: covered[name] or uses for name, uses in owners.items()}
    odd = _odd_parameters(task, owners, [name for name in owners if not covered[name]])
    units, unit_of = _units_of(owners, rules, name_of, odd)

    sizes = dict(model.named_parameters())
    uses = (
        LayerUse(
            name,
            module,
            rule,
            *(_unit_of(module, role, name_of, unit_of) for role in ("weight", "bias")),
            owner=_owner(model, name, rule),
        )  # fmt: skip
        for name, module, rule in _layers(model, rules)
    )
    # A layer that feeds no unit is not touched: one that is given some positions only would not stand it.
    layers = tuple(use for use in uses if use.weight_unit is not None or use.bias_unit is not None)
    units += [Unit(name, 1, num_numbers(sizes[name]), (name,)) for name in odd]
    coverage = Coverage(
        sum(sizes[name].numel() for name in tracked),
        sum(parameter.numel() for parameter in sizes.values()),
        tuple(name for name in sizes if name not in tracked),
        tuple(odd) if task.functional is False else (),
    )
    has_twin = task.functional is True and not (is_sharded(model) or is_offloaded(model))
    return Plan(tuple(units), layers, tuple(odd), coverage, Route(has_twin=has_twin))


def _owners(task: AbstractTask, name_of: Mapping[int, str]) -> Owners:
    """By tracked parameter, the modules that hold it.

    Raises:
        Unsupported: If one of them is compiled.
    """
    owners: Owners = {}
    for module_name, module in task.model.named_modules():
        for role, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            # A parameter without numbers, as of a layer of width 0, has no gradient.
            if name_of[id(parameter)] in task.tracked and parameter.numel() > 0:
                owners.setdefault(name_of[id(parameter)], []).append((module_name, module, role))
    compiled = [name for name, uses in owners.items() if any(isinstance(module, ScriptModule) for _, module, _ in uses)]
    if compiled:
        raise Unsupported(
            found=f"{len(compiled)} parameter(s) in modules of torch.jit, the first {compiled[0]!r}",
            needed="modules in Python, whose layers can be watched and whose weights can be swapped",
            do="take the module that it was compiled from"
            + (f", or leave them out with ignore={listed(task, compiled)}" if len(compiled) < len(owners) else ""),
        )
    return owners


def _odd_parameters(task: AbstractTask, owners: Owners, uncovered: Sequence[str]) -> list[str]:
    """Those that the functional twin differentiates: without a rule, or chosen for it; unasked if they are few.

    Raises:
        Unsupported: If a parameter has no rule and the twin was not asked for, or cannot be had.
    """
    chosen = frozenset() if isinstance(task.functional, bool) else task.functional
    refused = [] if task.functional is True else [name for name in uncovered if name not in chosen]
    if refused and not _are_few(task, refused):
        _, module, _ = owners[refused[0]][0]
        raise Unsupported(
            found=f"{len(refused)} parameter(s) that no layer rule covers, the first {refused[0]!r} of a {type(module).__name__}",
            needed="Linear, Conv1D, Embedding, LayerNorm, RMSNorm, GroupNorm, BatchNorm with running statistics, Conv1d or Conv2d",
            do=f"{way_out(task, refused)} (slower, any layer), or leave them out with ignore={listed(task, refused)}",
        )
    odd = [name for name in owners if name in uncovered or name in chosen]
    if odd and (is_sharded(task.model) or is_offloaded(task.model)):
        raise Unsupported(
            found=f"the parameter {odd[0]!r} for torch.func in a model that is spread over processes or devices",
            needed="layers with a rule there, since torch.func swaps weights that are not in one place",
            do=f"leave it out with ignore=[{odd[0]!r}], or load the model whole",
        )
    return odd


def _are_few(task: AbstractTask, names: Sequence[str]) -> bool:
    """Whether the twin may make these parameters' gradients unasked: places and tokens of images, scales of layers.

    What they take is then one more pass at most; gradients that are written out are short.
    """
    if task.functional is not False or is_sharded(task.model) or is_offloaded(task.model):
        return False
    sizes = {name: parameter.numel() for name, parameter in task.model.named_parameters() if name in task.tracked}
    return sum(sizes[name] for name in names) <= _FEW * sum(sizes.values())


def _units_of(
    owners: Owners, rules: Mapping[int, Rule | None], name_of: Mapping[int, str], odd: Sequence[str]
) -> tuple[list[Unit], dict[str, int]]:
    """Units of the parameters that rules cover, and the number of each parameter's unit."""
    units: list[Unit] = []
    unit_of: dict[str, int] = {}
    for name, uses in owners.items():
        if name in odd or name in unit_of:
            continue
        _, module, role = uses[0]
        rule = rules[id(module)]
        assert rule is not None
        outputs, inputs = rule.matrix(module.weight).shape if role == "weight" else (1, module.bias.numel())
        parameters = [name]
        bias = _own(module).get("bias")  # one that is computed, as under a weight norm, is no parameter
        if role == "weight" and bias is not None and len(uses) == 1:
            bias_name = name_of[id(bias)]
            if bias_name not in odd and len(owners.get(bias_name, ())) == 1:
                parameters.append(bias_name)
                inputs += bias.numel() if rule.vector else 1
        for parameter in parameters:
            unit_of[parameter] = len(units)
        units.append(Unit(name, outputs, inputs, tuple(parameters), tuple(use[0] for use in uses)))
    return units, unit_of


def _refuse_batch_statistics(model: nn.Module) -> None:
    """Refuse batch norms that have nothing but the batch to take statistics of, in evaluation mode too.

    Raises:
        Unsupported: If there is one, whoever else would make the gradients of its scales.
    """
    for name, module in model.named_modules():
        if isinstance(module, BATCH_NORMS) and (module.running_mean is None or module.running_var is None):
            raise Unsupported(
                found=f"the batch norm {name!r} without running statistics, which mixes the examples of a batch",
                needed="statistics of its own (track_running_stats=True), or a norm over each example (LayerNorm, GroupNorm)",
                do="train the model with one of these: here no example has a gradient of its own",
            )


def num_numbers(parameter: Tensor) -> int:
    """Real numbers in a parameter, of which a complex one has two."""
    return parameter.numel() * (2 if parameter.is_complex() else 1)


def way_out(task: AbstractTask, names: Sequence[str]) -> str:
    """What lets the twin make these parameters' gradients, for errors."""
    if isinstance(task.functional, bool):
        return "pass functional=True"
    return f"pass functional=True, or add {listed(task, names)} to functional"


def listed(task: AbstractTask, names: Sequence[str]) -> str:
    """Names as a list that can be copied: all of them, as patterns where many are alike but for the numbers of their layers."""
    if len(names) > 4:
        patterns = list(dict.fromkeys(re.sub(r"(?<![^.])\d+(?![^.])", "*", name) for name in names))
        every = [name for name, _ in task.model.named_parameters()]
        if {name for pattern in patterns for name in fnmatch.filter(every, pattern)} == set(names):
            names = patterns
    return f"[{', '.join(map(repr, names))}]"


def _rule(name: str, module: nn.Module) -> Rule | None:
    try:
        return rule_for(module)
    except Unsupported as error:
        do = error.do.replace("[...]", f"['{name}.weight']" if name else "['weight']")
        raise Unsupported(found=f"{error.found}: layer {name!r}", needed=error.needed, do=do) from None


def _covered(rule: Rule | None, module: Any, role: str) -> bool:
    return rule is not None and role in ("weight", "bias") and not _own(module)[role].is_complex()


def _own(module: nn.Module) -> dict[str, nn.Parameter]:
    return dict(module.named_parameters(recurse=False, remove_duplicate=False))


def _layers(model: nn.Module, rules: dict[int, Rule | None]) -> list[tuple[str, nn.Module, Rule]]:
    layers = []
    for name, module in model.named_modules():
        rule = rules.get(id(module))
        if rule is not None:
            layers.append((name, module, rule))
    return layers


def _owner(model: nn.Module, name: str, rule: Rule) -> nn.Module | None:
    """The layer that a table is part of, if that has a method which looks rows up in a way of its own."""
    owner = model.get_submodule(name.rpartition(".")[0]) if rule.looks_up and name else None
    return owner if bias_method(owner) else None


def _unit_of(module: nn.Module, role: str, name_of: dict[int, str], unit_of: dict[str, int]) -> int | None:
    parameter = _own(module).get(role)
    return None if parameter is None else unit_of.get(name_of[id(parameter)])
