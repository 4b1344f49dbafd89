"""Damping: how much is added to every eigenvalue, chosen at query time and told aloud."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from whence.errors import BadInput, Unsupported
from whence.records import Recipe, Unit
from whence.settings import Damping
from whence.store import StoredUnit

__all__ = ["ResolvedDamping", "choose_damping", "inverse_preconditioner", "recipe_damping", "rounding_share", "stored_damping"]

# What torch.optim does with weight decay if nothing else is said.
_DECOUPLED = ("adamw", "muon", "adafactor")
_COUPLED = ("adam", "adamax", "nadam", "radam", "rmsprop", "adagrad", "adadelta")
# What rounding makes of a gradient that is zero, in units of the last bit of the largest gradients: the root of many terms.
_ROUNDINGS = 30
# Shares: of the mean eigenvalue over all directions, or over the kept ones; and whether those that are not kept have their mean.
_RULES = {
    "mean": (0.1, False, False, "Choe et al. 2024"),
    "lorif": (0.5, False, False, "the code of Li et al. 2026"),
    "lorif-paper": (0.1, True, False, "Li et al. 2026"),
    "lorif-tail": (
        0.5,
        False,
        True,
        "the code of Li et al. 2026, with the mean of the directions that are not kept added to theirs",
    ),
}


@dataclass(frozen=True)
class ResolvedDamping:
    """The damping that is used, and how it was chosen.

    Args:
        relative: Share of each unit's mean eigenvalue, over all directions.
        absolute: A value in units of the per-example loss's curvature; used when `relative` is None.
        scales: Factor on `absolute` by parameter name; 1 where missing.
        note: How it was chosen, for the report.
        label: The same in a few words, to tell tables apart.
        of_kept: Whether `relative` is a share of the mean over the directions that are kept instead of all.
        constant: Added to `absolute`, and not multiplied by `scales`.
        has_tail: Whether directions that a truncated curvature leaves out have their mean as eigenvalue instead of zero.
    """

    relative: float | None
    absolute: float | None
    note: str
    scales: Mapping[str, float] = field(default_factory=dict)
    label: str = ""
    of_kept: bool = False
    constant: float = 0.0
    has_tail: bool = False

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
            value = ((self.absolute or 0.0) * scale + self.constant) * gain
        # A unit whose gradient is zero everywhere has no curvature either; any positive number gives it the score zero.
        return value if value > 0 else 1e-30

    def least(self, mean_eigenvalues: Sequence[float], dtype: torch.dtype) -> float:
        """What is added to the eigenvalues of every unit at least: what rounding alone gives a unit.

        A gradient that is zero by construction, such as that of a key's bias, which softmax does not see, is zero up to rounding. A share of
        its own mean eigenvalue would blow that up to the size of the others.

        Args:
            mean_eigenvalues: Trace over dimensions of all units.
            dtype: Of the gradients.
        """
        return 0.0 if self.relative is None else max(mean_eigenvalues, default=0.0) * rounding_share(dtype)


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
    1 / (1 - momentum). A loss that was divided inside the mean scales back.

    An adaptive optimizer moves by P times the gradient, P = 1 / (sqrt(v) + eps), so its 1 / sum of learning rates has to be multiplied by
    1 / P, parameter by parameter (`choose_damping` does). Decoupled weight decay wd (AdamW) moves by P H + wd = P (H + wd / P), and is
    multiplied, too; as a part of the gradient (Adam) it moves by P (H + wd), and is not.

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
            do="correct the recipe, or leave it out and pass Damping(relative=...)",
        )
    return round((recipe.weight_decay + _stopped(recipe)) * recipe.loss_divisor, 15)


def _stopped(recipe: Recipe) -> float:
    """What stopping after a finite time amounts to, in the curvature of the loss that was minimised."""
    return (1 - recipe.momentum) / recipe.learning_rate_sum


def inverse_preconditioner(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """What a recipe needs of an Adam-like optimizer after its last step: the mean of sqrt(v) + eps of each parameter.

    Args:
        model: The trained model.
        optimizer: Its optimizer, with `exp_avg_sq` and `step` in its state.

    Returns:
        By parameter name; parameters without any state, which never had a gradient, are left out.

    Raises:
        Unsupported: If the state of one is another.
    """
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    by_unit = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            if state and not ("exp_avg_sq" in state and "step" in state):
                raise Unsupported(
                    found=f"a {type(optimizer).__name__} whose state is {', '.join(map(str, state))}",
                    needed="exp_avg_sq and step, as Adam and AdamW of torch.optim keep them",
                    do="leave the recipe's inverse_preconditioner out, and pass Damping(relative=...) or Damping(absolute=...)",
                )
            if state and id(parameter) in name_of:
                corrected = state["exp_avg_sq"].double() / (1 - group["betas"][1] ** float(state["step"]))
                by_unit[name_of[id(parameter)]] = float((corrected.sqrt() + group["eps"]).mean())
    return by_unit


def choose_damping(recipe: Recipe | None, requested: Damping, *, default: float) -> ResolvedDamping:
    """What the user asked for, else what the recipe implies, else the method's default.

    Args:
        recipe: The training run, if known.
        requested: What was asked for.
        default: The method's relative damping, taken without a recipe, and with one that lacks an adaptive optimizer's second moments.

    Returns:
        The choice, with a note that says where it comes from.
    """
    if (number := _number(requested)) is not None:
        return number
    if recipe is not None and (recipe_damping := _of_recipe(recipe)) is not None:
        return recipe_damping
    why = "no training recipe known" if recipe is None else f"the recipe says {recipe.optimizer} but not its second moments"
    note = f"damping {default:g} x mean eigenvalue, the method's default: {why}"
    return ResolvedDamping(default, None, note, label="default damping")


def stored_damping(recipe: Recipe | None, requested: Damping, *, default: float) -> ResolvedDamping:
    """Damping of a store's curvature: what the user asked for, else the method's share of the mean eigenvalue.

    The rules: "mean" .1 x the mean eigenvalue over all directions (Choe et al. 2024); "lorif" .5 x the same, trace / D (the code of Li et
    al. 2026); "lorif-paper" .1 x the mean over the directions that are kept, at most as many as there are rows; "lorif-tail" as "lorif", and
    directions that are not kept have their mean as eigenvalue instead of zero; "recipe" what the
    training run implies (`recipe_damping`). The recipe is for the Gauss-Newton matrix itself; on rows of a store it is measurably too
    strong or too weak (docs/log.md), so it is taken only when asked for.

    Args:
        recipe: The training run, if known.
        requested: What was asked for.
        default: The method's relative damping.

    Returns:
        The choice, with a note that says where it comes from.

    Raises:
        BadInput: If the rule needs a recipe and there is none.
    """
    if requested.rule is None:
        note = f"damping {default:g} x mean eigenvalue, the method's default"
        return _number(requested) or ResolvedDamping(default, None, note, label="default damping")
    if requested.rule == "recipe":
        recipe_damping = None if recipe is None else _of_recipe(recipe)
        if recipe_damping is None:
            raise BadInput(
                found="Damping(rule='recipe') without a known training run"
                if recipe is None
                else f"Damping(rule='recipe') for {recipe.optimizer} without its second moments",
                needed="a recipe that tells the damping",
                do="pass recipe=whence.Recipe(...) to the task, or name another rule",
            )
        return recipe_damping
    share, of_kept, has_tail, source = _RULES[requested.rule]
    base = "mean kept eigenvalue" if of_kept else "mean eigenvalue"
    label = f"{requested.rule} damping"
    return ResolvedDamping(
        share, None, f"damping {share:g} x {base} ({source})", label=label, of_kept=of_kept, has_tail=has_tail
    )


def _number(requested: Damping) -> ResolvedDamping | None:
    """The number that was asked for; None if none was."""
    if requested.relative is not None:
        label = f"damping {requested.relative:g} x mean"
        return ResolvedDamping(requested.relative, None, f"{label} eigenvalue, as asked", label=label)
    if requested.absolute is not None:
        label = f"damping {requested.absolute:g}"
        return ResolvedDamping(None, requested.absolute, f"{label}, as asked", label=label)
    return None


def _of_recipe(recipe: Recipe) -> ResolvedDamping | None:
    """What the training run implies; None for an adaptive optimizer whose second moments are not known."""
    rule = "from the training recipe (weight decay + 1 / sum of learning rates)"
    if recipe.optimizer.lower() == "sgd":
        value = recipe_damping(recipe)
        return ResolvedDamping(None, value, f"damping {value:.3g} {rule}", label="recipe damping")
    if recipe.inverse_preconditioner:
        recipe_damping(recipe)  # refuses impossible numbers
        stopped, decay = (value * recipe.loss_divisor for value in (_stopped(recipe), recipe.weight_decay))
        times = f"times each layer's mean sqrt(v) + eps of {recipe.optimizer}"
        if _is_decoupled(recipe):
            note = f"damping {rule}, {times}"
            return ResolvedDamping(None, stopped + decay, note, recipe.inverse_preconditioner, "recipe damping")
        note = f"damping from the training recipe: weight decay, a part of the gradient, + 1 / sum of learning rates, {times}"
        return ResolvedDamping(None, stopped, note, recipe.inverse_preconditioner, "recipe damping", constant=decay)
    return None


def _is_decoupled(recipe: Recipe) -> bool:
    """Whether weight decay bypasses what the optimizer divides gradients by.

    Raises:
        BadInput: If there is some and the optimizer's name does not say.
    """
    if recipe.decoupled_weight_decay is not None or not recipe.weight_decay:
        return bool(recipe.decoupled_weight_decay)
    name = recipe.optimizer.lower()
    if name not in _DECOUPLED and name not in _COUPLED:
        raise BadInput(
            found=f"a recipe of {recipe.optimizer} with weight_decay={recipe.weight_decay:g}",
            needed="whether weight decay is a part of the gradient, which is divided by sqrt(v), or decoupled from it",
            do="pass decoupled_weight_decay=False or True to whence.Recipe",
        )
    return name in _DECOUPLED
