"""What an optimizer did and what it keeps, by the rule that its steps followed."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from whence.errors import Unsupported
from whence.optimizers import NAMES, RULES, Rule, rule_named, what_it_lacks

__all__ = ["RuledGroup", "check_moved", "counters_of", "groups_at", "kind_of", "settings_at", "state_of"]

RuledGroup = Mapping[str, Any]
"""Settings of a group of parameters, with its `Rule` as "rule" and its place among the groups as "number"."""

_BY_NAME = {rule.name: rule for rule in RULES}


def settings_at(record: Mapping[str, Any], step: int) -> Mapping[str, Any]:
    """The optimizer's settings in a step: its kind and groups."""
    settings = record["settings"]
    return settings[max(0, bisect_right(settings, step, key=lambda entry: entry["start"]) - 1)]


def kind_of(settings: Mapping[str, Any], group: Mapping[str, Any]) -> str:
    """Class of the optimizer that has a group."""
    return group.get("optimizer", settings["optimizer"])


def groups_at(record: Mapping[str, Any], step: int) -> list[RuledGroup]:
    """The optimizer's groups in a step, with the rules that they followed.

    Raises:
        Unsupported: If one followed none that is known here.
    """
    settings, seen = settings_at(record, step), _rules_at(record, step)
    groups = []
    for number, group in enumerate(settings["groups"]):
        is_seen = seen is not None and len(seen["groups"]) == len(seen["states"]) == len(settings["groups"])
        names = seen["groups"][number] if seen is not None and is_seen else None
        rule = _chosen(settings, group, names)
        if rule is None:
            raise Unsupported(
                found=f"a run with {_named(settings, group)}"
                + (_why_not(seen["states"][number]) if seen is not None and is_seen else ""),
                needed=f"steps of {NAMES}",
                do="choose another method, such as ekfac",
            )
        groups.append({**group, "rule": rule, "number": number})
    return groups


def _rules_at(record: Mapping[str, Any], step: int) -> Mapping[str, Any] | None:
    entries = record.get("rules", [])
    number = bisect_right(entries, step, key=lambda entry: entry["start"]) - 1
    return entries[number] if number >= 0 else None


def _chosen(settings: Mapping[str, Any], group: Mapping[str, Any], names: Sequence[str] | None) -> Rule | None:
    """The rule among those that a group's steps fit; by its name where no step was watched."""
    module = str(group.get("module", settings.get("module", "torch.optim")))
    by_name = rule_named(kind_of(settings, group), group) if names is None or module.startswith("torch.optim") else None
    if names is None:
        return by_name
    fitting = [_BY_NAME[name] for name in names if name in _BY_NAME]
    # Without weight decay some are one and the same.
    if by_name in fitting:
        return by_name
    return fitting[0] if fitting else None


def _named(settings: Mapping[str, Any], group: Mapping[str, Any]) -> str:
    module = group.get("module", settings.get("module", ""))
    odd = [name for name in ("amsgrad", "maximize") if group.get(name)]
    where = f" of {module}" if module and not module.startswith("torch.optim") else ""
    return f"{kind_of(settings, group)}{where}{' with ' + odd[0] if odd else ''}"


def _why_not(keys: Sequence[str]) -> str:
    return (
        f", whose state is {', '.join(keys)}: {what_it_lacks(keys)}"
        if keys
        else f", which keeps no state: {what_it_lacks(keys)}"
    )


def state_of(settings: Mapping[str, Any], group: RuledGroup, name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The optimizer's state of a parameter in a checkpoint, by key; empty where it has none, as for one that never had a gradient.

    Args:
        settings: The optimizer's, as the run wrote them down.
        group: That the parameter is in.
        name: The parameter.
        tensors: The checkpoint.

    Returns:
        The state.

    Raises:
        Unsupported: If it lacks what the optimizer's rule reads.
    """
    ending = f".{name}"
    keys = [
        key.partition(".")[0].removeprefix("state_") for key in tensors if key.startswith("state_") and key.endswith(ending)
    ]
    keys = [key for key in keys if f"state_{key}{ending}" in tensors]
    needed = group["rule"].keys(tensors[f"model.{name}"].ndim)
    if keys and not set(needed) <= set(keys):
        raise Unsupported(**_foreign(settings, group, f"whose state of {name!r} is {', '.join(sorted(keys))}", needed))
    return {key: tensors[f"state_{key}{ending}"] for key in keys}


def counters_of(group: RuledGroup, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a group of parameters counts by itself, in a checkpoint."""
    ending = f".{group['number']}"
    return {
        key.removeprefix("group_").removesuffix(ending): value.item()
        for key, value in tensors.items()
        if key.startswith("group_") and key.endswith(ending)
    }


def check_moved(settings: Mapping[str, Any], group: RuledGroup, name: str, before: Tensor, after: Tensor) -> None:
    """Refuse a parameter that moved though its optimizer, whose rule reads a state, keeps none of it.

    Args:
        settings: The optimizer's.
        group: That the parameter is in.
        name: The parameter.
        before: At the beginning of the run.
        after: At the checkpoint without a state.

    Raises:
        Unsupported: If it did.
    """
    needed = group["rule"].keys(after.ndim)
    if needed and bool((before.to(after) != after).any()):
        raise Unsupported(**_foreign(settings, group, f"which moved {name!r} and keeps nothing of it as tensors", needed))


def _foreign(settings: Mapping[str, Any], group: RuledGroup, what: str, needed: Sequence[str]) -> dict[str, str]:
    module = group.get("module", settings.get("module"))
    where = f" of {module}" if module else ""
    return {
        "found": f"a run with {kind_of(settings, group)}{where}, {what}",
        "needed": f"{', '.join(needed)}, as {kind_of(settings, group)} of torch.optim keeps them",
        "do": "record a run with torch.optim, or choose another method, such as ekfac",
    }
