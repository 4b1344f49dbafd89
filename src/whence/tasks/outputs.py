"""What a loss is a convex function of: the model's outputs, the likelihood they stand for, and that likelihood's curvature.

Axes: M scored rows (positions of all examples, or one per example), C outputs per row, B examples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

__all__ = ["Likelihood", "Outputs"]

Likelihood = Literal["categorical", "gaussian"]

# Probabilities summed up at a time: in float64 they would be the largest tensor of the whole pass.
_CHUNK_NUMBERS = 1 << 20


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

    def sampled(self, generators: torch.Generator | Sequence[torch.Generator]) -> "Outputs":
        """The same with targets drawn from the model.

        Args:
            generators: On the CPU, so that a seed gives the same draws on every device; one for the whole batch, or one per example, so
                that an example's draws do not depend on its batch.
        """
        values_MC = self.values_MC.detach()
        if self.likelihood == "gaussian":
            noise_MC = self._drawn(torch.randn, generators, values_MC.shape[1])
            return replace(self, targets=values_MC + noise_MC.to(values_MC))
        # By inverting the distribution function: one uniform number a row, whatever the number of classes.
        uniform_M1 = self._drawn(torch.rand, generators, 1).to(values_MC.device)
        rows = max(1, _CHUNK_NUMBERS // values_MC.shape[1])
        drawn = []
        for values, uniform in zip(values_MC.split(rows), uniform_M1.split(rows), strict=True):
            below = values.softmax(-1).cumsum(-1, dtype=torch.float64)
            drawn.append(torch.searchsorted(below, uniform * below[:, -1:])[:, 0])
        # cat() of nothing is refused: a batch may have no scored row.
        drawn_M = torch.cat(drawn) if drawn else self.targets
        return replace(self, targets=drawn_M.clamp_max(values_MC.shape[1] - 1))

    def _drawn(
        self, draw: Callable[..., Tensor], generators: torch.Generator | Sequence[torch.Generator], width: int
    ) -> Tensor:
        if isinstance(generators, torch.Generator):
            return draw(len(self.owners_M), width, generator=generators, dtype=torch.float64)
        counts = torch.bincount(self.owners_M, minlength=len(generators)).tolist()
        parts = [draw(n, width, generator=one, dtype=torch.float64) for n, one in zip(counts, generators, strict=True)]
        found = torch.empty(len(self.owners_M), width, dtype=torch.float64)
        found[self.owners_M.cpu().argsort(stable=True)] = torch.cat(parts)
        return found

    def hessian_times(self, tangents_MC: Tensor) -> Tensor:
        """Hessian of each row's loss by its values, applied: p * u - p (p . u), or u; shape (M, C)."""
        if self.likelihood == "gaussian":
            return tangents_MC
        p_MC = self.values_MC.detach().softmax(-1)
        weighted_MC = p_MC * tangents_MC
        return weighted_MC.addcmul_(p_MC, weighted_MC.sum(-1, keepdim=True), value=-1)
