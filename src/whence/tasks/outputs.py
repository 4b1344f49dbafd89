"""What a loss is a convex function of: the model's outputs, the likelihood they stand for, and that likelihood's curvature.

Axes: M scored rows (positions of all examples, or one per example), C outputs per row, B examples, G groups of S classes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from whence.errors import BadInput

__all__ = ["Likelihood", "Outputs", "drawn_classes", "numbers_by_row", "output_of"]

Likelihood = Literal["categorical", "gaussian", "bernoulli"]

# Probabilities summed up at a time: in float64 they would be the largest tensor of the whole pass.
_CHUNK_NUMBERS = 1 << 20


@dataclass(frozen=True)
class Outputs:
    """One batch's outputs; an example's loss is the sum of the negative log-likelihoods of its rows.

    The loss is minus log softmax(values)[target] for "categorical", half the squared distance to the target for "gaussian" (unit variance, up
    to a constant), and the sum of C yes-or-no cross-entropies for "bernoulli", whose values are log-odds. For all the Fisher information over
    targets drawn from the model equals the Gauss-Newton matrix. Neither depends on the targets, so soft ones have the same.

    Args:
        values_MC: Logits or means, attached to the graph.
        owners_M: Index in the batch of the example that each row belongs to.
        targets: Class numbers (M,), or real targets (M, C): means, shares of the classes, or from 0 to 1 for yes and no.
        likelihood: Which of the three.
        weights_M: What each row's loss is multiplied with, negative where the target is to be unlearned; None for 1. The Fisher information
            stays that of the model's own targets, each counted once: the metric of natural policy gradients (Kakade 2001, equation 2).
    """

    values_MC: Tensor
    owners_M: Tensor
    targets: Tensor
    likelihood: Likelihood
    weights_M: Tensor | None = None

    def losses(self, num_examples: int) -> Tensor:
        """Loss of each example, shape (B,); can be differentiated twice, unlike the task's own."""
        if self.likelihood == "categorical":
            rows_M = nn.functional.cross_entropy(self.values_MC, self.targets, reduction="none")
        elif self.likelihood == "bernoulli":
            rows_M = nn.functional.binary_cross_entropy_with_logits(self.values_MC, self.targets, reduction="none").sum(1)
        else:
            rows_M = 0.5 * (self.values_MC - self.targets).square().sum(1)
        rows_M = rows_M if self.weights_M is None else rows_M * self.weights_M
        return rows_M.new_zeros(num_examples).index_add(0, self.owners_M, rows_M)

    def residuals(self) -> Tensor:
        """Gradient of each row's loss by its values, shape (M, C), detached."""
        values_MC = self.values_MC.detach()
        if self.likelihood == "gaussian":
            found_MC = values_MC - self.targets
        elif self.likelihood == "bernoulli":
            found_MC = values_MC.sigmoid() - self.targets
        elif self.targets.is_floating_point():
            found_MC = values_MC.softmax(-1) - self.targets
        else:
            p_MC = values_MC.softmax(-1)
            found_MC = p_MC.scatter_add_(1, self.targets[:, None], p_MC.new_full((len(p_MC), 1), -1.0))
        return found_MC if self.weights_M is None else found_MC * self.weights_M[:, None]

    def sampled(self, generators: torch.Generator | Sequence[torch.Generator]) -> "Outputs":
        """The same with targets drawn from the model.

        Args:
            generators: On the CPU, so that a seed gives the same draws on every device; one for the whole batch, or one per example, so
                that an example's draws do not depend on its batch.
        """
        values_MC = self.values_MC.detach()
        if self.likelihood == "gaussian":
            noise_MC = numbers_by_row(torch.randn, generators, self.owners_M, values_MC.shape[1])
            return replace(self, targets=values_MC + noise_MC.to(values_MC), weights_M=None)
        if self.likelihood == "bernoulli":
            uniform_MC = numbers_by_row(torch.rand, generators, self.owners_M, values_MC.shape[1]).to(values_MC.device)
            return replace(self, targets=(uniform_MC < values_MC.sigmoid()).to(values_MC), weights_M=None)
        uniform_M1 = numbers_by_row(torch.rand, generators, self.owners_M, 1).to(values_MC.device)
        rows = max(1, _CHUNK_NUMBERS // values_MC.shape[1])
        chunks = zip(values_MC.split(rows), uniform_M1.split(rows), strict=True)
        drawn = [drawn_classes(values.softmax(-1), uniform) for values, uniform in chunks]
        # cat() of nothing is refused: a batch may have no scored row.
        return replace(self, targets=torch.cat(drawn) if drawn else self.targets, weights_M=None)

    def hessian_times(self, tangents_MC: Tensor) -> Tensor:
        """Hessian of each row's likelihood by its values, applied: p * u - p (p . u), u, or p (1 - p) * u; shape (M, C)."""
        if self.likelihood == "gaussian":
            return tangents_MC
        if self.likelihood == "bernoulli":
            p_MC = self.values_MC.detach().sigmoid()
            return p_MC * (1 - p_MC) * tangents_MC
        p_MC = self.values_MC.detach().softmax(-1)
        weighted_MC = p_MC * tangents_MC
        return weighted_MC.addcmul_(p_MC, weighted_MC.sum(-1, keepdim=True), value=-1)


def output_of(given: Any, name: str = "logits") -> Tensor:
    """The tensor in what a model gives: itself, an entry of a record or a mapping, or the only tensor in a tuple or mapping.

    Args:
        given: What the model gave.
        name: Of the entry.

    Raises:
        BadInput: If there is no such tensor, or its numbers are complex.
    """
    output = given[name] if isinstance(given, Mapping) and name in given else getattr(given, name, given)
    if not isinstance(output, Tensor):
        parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else ()
        tensors = [part for part in parts if isinstance(part, Tensor)]
        output = tensors[0] if len(tensors) == 1 else output
    if isinstance(output, Tensor) and not output.is_complex():
        return output
    if isinstance(output, Tensor):
        what, do = "complex numbers", "return a real function of them from the model's forward, such as their absolute values"
    else:
        keys = f" with {', '.join(map(repr, given))}" if isinstance(given, Mapping) else ""
        what = f"a {type(given).__name__}{keys}{f' of {len(given)}' if isinstance(given, tuple | list) else ''}"
        do = "wrap the model in a module whose forward returns the tensor alone, or use whence.Custom, whose loss calls the model itself"
    raise BadInput(found=f"a model that returns {what}", needed=f"a tensor of real numbers, alone or as {name!r}", do=do)


def numbers_by_row(
    draw: Callable[..., Tensor], generators: torch.Generator | Sequence[torch.Generator], owners_M: Tensor, width: int
) -> Tensor:
    """Random numbers for every row.

    Args:
        draw: `torch.rand` or `torch.randn`.
        generators: One for the whole batch, or one per example.
        owners_M: The example that each row belongs to.
        width: Numbers per row.

    Returns:
        Shape (M, width), float64, on the CPU.
    """
    if isinstance(generators, torch.Generator):
        return draw(len(owners_M), width, generator=generators, dtype=torch.float64)
    counts = torch.bincount(owners_M, minlength=len(generators)).tolist()
    parts = [draw(n, width, generator=generator, dtype=torch.float64) for n, generator in zip(counts, generators, strict=True)]
    numbers = torch.empty(len(owners_M), width, dtype=torch.float64)
    numbers[owners_M.cpu().argsort(stable=True)] = torch.cat(parts)
    return numbers


def drawn_classes(p_MC: Tensor, uniform_M1: Tensor) -> Tensor:
    """A class for every row by inverting its distribution function, with one number per row however many classes there are.

    In two steps, since adding up one class after the other is slow: first among groups of classes, then inside the group.

    Args:
        p_MC: Probabilities; they need not add up to exactly one.
        uniform_M1: From [0, 1), float64.

    Returns:
        Shape (M,).

    >>> drawn_classes(torch.tensor([[0.2, 0.3, 0.5]]).expand(3, 3), torch.tensor([[0.1], [0.4], [0.9]]).double())
    tensor([0, 1, 2])
    """
    classes = p_MC.shape[1]
    size = math.isqrt(classes)
    groups_MGS = nn.functional.pad(p_MC, (0, -classes % size)).unflatten(1, (-1, size))
    mass_MG = groups_MGS.sum(2, dtype=torch.float64)
    upto_MG = mass_MG.cumsum(1)
    level_M1 = uniform_M1 * upto_MG[:, -1:]
    group_M1 = torch.searchsorted(upto_MG, level_M1).clamp_max(upto_MG.shape[1] - 1)
    before_M1 = (upto_MG - mass_MG).gather(1, group_M1)
    inside_MS = groups_MGS[torch.arange(len(p_MC), device=p_MC.device), group_M1[:, 0]].cumsum(1, dtype=torch.float64)
    place_M1 = torch.searchsorted(inside_MS, level_M1 - before_M1).clamp_max(size - 1)
    return (group_M1 * size + place_M1)[:, 0].clamp_max(classes - 1)
