"""A step of a whole run's optimizer, as a function that can be differentiated: every parameter by its rule, clipping of the norm included."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from whence.errors import Unsupported
from whence.optimizers import NAMES, Rule
from whence.unroll.states import RuledGroup, kind_of

__all__ = ["Update", "Values", "update_of"]

Values = dict[str, dict[str, Tensor]]
"""By kind and name of the parameter: its value as "weights", what the optimizer keeps of it by the optimizer's own keys."""


@dataclass(frozen=True)
class Update:
    """One step of the optimizer.

    Args:
        groups: By parameter, the settings of its group and its rule, with the learning rate as "lr".
        factor: What the gradients were multiplied with, by clipping.
        limit: What clipping cut their norm to; None where the factor is to be taken as a constant.
    """

    groups: Mapping[str, RuledGroup]
    factor: float
    limit: float | None = None

    def rule(self, name: str) -> Rule:
        """What a parameter follows."""
        return self.groups[name]["rule"]

    def __call__(self, values: Values, gradients: Mapping[str, Tensor], counts: Mapping[str, int]) -> Values:
        """Weights and state after the step.

        Args:
            values: Before it.
            gradients: Of the loss; a parameter without one is left alone, as torch does.
            counts: By parameter, how many steps its state has seen.
        """
        factor = self._factor(gradients)
        stepped: Values = {kind: dict(rows) for kind, rows in values.items()}
        for name, gradient in gradients.items():
            before = {kind: rows[name] for kind, rows in values.items() if name in rows}
            after = self.rule(name).step(before, gradient * factor, self.groups[name], counts.get(name, 0))
            for kind in before:
                stepped[kind][name] = after.get(kind, before[kind])
        return stepped

    def _factor(self, gradients: Mapping[str, Tensor]) -> Tensor | float:
        if self.limit is None:
            return self.factor
        norm = torch.stack([gradient.square().sum() for gradient in gradients.values()]).sum().sqrt()
        return (self.limit / (norm + 1e-6)).clamp_max(1.0)  # as torch.nn.utils.clip_grad_norm_


def update_of(
    settings: Mapping[str, Any], groups: Sequence[RuledGroup], rates: Sequence[float], factor: float, limit: float | None = None
) -> Update:
    """The step that a run recorded.

    Args:
        settings: The optimizer's, as the run wrote them down.
        groups: The same by group, with their rules.
        rates: Learning rate of every group.
        factor: By clipping.
        limit: See `Update`.

    Returns:
        The step.

    Raises:
        Unsupported: If the step of a rule cannot be differentiated here.
    """
    for group in groups:
        if not group["rule"].is_differentiable:
            raise Unsupported(
                found=f"a run with {kind_of(settings, group)}, whose steps depend on earlier ones through bases that were rotated",
                needed=f"steps whose derivative is known: {NAMES.replace(', SOAP', '')}",
                do="choose method='source', or another such as ekfac",
            )
    by_name = {name: {**group, "lr": rate} for group, rate in zip(groups, rates, strict=True) for name in group["parameters"]}
    return Update(by_name, factor, limit)
