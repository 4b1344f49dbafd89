"""What a loss is a convex function of: the model's outputs, the likelihood they stand for, and that likelihood's curvature.

Axes: M scored rows (positions of all examples, or one per example), C outputs per row, B examples.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

__all__ = ["Likelihood", "Outputs"]

Likelihood = Literal["categorical", "gaussian"]


@dataclass(frozen=True)
class Outputs:
    """One batch's outputs; an example's loss is the sum of the negative log-likelihoods of its rows.

    The loss is minus log softmax(values)[target] for "categorical", half the squared distance to the target for "gaussian" (unit variance, up
    to a constant). For both the Fisher information over targets drawn from the model equals the Gauss-Newton matrix.

    Args:
        values_MC: Logits or means, attached to the graph.
        owners_M: Index in the batch of the example that each row belongs to.
        targets: Class numbers (M,), or real targets (M, C).
        likelihood: Which of the two.
    """

    values_MC: Tensor
    owners_M: Tensor
    targets: Tensor
    likelihood: Likelihood

    def losses(self, num_examples: int) -> Tensor:
        """Loss of each example, shape (B,); can be differentiated twice, unlike the task's own."""
        if self.likelihood == "categorical":
            rows_M = nn.functional.cross_entropy(self.values_MC, self.targets, reduction="none")
        else:
            rows_M = 0.5 * (self.values_MC - self.targets).square().sum(1)
        return rows_M.new_zeros(num_examples).index_add(0, self.owners_M, rows_M)

    def residuals(self) -> Tensor:
        """Gradient of each row's loss by its values, shape (M, C), detached."""
        values_MC = self.values_MC.detach()
        if self.likelihood == "gaussian":
            return values_MC - self.targets
        p_MC = values_MC.softmax(-1)
        return p_MC.scatter_add(1, self.targets[:, None], p_MC.new_full((len(p_MC), 1), -1.0))

    def sampled(self, generator: torch.Generator) -> "Outputs":
        """The same with targets drawn from the model.

        Args:
            generator: On the CPU, so that a seed gives the same draws on every device.
        """
        values_MC = self.values_MC.detach()
        if self.likelihood == "gaussian":
            noise = torch.randn(values_MC.shape, generator=generator, dtype=torch.float64)
            return replace(self, targets=values_MC + noise.to(values_MC))
        # By inverting the distribution function: one uniform number a row, whatever the number of classes.
        uniform_M1 = torch.rand(len(values_MC), 1, generator=generator, dtype=torch.float64).to(values_MC.device)
        below_MC = values_MC.double().softmax(-1).cumsum(-1)
        drawn_M = torch.searchsorted(below_MC, uniform_M1 * below_MC[:, -1:])[:, 0]
        return replace(self, targets=drawn_M.clamp_max(values_MC.shape[1] - 1))

    def hessian_times(self, tangents_MC: Tensor) -> Tensor:
        """Hessian of each row's loss by its values, applied: p * u - p (p . u), or u; shape (M, C)."""
        if self.likelihood == "gaussian":
            return tangents_MC
        p_MC = self.values_MC.detach().softmax(-1)
        weighted_MC = p_MC * tangents_MC
        return weighted_MC.addcmul_(p_MC, weighted_MC.sum(-1, keepdim=True), value=-1)
