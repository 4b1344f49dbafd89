"""Records and batches of diffusion: images, and what a network is told of them.

Axes: B examples.
"""

from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whence.data import Example
from whence.errors import BadInput
from whence.tasks.base import Batch
from whence.tasks.draws import Guidance
from whence.tasks.fields import array_field, as_numbers, class_number, record_id, record_source
from whence.tasks.images import image_inputs, image_path, image_sha256

__all__ = [
    "CONDITIONING",
    "check_alike",
    "condition_rows",
    "conditioning_of",
    "image_example",
    "nulls_of",
    "partly_hidden",
    "stacked_field",
    "for_draws",
]

CONDITIONING = ("label", "condition")
"""What a network may be told of an image, in the order in which it takes them."""

_NULLS = tuple(f"null_{name}" for name in CONDITIONING)


def conditioning_of(batch: Batch) -> dict[str, Tensor]:
    """What the network is told of each image besides its time, and what stands for none of it."""
    return {name: batch[name] for name in (*CONDITIONING, *_NULLS) if name in batch}


def for_draws(batch: Batch, draws: int) -> dict[str, Tensor]:
    """The same for every draw, shape (B, K, ...): no copies, so that many draws take no more memory."""
    return {name: value[:, None].expand(-1, draws, *value.shape[1:]) for name, value in conditioning_of(batch).items()}


