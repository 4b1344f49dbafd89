"""Records with one target each, as examples and as batches: what classification and regression share."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from whence.data import Example
from whence.errors import BadInput
from whence.sharded_weights import main_device
from whence.tasks.base import Batch, precision
from whence.tasks.images import Preprocess, image_inputs, image_path, image_sha256
from whence.tasks.outputs import output_of

__all__ = ["labelled_example", "model_outputs", "stacked"]


def labelled_example(number: int, record: Any, target_name: str, tokenizer: Any, names: Mapping[str, int]) -> Example:
    """One record as an example.

    Args:
        number: Of the record, for errors, and its id if it has none.
        record: A pair or a mapping.
        target_name: The field with the target, "label" or "target".
        tokenizer: For records with a text.
        names: Class numbers by name.

    Raises:
        BadInput: If it is something else.
    """
    if isinstance(record, Sequence) and not isinstance(record, str) and len(record) == 2:
        record = {"inputs": record[0], target_name: record[1]}
    elif not isinstance(record, Mapping) or target_name not in record:
        found = f"the fields {sorted(record)}" if isinstance(record, Mapping) else f"a {type(record).__name__}"
        raise BadInput(
            found=f"record {number} with {found}" if isinstance(record, Mapping) else f"record {number}, {found}",
            needed=f"a pair (input, {target_name}) or a mapping with {target_name!r}",
            do="convert the records; on the command line ask with --file and a file of such records",
        )
    image = image_path(record.get("image"))
    known_as = number if image is None else record["image"]
    name, source, text = str(record.get("id", known_as)), str(record.get("source", "")), record.get("text", "")
    target = _array(number, target_name, record[target_name])
    if target_name == "label":
        target = _class_number(number, target, names)
    if image is not None:
        _check_alone(number, record, target_name)
        fields = {"image_sha256": image_sha256(number, image), "target": target}
        return Example(name, fields, 1, source, str(text), image=str(image))
    if tokenizer is None:
        skipped = (target_name, "id", "source", "text")
        inputs = {key: _array(number, key, value) for key, value in record.items() if key not in skipped}
        length = max((len(value) for value in inputs.values() if value.ndim == 1 and value.dtype.kind in "iu"), default=1)
        return Example(name, {**inputs, "target": target}, length, source, str(text))
    if not isinstance(text, str) or not text:
        raise BadInput(found=f"record {number} without a text", needed="a non-empty 'text'", do="drop or fill it")
    encoded = tokenizer(text, truncation=True)
    inputs = {key: np.asarray(value, np.int64) for key, value in encoded.items()}
    return Example(name, {**inputs, "target": target}, len(encoded["input_ids"]), source, text)


def stacked(examples: Sequence[Example], model: nn.Module, preprocess: Preprocess | None) -> Batch:
    """Inputs by keyword, right-padded with zeros where a mask says so, and targets, on the model's device and in its precision."""
    dtype, device = precision(model), main_device(model)
    rows = [image_inputs(example, preprocess) if example.image else example.fields for example in examples]
    names = [name for name in rows[0] if name != "target"]
    masked = "attention_mask" in names
    inputs = {name: _pad(name, [row[name] for row in rows], masked) for name in names}
    # Real inputs take the model's precision: NumPy's default is float64.
    inputs = {
        name: value.to(device, dtype) if value.is_floating_point() else value.to(device) for name, value in inputs.items()
    }
    target = torch.stack([torch.as_tensor(example.fields["target"]) for example in examples])
    return {"inputs": inputs, "target": target.to(device)}


def model_outputs(model: nn.Module, batch: Batch) -> Tensor:
    """What the model gives for a batch, a record's logits included, in float32 or wider."""
    inputs = batch["inputs"]
    found = output_of(model(inputs["inputs"]) if set(inputs) == {"inputs"} else model(**inputs))
    return found if found.dtype == torch.float64 else found.float()


def _check_alone(number: int, record: Mapping[str, Any], target_name: str) -> None:
    others = sorted(set(record) - {"image", target_name, "id", "source", "text"})
    if others:
        raise BadInput(
            found=f"record {number} with an image and {others[0]!r}",
            needed="the image as the only input",
            do="drop the field, or use whence.Custom with a collate function that opens the image",
        )


def _class_number(number: int, label: np.ndarray, names: Mapping[str, int]) -> np.ndarray:
    known = f", or one of {', '.join(map(str, names))}" if names else ""
    if label.size == 1 and label.dtype.kind in "US" and str(label.item()) in names:
        return np.asarray(names[str(label.item())], np.int64)
    if label.size != 1 or label.dtype.kind not in "iu" or label.item() < 0:
        raise BadInput(
            found=f"record {number} with the label {label.item()!r}"
            if label.size == 1
            else f"record {number} with several labels",
            needed=f"one class number from 0{known}",
            do="convert the labels",
        )
    return label.reshape(()).astype(np.int64)


def _array(number: int, field: str, value: Any) -> np.ndarray:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        # A copy: what changes or moves the tensor later, sharing it with other processes among them, must not reach the examples.
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy().copy()  # NumPy has no bfloat16
    try:
        array = np.array(value)
    except ValueError:
        array = np.asarray(None)
    if array.dtype.hasobject:
        raise BadInput(
            found=f"record {number} whose {field!r} is no array of numbers",
            needed="a tensor, an array or a number; several inputs as a mapping of the model's keywords",
            do="convert the record",
        )
    return array


def _pad(name: str, arrays: Sequence[np.ndarray], masked: bool) -> Tensor:
    tensors = [torch.as_tensor(array) for array in arrays]
    shapes = {tuple(tensor.shape) for tensor in tensors}
    if len(shapes) == 1:
        return torch.stack(tensors)
    if not masked:
        raise BadInput(
            found=f"inputs {name!r} of different shapes ({', '.join(map(str, sorted(shapes)[:2]))}) and no attention_mask",
            needed="equal shapes, or a mask that the model heeds: padding would change what it computes",
            do="pad them yourself, resize images in preprocess, or use whence.Custom with a collate function",
        )
    return nn.utils.rnn.pad_sequence(tensors, batch_first=True)
