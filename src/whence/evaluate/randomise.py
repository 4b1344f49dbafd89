"""Scores of a model whose weights are shuffled: what does not change with the weights was not learnt from them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from whence.capture import put_back
from whence.errors import BadInput, Unsupported
from whence.evaluate.agreement import Agreement, agreement
from whence.records import ScoreTable
from whence.tasks import AbstractTask

__all__ = ["Randomised", "randomisation", "shuffled", "weight_layers"]


@dataclass(frozen=True)
class Randomised:
    """How much of a table is left with the weights of some layers shuffled.

    Args:
        layers: Names of the modules whose weights were shuffled.
        num_layers: Modules with weights in all.
        agreement: Of the scores with those of the true model: rank correlation and shared ends.
    """

    layers: tuple[str, ...]
    num_layers: int
    agreement: Agreement

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        values = {"correlation": self.agreement.spearman, "top": self.agreement.top, "bottom": self.agreement.bottom}
        return {"layers": list(self.layers), "num_layers": self.num_layers, "k": self.agreement.k} | {
            name: interval.to_dict() for name, interval in values.items()
        }


def randomisation(
    task: AbstractTask,
    score: Callable[[AbstractTask], ScoreTable],
    *,
    table: ScoreTable | None = None,
    stages: int = 1,
    k: int = 10,
    seed: int = 0,
) -> list[Randomised]:
    """Hold a method's scores against its scores for the same model with random weights (Adebayo et al. 2018; Hanawa et al. 2021, section 3).

    The entries of every weight are shuffled, each weight for itself, so that a network keeps the scale of all its layers and only what was
    learnt is gone; what is constant, such as the weights of an untrained norm, stays. Buffers stay, too. With several stages it is a cascade:
    first the layers nearest to the output, then more of them, all in the last. The order of layers is that in which the model registers them.

    Args:
        task: The model, which is as it was afterwards.
        score: From the task to a table; called once more per stage, with other weights in the same model. It must not read what was kept of
            an earlier call, such as a folder of factors.
        table: The true model's table, made by `score` if left out.
        stages: Into how many steps the layers are cut; 1 shuffles all of them at once.
        k: Length of the compared ends.
        seed: Of the shuffles.

    Returns:
        A result for each stage. A rank correlation near 0, and a shared end near k / N, say that scores depend on what was learnt.

    Raises:
        BadInput: If there are fewer layers than stages.
        Unsupported: If weights are spread over devices or processes, or quantised.
    """
    names = [name for name, _ in weight_layers(task.model)]
    if not 1 <= stages <= len(names):
        raise BadInput(
            found=f"{stages} stages for a model of {len(names)} layers with weights",
            needed="1 to their number",
            do="choose fewer",
        )
    table = score(task) if table is None else table
    results = []
    for stage in range(1, stages + 1):
        layers = tuple(names[len(names) - stage * len(names) // stages :])
        with shuffled(task.model, layers, seed=seed):
            other = score(task)
        results.append(Randomised(layers, len(names), agreement(table, replace(other, method="shuffled"), k=k)))
    return results


def weight_layers(model: nn.Module) -> list[tuple[str, list[nn.Parameter]]]:
    """Modules that have weights of their own, in the order in which the model registers them; a shared weight is the first one's.

    >>> [name for name, _ in weight_layers(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)))]
    ['0', '2']
    """
    seen: set[int] = set()
    layers = []
    for name, module in model.named_modules():
        own = [weight for weight in module.parameters(recurse=False) if id(weight) not in seen]
        seen |= {id(weight) for weight in own}
        if own:
            layers.append((name, own))
    return layers


@contextmanager
def shuffled(model: nn.Module, layers: tuple[str, ...], *, seed: int = 0) -> Iterator[None]:
    """Shuffle the entries of each weight of some layers for a while.

    A weight's shuffle depends on the seed and on its place in the model only, so that the stages of a cascade shuffle alike.

    Args:
        model: Any model whose weights are where they are used.
        layers: Names, as `weight_layers` gives them.
        seed: Of the shuffles.

    Yields:
        Nothing.

    Raises:
        Unsupported: If weights are spread over devices or processes, or quantised.
    """
    weights = [(name, weight) for name, own in weight_layers(model) for weight in own]
    chosen = [(number, weight) for number, (name, weight) in enumerate(weights) if name in layers]
    if not all(weight.is_floating_point() and not hasattr(weight, "__tensor_flatten__") for _, weight in chosen):
        raise Unsupported(
            found="quantised weights to be shuffled",
            needed="weights that are numbers",
            do="load the model without quantisation",
        )
    with put_back(model, [weight for _, weight in chosen]):
        with torch.no_grad():
            for number, weight in chosen:
                generator = torch.Generator().manual_seed(len(weights) * seed + number)
                order = torch.randperm(weight.numel(), generator=generator).to(weight.device)
                weight.copy_(weight.flatten()[order].view(weight.shape))
        yield
