"""A proxy that learns to answer as the target does, from the target's outputs alone.

Axes: M scored rows, C outputs per row.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from whence.capture import frozen
from whence.data import Dataset, Example
from whence.errors import BadInput, NonFinite
from whence.pipeline.inputs import as_dataset
from whence.progress import meter
from whence.settings import DistilConfig
from whence.tasks import AbstractTask, Outputs

__all__ = ["Distilled", "distil", "trained_by"]


@dataclass(frozen=True)
class Distilled:
    """What a distillation came to.

    Args:
        losses: Mean distance per scored position in nats, one per epoch, measured while training: the Kullback-Leibler divergence from the
            target, or with sampled answers their negative log-likelihood, which does not fall below the target's entropy.
        steps: Steps of the optimizer.
    """

    losses: tuple[float, ...]
    steps: int


def distil(
    target: AbstractTask,
    proxy: AbstractTask,
    inputs: Dataset | Iterable[Any],
    config: DistilConfig = DistilConfig(),
    *,
    seed: int = 0,
    quiet: bool = False,
) -> Distilled:
    """Train the proxy's model, in place, to give the target's outputs (Hinton et al. 2015, equation 2 at temperature 1).

    The labels of the inputs are not looked at. Every trainable weight of the proxy moves, in evaluation mode (no dropout); the target is left
    as it is. The same arguments give the same proxy on one machine and number of threads.

    Args:
        target: The model to imitate: logits over classes or tokens, or means.
        proxy: The model that learns.
        inputs: What both are shown, such as the target's training data.
        config: How long and how fast.
        seed: Of the order and of sampled answers.
        quiet: No progress on stderr.

    Returns:
        How near the proxy came.

    Raises:
        BadInput: If the two read inputs differently, answer with another number of outputs, or the proxy has nothing to train.
        NonFinite: If the distance stops being a number.
    """
    if target.preprocessing != proxy.preprocessing:
        raise BadInput(
            found="a proxy and a target with different tokenizers",
            needed="answers over the same tokens, position by position",
            do="give the proxy the target's tokenizer, or train it by other means on texts that the target wrote",
        )
    trained = {id(value) for value in proxy.model.parameters() if value.requires_grad}
    if trained & {id(value) for value in target.model.parameters()}:
        raise BadInput(
            found="a proxy that shares weights with its target",
            needed="weights that may be changed",
            do="give the proxy a model of its own, such as copy.deepcopy of the target's",
        )
    draws = torch.Generator().manual_seed(seed)

    def distance(examples: Sequence[Example]) -> tuple[Tensor, int]:
        return _distance(target, proxy, examples, config, draws)

    return trained_by(proxy, as_dataset(proxy, inputs), config, distance, seed=seed, quiet=quiet)


def trained_by(
    proxy: AbstractTask,
    dataset: Dataset,
    config: DistilConfig,
    distance: Callable[[Sequence[Example]], tuple[Tensor, int]],
    *,
    seed: int,
    quiet: bool,
) -> Distilled:
    """Train the proxy's model, in place, to make a distance small.

    Args:
        proxy: The model that learns.
        dataset: What it is shown.
        config: How long and how fast.
        distance: From examples to the distance, added up over scored positions, and the number of these.
        seed: Of the order.
        quiet: No progress on stderr.

    Returns:
        How small it became.

    Raises:
        BadInput: If the proxy has nothing to train.
        NonFinite: If the distance stops being a number.
    """
    trained = [parameter for parameter in proxy.model.parameters() if parameter.requires_grad]
    if not trained:
        raise BadInput(found="a proxy without trainable weights", needed="weights that may be changed", do="unfreeze the proxy")
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay)
    steps = config.epochs * -(-len(dataset) // config.batch_examples)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(10 * (step + 1) / steps, (steps - step) / steps / 0.9, 1.0)
    )
    order = np.random.default_rng(seed)
    modes, losses = [(module, module.training) for module in proxy.model.modules()], []
    proxy.model.eval()
    try:
        with meter("distilling", steps, quiet=quiet) as progress:
            for _ in range(config.epochs):
                total, count = 0.0, 0
                for batch in _cut(order.permutation(len(dataset)).tolist(), config.batch_examples):
                    value, rows = distance([dataset.examples[row] for row in batch])
                    if not bool(torch.isfinite(value)):
                        raise NonFinite(
                            found=f"a distance of {float(value.detach())} between proxy and target",
                            needed="a number",
                            do="lower the learning rate",
                        )
                    (value / rows).backward()
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                    schedule.step()
                    total, count = total + float(value.detach()), count + rows
                    progress.advance()
                losses.append(total / count)
    finally:
        for module, mode in modes:
            module.training = mode
    return Distilled(tuple(losses), steps)


def _distance(
    target: AbstractTask, proxy: AbstractTask, examples: Any, config: DistilConfig, draws: torch.Generator
) -> tuple[Tensor, int]:
    """Between the two models' answers, added up over scored positions, and the number of these.

    Raises:
        BadInput: If the answers are of different kinds.
    """
    with frozen(target.model), torch.no_grad():
        target_outputs = target.outputs(target.model, target.collate(examples))
    given = proxy.outputs(proxy.model, proxy.collate(examples))
    shapes = tuple(target_outputs.values_MC.shape), tuple(given.values_MC.shape)
    if shapes[0] != shapes[1] or target_outputs.likelihood != given.likelihood:
        raise BadInput(
            found=f"answers of shape {shapes[0]} ({target_outputs.likelihood}) of the target and {shapes[1]} "
            f"({given.likelihood}) of the proxy",
            needed="the same outputs at the same positions",
            do="give the proxy a head of the target's size",
        )
    if config.is_sampled:
        answers = target_outputs.sampled(draws).targets.to(given.values_MC.device)
        answered = Outputs(given.values_MC, given.owners_M, answers, given.likelihood)
        return answered.losses(len(examples)).sum(), len(given.values_MC)
    values_MC = target_outputs.values_MC.to(given.values_MC)
    if target_outputs.likelihood == "gaussian":
        return 0.5 * (given.values_MC - values_MC).square().sum(), len(values_MC)
    scores = [given.values_MC, values_MC]
    if given.likelihood == "bernoulli":  # yes or no: two classes each
        scores = [torch.stack([value, torch.zeros_like(value)], -1) for value in scores]
    given_MC, asked_MC = (value.log_softmax(-1) for value in scores)
    return nn.functional.kl_div(given_MC, asked_MC, reduction="sum", log_target=True), len(values_MC)


def _cut(order: list[int], size: int) -> list[list[int]]:
    return [order[start : start + size] for start in range(0, len(order), size)]
