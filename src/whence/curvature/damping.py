"""Damping: how much is added to every eigenvalue, chosen at query time and told aloud."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from whence.errors import BadInput, UnknownOption
from whence.records import Recipe, Unit
from whence.store import StoredUnit

__all__ = [
    "Damping",
    "DampingRule",
    "choose_damping",
    "inverse_preconditioner",
    "recipe_damping",
    "rounding_share",
    "stored_damping",
]

DampingRule = Literal["mean", "lorif", "lorif-paper", "recipe"]
"""Published rules, see `stored_damping`."""

# What rounding makes of a gradient that is zero, in units of the last bit of the largest gradients: the root of many terms.
_ROUNDINGS = 30
# Shares: of the mean eigenvalue over all directions, or over the kept ones.
_RULES = {
    "mean": (0.1, False, "Choe et al. 2024"),
    "lorif": (0.5, False, "the code of Li et al. 2026"),
    "lorif-paper": (0.1, True, "Li et al. 2026"),
}


@dataclass(frozen=True)
class Damping:
    """How damping is set.

    Args:
        relative: Share of each unit's mean eigenvalue, over all directions.
        absolute: A value in units of the per-example loss's curvature; used when `relative` is None.
        scales: Factor on `absolute` by parameter name; 1 where missing.
        note: How it was chosen, for the report.
        label: The same in a few words, to tell tables apart.
        of_kept: Whether `relative` is a share of the mean over the directions that are kept instead of all.
    """

    relative: float | None
    absolute: float | None
    note: str
    scales: Mapping[str, float] = field(default_factory=dict)
    label: str = ""
    of_kept: bool = False

    def of_unit(self, unit: Unit | StoredUnit, mean_eigenvalue: float) -> float:
        """The value added to a unit's eigenvalues.

        Args:
            unit: The unit; a stored one has the gain of its projection on an absolute value.
            mean_eigenvalue: Trace over dimensions, or the mean over kept directions if that is what is asked for.

        Returns:
            A positive number.
        """
        if self.relative is not None:
            value = self.relative * mean_eigenvalue
        else:
            scales = [self.scales.get(name, 1.0) for name in unit.parameters]
            # A joined bias is one column of its weight's matrix; the vectors of a norm weigh the same.
            scale = sum(scales) / len(scales) if unit.outputs == 1 else scales[0]
            gain = unit.gain if isinstance(unit, StoredUnit) else 1.0
            value = (self.absolute or 0.0) * gain * scale
        # A unit whose gradient is zero everywhere has no curvature either; any positive number gives it the score zero.
        return value if value > 0 else 1e-30

    def least(self, mean_eigenvalues: Sequence[float], dtype: torch.dtype) -> float:
        """What is added to the eigenvalues of every unit at least: the share of what rounding alone gives a unit.

        A gradient that is zero by construction, such as that of a key's bias, which softmax does not see, is zero up to rounding. A share of
        its own mean eigenvalue would blow that up to the size of the others.

        Args:
            mean_eigenvalues: Trace over dimensions of all units.
            dtype: Of the gradients.
        """
        if self.relative is None:
            return 0.0
        return self.relative * max(mean_eigenvalues, default=0.0) * rounding_share(dtype)


def rounding_share(dtype: torch.dtype) -> float:
    """Mean square that rounding gives a gradient which is zero by construction, as a share of the largest unit's.

    Args:
        dtype: Of the gradients; shorter types than float32 are not told from it.
    """
    return (_ROUNDINGS * torch.finfo(torch.promote_types(dtype, torch.float32)).eps) ** 2


def recipe_damping(recipe: Recipe) -> float:
    """Damping from the training run: weight decay + 1 / sum of learning rates, in units of the per-example loss.

    Training for a finite time leaves directions of curvature below 1 / (sum of learning rates) undecided; adding that value to the
    curvature is what stopping early amounts to (Bae et al. 2024, section 3.2). Heavy-ball momentum multiplies the learning rate by
    1 / (1 - momentum). A loss that was divided inside the mean scales back. An adaptive optimizer moves by P times the gradient, so its
    value has to be multiplied by 1 / P = sqrt(v) + eps, parameter by parameter (`choose_damping` does).

    Args:
        recipe: The training run.

    Returns:
        The value.

    Raises:
        BadInput: If the recipe's numbers are impossible.

    >>> recipe_damping(Recipe("sgd", learning_rate_sum=10.0, momentum=0.9, weight_decay=0.001))
    0.011
    """
    if recipe.learning_rate_sum <= 0 or not 0 <= recipe.momentum < 1 or recipe.loss_divisor <= 0:
        raise BadInput(
            found=f"a training recipe with learning_rate_sum={recipe.learning_rate_sum}, momentum={recipe.momentum}, "
            f"loss_divisor={recipe.loss_divisor}",
            needed="a positive sum and divisor, and momentum in [0, 1)",
            do="correct the recipe, or leave it out and pass relative_damping",
        )
    stopped = (1 - recipe.momentum) / recipe.learning_rate_sum
    return round((recipe.weight_decay + stopped) * recipe.loss_divisor, 15)


def inverse_preconditioner(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """What a recipe needs of an Adam-like optimizer after its last step: the mean of sqrt(v) + eps of each parameter.

    Args:
        model: The trained model.
        optimizer: Its optimizer, with `exp_avg_sq` and `step` in its state.

    Returns:
        By parameter name; parameters without such a state are left out.
    """
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            if "exp_avg_sq" in state and id(parameter) in name_of:
                corrected = state["exp_avg_sq"].double() / (1 - group["betas"][1] ** float(state["step"]))
                found[name_of[id(parameter)]] = float((corrected.sqrt() + group["eps"]).mean())
    return found


def choose_damping(
    recipe: Recipe | None, *, relative_damping: float | None, absolute_damping: float | None, default: float
) -> Damping:
    """What the user asked for, else what the recipe implies, else the method's default.

    Args:
        recipe: The training run, if known.
        relative_damping: Share of the mean eigenvalue.
        absolute_damping: Value in units of the per-example loss's curvature.
        default: The method's relative damping.

    Returns:
        The choice, with a note that says where it comes from.
    """
    asked = _asked(relative_damping, absolute_damping)
    if asked is not None:
        return asked
    if recipe is not None and (found := _of_recipe(recipe)) is not None:
        return found
    why = "no training recipe known" if recipe is None else f"the recipe says {recipe.optimizer} but not its second moments"
    note = f"damping {default:g} x mean eigenvalue, the method's default: {why}"
    return Damping(default, None, note, label="default damping")


def stored_damping(
    recipe: Recipe | None,
    *,
    relative_damping: float | None,
    absolute_damping: float | None,
    rule: DampingRule | None,
    default: float,
) -> Damping:
    """Damping of a store's curvature: what the user asked for, else the method's share of the mean eigenvalue.

    The rules: "mean" .1 x the mean eigenvalue over all directions (Choe et al. 2024); "lorif" .5 x the same, trace / D (the code of Li et
    al. 2026); "lorif-paper" .1 x the mean over the directions that are kept, at most as many as there are rows; "recipe" what the
    training run implies (`recipe_damping`). The recipe is for the Gauss-Newton matrix itself; on rows of a store it is measurably too
    strong or too weak (docs/log.md), so it is taken only when asked for.

    Args:
        recipe: The training run, if known.
        relative_damping: Share of the mean eigenvalue.
        absolute_damping: Value in units of the per-example loss's curvature.
        rule: A published rule instead of a number.
        default: The method's relative damping.

    Returns:
        The choice, with a note that says where it comes from.

    Raises:
        BadInput: If more than one is given, or a rule that needs a recipe there is none of.
        UnknownOption: If there is no such rule.
    """
    if rule is None:
        note = f"damping {default:g} x mean eigenvalue, the method's default"
        return _asked(relative_damping, absolute_damping) or Damping(default, None, note, label="default damping")
    if relative_damping is not None or absolute_damping is not None:
        raise BadInput(
            found=f"damping_rule={rule!r} with relative_damping={relative_damping}, absolute_damping={absolute_damping}",
            needed="one of the three",
            do="leave the others out",
        )
    if rule == "recipe":
        found = None if recipe is None else _of_recipe(recipe)
        if found is None:
            raise BadInput(
                found="damping_rule='recipe' without a known training run"
                if recipe is None
                else f"damping_rule='recipe' for {recipe.optimizer} without its second moments",
                needed="a recipe that tells the damping",
                do="pass recipe=whence.Recipe(...) to the task, or name another rule",
            )
        return found
    if rule not in _RULES:
        raise UnknownOption(found=f"damping_rule={rule!r}", needed=f"one of: {', '.join((*_RULES, 'recipe'))}", do="pick one")
    share, of_kept, source = _RULES[rule]
    base = "mean kept eigenvalue" if of_kept else "mean eigenvalue"
    return Damping(share, None, f"damping {share:g} x {base} ({source})", label=f"{rule} damping", of_kept=of_kept)


def _asked(relative_damping: float | None, absolute_damping: float | None) -> Damping | None:
    """The number that was asked for; None if none was.

    Raises:
        BadInput: If both are given or one is not positive.
    """
    given = [value for value in (relative_damping, absolute_damping) if value is not None]
    if len(given) == 2 or any(not value > 0 for value in given):
        raise BadInput(
            found=f"relative_damping={relative_damping}, absolute_damping={absolute_damping}",
            needed="at most one of them, and positive",
            do="leave both out to have it chosen",
        )
    if relative_damping is not None:
        label = f"damping {relative_damping:g} x mean"
        return Damping(relative_damping, None, f"{label} eigenvalue, as asked", label=label)
    if absolute_damping is not None:
        label = f"damping {absolute_damping:g}"
        return Damping(None, absolute_damping, f"{label}, as asked", label=label)
    return None


def _of_recipe(recipe: Recipe) -> Damping | None:
    """What the training run implies; None for an adaptive optimizer whose second moments are not known."""
    rule = "from the training recipe (weight decay + 1 / sum of learning rates)"
    if recipe.optimizer.lower() == "sgd":
        value = recipe_damping(recipe)
        return Damping(None, value, f"damping {value:.3g} {rule}", label="recipe damping")
    if recipe.inverse_preconditioner:
        note = f"damping {rule}, times each layer's mean sqrt(v) + eps of {recipe.optimizer}"
        return Damping(None, recipe_damping(recipe), note, recipe.inverse_preconditioner, "recipe damping")
    return None