def partly_hidden(conditioning: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the network is told where that was hidden from it in some rows.

    Args:
        conditioning: Labels (R,), conditions (R, ...), what stands for none of them, and `hidden` (R,) if some are.
    """
    named = {name: conditioning[name] for name in CONDITIONING if name in conditioning}
    if "hidden" not in conditioning:
        return named
    hidden_R = conditioning["hidden"]
    return {
        name: torch.where(hidden_R.reshape(-1, *(1,) * (value.ndim - 1)), conditioning[f"null_{name}"], value)
        for name, value in named.items()
    }


def nulls_of(examples: Sequence[Example], guidance: Guidance, conditioning: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What stands for nothing told: `null_label` (B,), `null_condition` (B, ...), from each record or else from the settings.

    Args:
        examples: The examples; they may be none where all of it is in the settings.
        guidance: The settings.
        conditioning: What the examples are told; nothing else is made up for.

    Raises:
        BadInput: If it is missing, has another shape than what it stands for, or the network is told nothing at all.
    """
    names = [name for name in CONDITIONING if name in conditioning]
    if not names:
        raise BadInput(
            found="guidance for images that have neither a label nor a condition",
            needed="'label' or 'condition' in every record, which guidance hides",
            do="add them, or leave guidance out",
        )
    nulls = {}
    for name in names:
        like, default = conditioning[name], guidance.nulls().get(name)
        values = [example.fields.get(f"null_{name}", default) for example in examples] or [default] * len(like)
        if any(value is None for value in values):
            raise BadInput(
                found=f"guidance without what stands for no {name}",
                needed=f"null_{name}",
                do=f"pass Guidance(null_{name}=...) (--null-{name}), or give every record a 'null_{name}'",
            )
        shapes = {tuple(np.shape(value)) for value in values}
        if shapes != {tuple(like.shape[1:])}:
            raise BadInput(
                found=f"a null_{name} of shape {', '.join(map(str, sorted(shapes)))} for {name}s of shape {tuple(like.shape[1:])}",
                needed="the same shape",
                do=f"pass the {name} that the network was given where it was told nothing",
            )
        nulls[f"null_{name}"] = torch.stack([torch.as_tensor(value) for value in values]).to(like)
    return nulls


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
        _check_shapes(name, {example.fields[name].shape for example in examples if name in example.fields})


def stacked_field(examples: Sequence[Example], name: str, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A field of all examples, shape (B, ...)."""
    return torch.stack([torch.as_tensor(example.fields[name]) for example in examples]).to(device, dtype)


def condition_rows(conditions: Sequence[Any]) -> Tensor:
    """Conditions of several images, shape (R, ...).

    Raises:
        BadInput: If one is no array of numbers, or they differ in shape.
    """
    arrays = [_numbers(number, "condition", condition) for number, condition in enumerate(conditions)]
    _check_shapes("condition", {array.shape for array in arrays})
    return torch.from_numpy(np.stack(arrays))


def _numbers(number: int, name: str, value: Any) -> np.ndarray:
    """One field of a record as an array.

    Raises:
        BadInput: If it is none, such as the text that a condition is made of.
    """
    if isinstance(value, str) and name.endswith("condition"):
        raise BadInput(
            found=f"record {number} whose {name!r} is text",
            needed="what the network takes: an array, such as the states of a text encoder",
            do="encode the texts with the pipeline's tokenizer and text encoder",
        )
    return array_field(number, name, value)


def _check_trajectory(number: int, fields: Mapping[str, np.ndarray]) -> None:
    """Refuse a trajectory that did not lead to its image.

    Raises:
        BadInput: If it has another shape than its image and its steps say, or the steps do not fall.
    """
    if ("trajectory" in fields) != ("steps" in fields):
        raise BadInput(
            found=f"record {number} with only one of trajectory and steps",
            needed="both or none",
            do="add the other, or drop it",
        )
    if "trajectory" not in fields:
        return
    shape, steps = (fields["steps"].size + 1, *fields["image"].shape), fields["steps"]
    if fields["trajectory"].shape != shape or steps.ndim != 1 or not steps.size or steps.dtype.kind not in "iu":
        raise BadInput(
            found=f"record {number} with a trajectory of shape {fields['trajectory'].shape} and {steps.size} steps",
            needed=f"shape {shape}, from noise to the image, and a step number for all but the last",
            do="make the queries with whence.pipeline.sample_images",
        )
    if steps[-1] < 0 or (steps[1:] >= steps[:-1]).any():
        raise BadInput(
            found=f"record {number} with the steps {', '.join(map(str, steps[:8]))}{', ...' if len(steps) > 8 else ''}",
            needed="falling step numbers, none below 0, as from noise to the image",
            do="make the queries with whence.pipeline.sample_images",
        )


def _check_shapes(name: str, shapes: Set[tuple[int, ...]]) -> None:
    if len(shapes) > 1:
        raise BadInput(
            found=f"{name}s of the shapes {', '.join(map(str, sorted(shapes)))}",
            needed=f"{name}s of one shape",
            do="crop or resize the images" if name == "image" else "fill the conditions up to one length",
        )


def pixels_of(number: int, path: Path, channels: int) -> np.ndarray:
    """An image file as diffusion models are trained on it: from -1 to 1, shape (channels, height, width).

    Args:
        number: Of the record, for errors.
        path: The file.
        channels: 1 for shades of grey, otherwise red, green and blue.

    Raises:
        BadInput: If Pillow is missing, or the file is no image.
    """
    image_sha256(number, path)  # says what is wrong with the file itself
    opened = Example(str(path), {}, 1, image=str(path))
    pixels = image_inputs(
        opened, (lambda image: np.asarray(image.convert("L"), np.float32)[None] / 255) if channels == 1 else None
    )
    return np.asarray(pixels["inputs"]) * 2 - 1


def image_example(number: int, record: Any, draws: int, channels: int = 3) -> Example:
    """A record as an example; see `Diffusion`.

    Args:
        number: Of the record.
        record: An array, or a mapping.
        draws: Of an example, which are its positions.
        channels: Of the network, for images in files.

    Raises:
        BadInput: If it has no image, or a label that is no class number.
    """
    record = record if isinstance(record, Mapping) else {"image": record}
    value = record.get("image")
    path = image_path(value)
    image = None if value is None else as_numbers(value) if path is None else pixels_of(number, path, channels)
    if image is None or image.ndim < 1 or image.dtype.kind == "c":
        raise BadInput(
            found=f"record {number} without an image"
            if value is None
            else f"record {number} whose image is no array of numbers",
            needed="an array or the path of an image file, or a mapping with one as 'image'",
            do="convert the records",
        )
    fields = {"image": image}
    for name in ("label", "null_label"):
        if record.get(name) is not None:
            fields[name] = class_number(number, record[name], {})
    for name in ("condition", "null_condition", "trajectory", "steps"):
        if name in record:
            fields[name] = _numbers(number, name, record[name])
    _check_trajectory(number, fields)
    shown = "" if path is None else str(path)
    return Example(record_id(number, record), fields, draws, record_source(number, record), image=shown)
