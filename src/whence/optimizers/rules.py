"""All rules that are known here, and those that a parameter's settings and state leave possible."""

from collections.abc import Collection

from whence.optimizers.averaging import SCHEDULE_FREE_ADAMW, SCHEDULE_FREE_SGD
from whence.optimizers.elementwise import ADAM, ADAMW, LAMB, MOMENTUM, SGD
from whence.optimizers.kronecker import SHAMPOO, SOAP
from whence.optimizers.muon import MUON, MUON_BFLOAT16
from whence.optimizers.rule import Group, Rule

__all__ = ["NAMES", "RULES", "candidates", "rule_named", "what_it_lacks"]

RULES = (
    SGD, MOMENTUM, ADAM, ADAMW, MUON_BFLOAT16, MUON, SCHEDULE_FREE_SGD, SCHEDULE_FREE_ADAMW, LAMB, SHAMPOO, SOAP,
)  # fmt: skip
NAMES = "SGD, Adam, AdamW, Muon, Schedule-Free SGD and AdamW, Shampoo, SOAP or LAMB"

# What says of optimizers without a rule why they have none, by keys of their state.
_LACKS = {
    frozenset({"exp_avg"}): "it steps along signs, which a small change of an example's weight does not turn",
    frozenset({"row_var", "col_var"}): "of how long its gradients would have been without its own clipping it keeps nothing",
    frozenset(
        {"exp_avg_sq_row", "exp_avg_sq_col"}
    ): "of how long its gradients would have been without its own clipping it keeps nothing",
    frozenset({"state1", "state2"}): "it keeps moments in few bits, without exp_avg and exp_avg_sq",
    frozenset({"state1"}): "it keeps a moment in few bits, without momentum_buffer",
}

# Settings that no formula here has.
_ODD = ("amsgrad", "maximize")
# Runs recorded before steps were watched say the name of their optimizer only.
_TORCH = {"Adam": ADAM, "AdamW": ADAMW, "Muon": MUON_BFLOAT16}


def candidates(group: Group, keys: Collection[str], axes: int) -> list[Rule]:
    """Rules that a parameter may follow, as far as its group's settings and the keys of its state say."""
    if _has_odd_settings(group):
        return []
    return [
        rule
        for rule in RULES
        if all(group.get(name) is not None for name in rule.needs) and rule.accepts(group) and set(rule.keys(axes)) <= set(keys)
    ]


def rule_named(name: str, group: Group) -> Rule | None:
    """The rule of a torch optimizer's class; None for any other name, or settings that it has no formula for."""
    if _has_odd_settings(group):
        return None
    if name == "SGD":
        return MOMENTUM if group.get("momentum") else SGD
    if name == "Adam" and group.get("decoupled_weight_decay"):
        return ADAMW
    if name == "Muon" and "ns_coefficients" not in group:
        return None
    return _TORCH.get(name)


def what_it_lacks(keys: Collection[str]) -> str:
    """Why a state is that of no rule here, where that is known; else that the step does not tell."""
    own = set(keys) - {"step"}
    exact = _LACKS.get(frozenset(own))
    inside = [why for keys_lacking, why in _LACKS.items() if len(keys_lacking) > 1 and keys_lacking <= own]
    return exact or (inside[0] if inside else "its steps follow no rule known here")


def _has_odd_settings(group: Group) -> bool:
    """Whether a group has settings that no formula here has; Adafactor's eps is a pair."""
    return any(group.get(name) for name in _ODD) or not isinstance(group.get("eps", 0.0), int | float)
