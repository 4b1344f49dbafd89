"""Likeness of what the model makes of two inputs, just before its last layer.

Axes: B batch, T positions, H width of the representation, N training examples, Q queries, M of both.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from whence.capture import frozen, in_halves
from whence.data import Dataset, Example, batches
from whence.errors import Unsupported
from whence.progress import Meter, meter
from whence.records import ScoreTable
from whence.tasks import AbstractTask, Batch, fitting_mask

__all__ = ["representation_similarity", "representations"]


def representation_similarity(
    task: AbstractTask, train: Dataset, queries: Dataset, *, max_positions: int = 4096, quiet: bool = False
) -> ScoreTable:
    """Cosine of mean last hidden states, one of the measures that Hanawa et al. 2021 (arXiv 2006.04528) compare.

    The last hidden state is what enters the last layer that multiplies with a weight matrix: Linear, Hugging Face Conv1D or a
    convolution, whichever is called last when the loss is computed, tracked or not. In a language model that is the input of its head,
    in a classifier that of the output layer. It is averaged over real positions (`task.positions`, where those are the layer's own; else
    over all of them, and over the plane of a convolution). Neither labels nor gradients are used.

    Args:
        task: Model and loss; only the forward pass is run.
        train: The training examples.
        queries: The queries.
        max_positions: Positions per batch.
        quiet: No progress on stderr.

    Returns:
        Cosines from -1 to 1; 0 for a representation that is zero.

    Raises:
        Unsupported: If no such layer is called, not always the same one is last, or it does not keep the examples apart.
    """
    examples = [*train.examples, *queries.examples]
    with meter("representations", len(examples), quiet=quiet) as progress:
        layer, states_MH = representations(task, examples, max_positions, progress)
    units_NH, units_QH = nn.functional.normalize(states_MH, dim=1).split([len(train), len(queries)])
    query_ids, train_ids = queries.ids, train.ids
    method = f"representation similarity (input of {layer})"
    return ScoreTable(units_QH @ units_NH.T, query_ids, train_ids, "cosine", method)


def representations(task: AbstractTask, examples: Sequence[Example], max_positions: int, progress: Meter) -> tuple[str, Tensor]:
    """Name of the layer, and the pooled states in the order of the examples, shape (M, H).

    Args:
        task: Model and loss; only the forward pass is run.
        examples: The examples.
        max_positions: Positions per batch.
        progress: Advanced by examples.

    Returns:
        Both.

    Raises:
        Unsupported: If there is no one last layer.
    """
    layers: list[str] = []
    order: list[int] = []
    parts: list[Tensor] = []

    def run(items: Sequence[int]) -> Tensor:
        batch = task.collate([examples[item] for item in items])
        with frozen(task.model), torch.no_grad(), _last_input(task.model) as last:
            task.loss(task.model, batch)
        if not last:
            raise Unsupported(
                found="a loss that calls no Linear, Conv1D or convolution layer",
                needed="one, whose input stands for the example",
                do="compare with another baseline",
            )
        name, module, inputs = last
        layers.append(name)
        return _pooled(name, module, inputs, task, batch, len(items)).cpu()

    for items in batches([example.length for example in examples], max_positions=max_positions):
        parts.extend(in_halves(items, run, task.model))
        order.extend(items)
        progress.advance(len(items))
    if len(set(layers)) > 1:
        raise Unsupported(
            found=f"a model whose last layer is {sorted(set(layers))[0]!r} on some examples and {sorted(set(layers))[1]!r} on others",
            needed="the same last layer for all, or the representations cannot be compared",
            do="compare with another baseline",
        )
    return layers[0], torch.cat(parts)[torch.tensor(order).argsort()]


@contextmanager
def _last_input(model: nn.Module) -> Iterator[list[Any]]:
    """What a forward pass calls last.

    Yields:
        A list that will hold name, module and input of the matrix layer called last; empty if there is none.
    """
    last: list[Any] = []

    def hook_of(name: str):
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            last[:] = name, module, args[0] if args else next(iter(kwargs.values()))

        return hook

    handles = [
        module.register_forward_pre_hook(hook_of(name), with_kwargs=True)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) or type(module).__name__ == "Conv1D"
    ]
    try:
        yield last
    finally:
        for handle in handles:
            handle.remove()


def _pooled(name: str, module: nn.Module, inputs: Tensor, task: AbstractTask, batch: Batch, count: int) -> Tensor:
    """Mean over positions, shape (B, H), in double precision.

    Raises:
        Unsupported: If the leading axis does not divide into the examples.
    """
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        inputs = inputs.flatten(2).transpose(1, 2)
    rows = inputs.shape[0]
    if rows % count:
        raise Unsupported(
            found=f"layer {name!r} with {rows} leading entries for a batch of {count} examples",
            needed="the same number of entries for every example",
            do="compare with another baseline",
        )
    # A model that folds (B, T) into one axis keeps the positions of an example together.
    hidden_BTH = inputs.reshape(count, -1, inputs.shape[-1]).double()
    mask_BT = fitting_mask(task.positions(batch), hidden_BTH.shape[0] * hidden_BTH.shape[1])
    if mask_BT is None or mask_BT.shape != hidden_BTH.shape[:2]:
        return hidden_BTH.mean(1)
    weights_BT = mask_BT.to(hidden_BTH)
    return torch.einsum("bth,bt->bh", hidden_BTH, weights_BT / weights_BT.sum(1, keepdim=True))
