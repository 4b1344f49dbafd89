"""Damping: how much is added to every eigenvalue, chosen at query time and told aloud."""

from dataclasses import dataclass

from whence.errors import BadInput
from whence.records import Recipe

__all__ = ["Damping", "choose_damping", "recipe_damping"]


@dataclass(frozen=True)
class Damping:
    """How damping is set.

    Args:
        relative: Share of each unit's mean eigenvalue, over all directions.
        absolute: A value in units of the per-example loss's curvature, the same for all units; used when `relative` is None.
        note: How it was chosen, for the report.
    """

    relative: float | None
    absolute: float | None
    note: str

    def of_unit(self, mean_eigenvalue: float, gain: float) -> float:
        """The value added to a unit's eigenvalues.

        Args:
            mean_eigenvalue: Trace over dimensions.
            gain: Mean diagonal of P^T P of the unit's projection.
        """
        value = self.relative * mean_eigenvalue if self.relative is not None else (self.absolute or 0.0) * gain
        # A unit whose gradient is zero everywhere has no curvature either; any positive number gives it the score zero.
        return value if value > 0 else 1e-30


def recipe_damping(recipe: Recipe) -> float | None:
    """Damping from the training run: lambda = weight decay + 1 / sum of learning rates, in units of the per-example loss.

    Training for a finite time leaves directions of curvature below 1 / (sum of learning rates) undecided; adding that value to the
    curvature is what stopping early amounts to (Bae et al. 2024, section 3.2). Heavy-ball momentum multiplies the learning rate by
    1 / (1 - momentum). An adaptive optimizer moves by P times the gradient, so both terms (weight decay decoupled) are multiplied by the
    mean of 1 / P = sqrt(v) + eps. A loss that was divided inside the mean scales back.

    Args:
        recipe: The training run.

    Returns:
        The value, or None for an adaptive optimizer whose second moments are not known.

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
    inverse = 1.0 if recipe.optimizer.lower() == "sgd" else recipe.inverse_preconditioner
    if inverse is None:
        return None
    stopped = (1 - recipe.momentum) / recipe.learning_rate_sum
    return round((recipe.weight_decay + stopped) * inverse * recipe.loss_divisor, 15)


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
        return Damping(relative_damping, None, f"damping {relative_damping:g} x mean eigenvalue, as asked")
    if absolute_damping is not None:
        return Damping(None, absolute_damping, f"damping {absolute_damping:g}, as asked")
    if recipe is not None:
        value = recipe_damping(recipe)
        if value is not None:
            return Damping(
                None, value, f"damping {value:.3g} from the training recipe (weight decay + 1 / sum of learning rates)"
            )
        why = f"the recipe says {recipe.optimizer} but not its second moments"
    else:
        why = "no training recipe known"
    return Damping(default, None, f"damping {default:g} x mean eigenvalue, the method's default: {why}")
