"""What a model gives for a batch of inputs by keyword."""

import torch
from torch import Tensor, nn

from whence.errors import BadInput
from whence.tasks.base import Batch
from whence.tasks.outputs import output_of

__all__ = ["model_outputs"]


def model_outputs(model: nn.Module, batch: Batch) -> Tensor:
    """What the model gives for a batch, see `output_of`, in float32 or wider.

    Raises:
        BadInput: If the model takes one text at a time, for want of a padding token.
        ValueError: Like every other error, whatever else the model raises.
    """
    inputs = batch["inputs"]
    try:
        outputs = model(inputs["inputs"]) if set(inputs) == {"inputs"} else model(**inputs)
    except ValueError as error:
        if "padding token" not in str(error):
            raise error
        raise BadInput(
            found="a model that takes one text at a time, since its configuration names no padding token",
            needed="pad_token_id in it, by which it finds the end of a text",
            do="set model.config.pad_token_id, such as to tokenizer.pad_token_id",
        ) from error
    logits = output_of(outputs)
    return logits if logits.dtype == torch.float64 else logits.float()
