"""What a model returns, as the one tensor that a task takes for its logits or predictions."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from whence.errors import BadInput
from whence.tasks.base import Batch

__all__ = ["logits_of", "model_outputs"]


def model_outputs(model: nn.Module, batch: Batch) -> Tensor:
    """What the model gives for a batch, see `logits_of`, in float32 or wider.

    Raises:
        BadInput: If the model takes one text at a time, for want of a padding token.
        ValueError: Like every other error, whatever else the model raises.
    """
    inputs = batch["inputs"]
    try:
        found = model(inputs["inputs"]) if set(inputs) == {"inputs"} else model(**inputs)
    except ValueError as error:
        if "padding token" not in str(error):
            raise error
        raise BadInput(
            found="a model that takes one text at a time, since its configuration names no padding token",
            needed="pad_token_id in it, by which it finds the end of a text",
            do="set model.config.pad_token_id, such as to tokenizer.pad_token_id",
        ) from error
    logits = logits_of(found, model)
    return logits if logits.dtype == torch.float64 else logits.float()


def logits_of(found: Any, model: nn.Module) -> Tensor:
    """The logits or predictions in what a model returned.

    Args:
        found: A tensor; a record or mapping with `logits`; or a mapping, tuple or list with a single tensor. Of a tuple of several, the first
            where the model is one of Hugging Face, which return logits first.
        model: What returned it.

    Returns:
        They, as they are.

    Raises:
        BadInput: If it cannot be told which tensor is meant, or the numbers are not real.
    """
    logits = _the_tensor(found, model)
    if logits is None:
        raise BadInput(
            found=f"a model that returns {_told(found)}",
            needed="a tensor of logits or predictions, or a record with .logits",
            do="return that alone from the model's forward, or use whence.Custom with a loss that picks it",
        )
    if not logits.is_floating_point():
        raise BadInput(
            found=f"a model that returns numbers of type {str(logits.dtype).removeprefix('torch.')}",
            needed="real ones",
            do="use whence.Custom with a loss of these outputs",
        )
    return logits


def _the_tensor(found: Any, model: nn.Module) -> Tensor | None:
    if isinstance(found, Tensor):
        return found
    named = found.get("logits") if isinstance(found, Mapping) else getattr(found, "logits", None)
    if isinstance(named, Tensor):
        return named
    parts = list(found.values()) if isinstance(found, Mapping) else list(found) if isinstance(found, tuple | list) else []
    tensors = [part for part in parts if isinstance(part, Tensor)]
    if len(tensors) == 1:
        return tensors[0]
    is_plain_tuple = isinstance(found, tuple) and hasattr(getattr(model, "config", None), "return_dict")
    return tensors[0] if tensors and is_plain_tuple else None


def _told(found: Any) -> str:
    if isinstance(found, Mapping):
        return f"a mapping with {', '.join(map(str, found)) or 'nothing in it'}"
    if isinstance(found, tuple | list):
        shapes = [str(tuple(part.shape)) if isinstance(part, torch.Tensor) else type(part).__name__ for part in found]
        return f"{len(found)} things ({', '.join(shapes[:4])})"
    return f"a {type(found).__name__}"
