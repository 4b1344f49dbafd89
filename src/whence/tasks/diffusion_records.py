"""Records and batches of diffusion: images, and what a network is told of them.

Axes: B examples.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from whence.data import Example
from whence.errors import BadInput
from whence.tasks.base import Batch
from whence.tasks.fields import array_field, as_numbers, class_number, record_id, record_source

__all__ = ["CONDITIONING", "check_alike", "image_example", "stacked_field", "conditioning_of"]

CONDITIONING = ("label", "condition")
"""What a network may be told of an image, in the order in which it takes them."""


def conditioning_of(batch: Batch) -> dict[str, Tensor]:
    """What the network is told of each image besides its time."""
    return {name: batch[name] for name in CONDITIONING if name in batch}


def check_alike(examples: Sequence[Example]) -> None:
    """Refuse examples that make no batch.

    Raises:
        BadInput: If images or conditions differ in shape, or only some have a label or a condition.
    """
    for name in CONDITIONING:
        count = sum(name in example.fields for example in examples)
        if 0 < count < len(examples):
            raise BadInput(
                found=f"{name}s on some images",
                needed=f"images of one shape, and {name}s on all or none",
                do=f"add them, or leave the {name}s out",
            )
    for name in ("image", "condition"):
        shapes = {example.fields[name].shape for example in examples if name in example.fields}
        if len(shapes) > 1:
            raise BadInput(
                found=f"{name}s of the shapes {', '.join(map(str, sorted(shapes)))}",
                needed=f"{name}s of one shape",
                do="crop or resize the images" if name == "image" else "fill the conditions up to one length",
            )


def stacked_field(examples: Sequence[Example], name: str, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A field of all examples, shape (B, ...)."""
    return torch.stack([torch.as_tensor(example.fields[name]) for example in examples]).to(device, dtype)


def image_example(number: int, record: Any, draws: int) -> Example:
    """A record as an example; see `Diffusion`.

    Args:
        number: Of the record.
        record: An array, or a mapping.
        draws: Of an example, which are its positions.

    Raises:
        BadInput: If it has no image, or a label that is no class number.
    """
    record = record if isinstance(record, Mapping) else {"image": record}
    value = record.get("image")
    image = None if value is None else as_numbers(value)
    if image is None or image.ndim < 1 or image.dtype.kind == "c":
        raise BadInput(
            found=f"record {number} without an image"
            if value is None
            else f"record {number} whose image is no array of numbers",
            needed="an array, or a mapping with one as 'image'",
            do="convert the records",
        )
    fields = {"image": image}
    if record.get("label") is not None:
        fields["label"] = class_number(number, record["label"], {})
    for name in ("condition", "trajectory", "steps"):
        if name in record:
            fields[name] = array_field(number, name, record[name])
    return Example(record_id(number, record), fields, draws, record_source(number, record))
