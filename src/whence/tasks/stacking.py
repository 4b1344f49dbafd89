"""Examples with one target each as batches: inputs stacked by name, and filled up on the right where a mask goes with them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from whence.data import Example
from whence.errors import BadInput
from whence.sharded_weights import main_device
from whence.tasks.base import Batch, precision
from whence.tasks.images import Preprocess, image_inputs
from whence.tasks.token_inputs import padding_token

__all__ = ["stacked"]


def stacked(examples: Sequence[Example], model: nn.Module, preprocess: Preprocess | None, tokenizer: Any = None) -> Batch:
    """Inputs by keyword and targets, on the model's device and in its precision.

    Where lengths differ and a mask goes with them, rows are filled up on the right: token ids with the model's padding token, all else with
    zeros.

    Args:
        examples: The examples.
        model: The model.
        preprocess: For images in files.
        tokenizer: What else may say how to fill up.

    Raises:
        BadInput: If the examples do not go into one batch.
    """
    dtype, device = precision(model), main_device(model)
    rows = [image_inputs(example, preprocess) if example.image else example.fields for example in examples]
    names = [name for name in rows[0] if name != "target"]
    for example, row in zip(examples, rows, strict=True):
        if set(row) - {"target"} != set(names):
            raise BadInput(
                found=f"inputs {_listed(row)} of the example {example.id!r} beside {_listed(names)} of {examples[0].id!r}",
                needed="the same inputs for every example",
                do="give all of them, or leave them out of all",
            )
    masks = [name for name in names if name.endswith("attention_mask")]
    inputs = {}
    for name in names:
        arrays = [torch.as_tensor(row[name]) for row in rows]
        if len({tuple(array.shape) for array in arrays}) > 1:
            _check_masked(name, examples, rows, masks)
            inputs[name] = nn.utils.rnn.pad_sequence(arrays, batch_first=True, padding_value=_filler(name, model, tokenizer))
        else:
            inputs[name] = torch.stack(arrays)
    # Real inputs take the model's precision: NumPy's default is float64.
    inputs = {
        name: value.to(device, dtype) if value.is_floating_point() else value.to(device) for name, value in inputs.items()
    }
    return {"inputs": inputs, "target": _targets(examples).to(device)}


def _check_masked(name: str, examples: Sequence[Example], rows: Sequence[Mapping[str, Any]], masks: Sequence[str]) -> None:
    """Refuse to fill up what no mask tells apart from what was given.

    Raises:
        BadInput: If none does.
    """
    shapes = [tuple(np.shape(row[name])) for row in rows]
    fits = any(
        all(len(shape) > 0 and np.shape(row[mask]) == shape[:1] for row, shape in zip(rows, shapes, strict=True))
        for mask in masks
    )
    if fits and len({shape[1:] for shape in shapes}) == 1:
        return
    other = next(index for index, shape in enumerate(shapes) if shape != shapes[0])
    raise BadInput(
        found=f"inputs {name!r} of different shapes ({shapes[0]}, {shapes[other]}) and no attention_mask of these lengths, "
        f"in the examples {examples[0].id!r} and {examples[other].id!r}",
        needed="equal shapes, or a mask that the model heeds: padding would change what it computes",
        do="pad them yourself, resize images in preprocess, or use whence.Custom with a collate function",
    )


def _filler(name: str, model: nn.Module, tokenizer: Any) -> int:
    """What fills up the rows of an input.

    Raises:
        BadInput: If they are tokens, and there is none for it.
    """
    if name == "token_type_ids":
        return int(getattr(tokenizer, "pad_token_type_id", 0) or 0)
    if not name.endswith("input_ids"):
        return 0
    token = padding_token(model, tokenizer)
    if token is None:
        raise BadInput(
            found="texts of different lengths for a model and a tokenizer without a padding token",
            needed="pad_token_id in the model's configuration, or the tokenizer's, among the tokens that the model knows",
            do="set model.config.pad_token_id to the token that the model was trained with",
        )
    return token


def _targets(examples: Sequence[Example]) -> Tensor:
    targets = [torch.as_tensor(example.fields["target"]) for example in examples]
    other = next((index for index, target in enumerate(targets) if target.shape != targets[0].shape), None)
    if other is not None:
        raise BadInput(
            found=f"targets of different shapes ({tuple(targets[0].shape)} of the example {examples[0].id!r} and "
            f"{tuple(targets[other].shape)} of {examples[other].id!r})",
            needed="as many targets for every example",
            do="fill them up, or use whence.Custom with a loss of one's own",
        )
    return torch.stack(targets)


def _listed(names: Any) -> str:
    return ", ".join(sorted(name for name in names if name != "target"))
