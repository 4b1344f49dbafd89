"""Fields of a record: ids, texts and numbers as they were given, or a refusal that names the record."""

import math
import operator
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import torch
from torch import Tensor

from whence.errors import BadInput

__all__ = [
    "array_field",
    "as_numbers",
    "class_number",
    "class_set",
    "class_shares",
    "plain_text",
    "record_id",
    "record_source",
    "scalar",
    "text_field",
    "valid_text",
    "whole_numbers",
]

# What single precision and a few digits in a file leave of a sum of probabilities.
_SUM_TOLERANCE = 1e-3
# Booleans, integers, real and complex numbers.
_NUMBERS = "biufc"


def record_id(number: int, record: Mapping[str, Any], default: Any = None) -> str:
    """The id of a record: its own, or its number.

    Args:
        number: Of the record.
        record: With `id`, or without.
        default: What stands for an id that is missing, if not the number.

    Raises:
        BadInput: If it is neither text nor a number.
    """
    value = scalar(record.get("id"))
    if value is None:
        return str(number if default is None else default)
    is_number = isinstance(value, int | float) and math.isfinite(value)
    if not (is_number or isinstance(value, str | Path | UUID)) or value == "":
        raise BadInput(
            found=f"record {number} with an id that is {_described(value)}",
            needed="a string or a whole number",
            do="correct it, or leave it out to number the records in order",
        )
    return valid_text(number, "id", str(value))


def record_source(number: int, record: Mapping[str, Any]) -> str:
    """Where a record says that it comes from; empty if it does not.

    Raises:
        BadInput: If it is not one name.
    """
    value = scalar(record.get("source"))
    if value is None:
        return ""
    if not isinstance(value, str | int | float | Path):
        raise BadInput(
            found=f"record {number} with a source that is {_described(value)}", needed="one name", do="make it a string"
        )
    return valid_text(number, "source", str(value))


def plain_text(number: int, record: Mapping[str, Any]) -> str:
    """A record's `text`, which is shown and does not go into the model; empty if it has none.

    Raises:
        BadInput: If it is no string.
    """
    value = scalar(record.get("text"))
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadInput(
            found=f"record {number} with a 'text' of type {type(value).__name__}",
            needed="a string",
            do="name the field otherwise: 'text' is shown, and kept from the model",
        )
    return valid_text(number, "text", value)


def text_field(number: int, field: str, value: Any) -> str:
    """A field that has to be a text.

    Raises:
        BadInput: If it is none.
    """
    if not isinstance(value, str):
        raise BadInput(
            found=f"record {number} with a {field!r} of type {type(value).__name__}", needed="a string", do="drop or fill it"
        )
    return valid_text(number, field, value)


def valid_text(number: int, field: str, text: str) -> str:
    """A text that tokenizers and files can take, as it is.

    Raises:
        BadInput: If it holds half of a surrogate pair.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadInput(
            found=f"record {number} with {field!r} that is no valid Unicode ({error.reason} at character {error.start:,})",
            needed="text that can be written as UTF-8",
            do="decode it again from its bytes, or drop the record",
        ) from error
    return text


def scalar(value: Any) -> Any:
    """A number or text out of an array or tensor with one entry and no axes; anything else as it is."""
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray | Tensor) and value.ndim == 0):
        return value.item()
    return value


def whole_numbers(values: Any, *, booleans: bool = False) -> list[int] | None:
    """Integers as a list, and None of anything that is not a row of integers: nothing is rounded, parsed or split.

    Args:
        values: A list, an array or a tensor with one axis.
        booleans: Whether False and True count as 0 and 1.

    >>> whole_numbers([3, 4]), whole_numbers([2.0]), whole_numbers("12")
    ([3, 4], None, None)
    """
    if isinstance(values, np.ndarray | Tensor):
        if isinstance(values, Tensor):
            if values.layout != torch.strided or values.is_quantized:
                return None
            values = values.detach().cpu()
            is_whole = not (values.is_floating_point() or values.is_complex())
            is_bool = values.dtype == torch.bool
        else:
            is_whole, is_bool = values.dtype.kind in "iubO", values.dtype.kind == "b"
        if values.ndim != 1 or not is_whole or (is_bool and not booleans):
            return None
        values = values.tolist()
    if not isinstance(values, Iterable) or isinstance(values, str | bytes | bytearray | memoryview | Mapping | Set):
        return None
    values = list(values)
    kinds = set(map(type, values))
    if kinds <= {int}:
        return values
    if not booleans and any(issubclass(kind, bool | np.bool_) for kind in kinds):
        return None
    try:
        return [operator.index(value.item() if isinstance(value, np.bool_) else value) for value in values]
    except TypeError:
        return None


def array_field(number: int, field: str, value: Any) -> np.ndarray:
    """One field of a record as an array of numbers, in a type that PyTorch knows; a copy.

    What changes or moves an array later, sharing it with other processes among them, must not reach the examples.

    Args:
        number: Of the record, for errors.
        field: Its name, for errors.
        value: A number, an array, a tensor, or nested lists of equal lengths.

    Raises:
        BadInput: If it is something else, such as text, lists of different lengths or an array with masked entries.
    """
    array = as_numbers(value)
    if array is None:
        given = _as_array(value)
        is_text = given is not None and given.dtype.kind in "US"
        raise BadInput(
            found=f"record {number} whose {field!r} is {'text' if is_text else 'no array of numbers'}",
            needed="a tensor, an array or a number; several inputs as a mapping of the model's keywords",
            do="pass a tokenizer for texts, or convert them" if is_text else "convert the record",
        )
    return array


def as_numbers(value: Any) -> np.ndarray | None:
    """An array of numbers in a type that PyTorch knows, a copy; None of anything else, such as text or lists of different lengths."""
    array = _as_array(value)
    if array is None or array.dtype.kind not in _NUMBERS:
        return None
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        if array.dtype.itemsize == 8 and array.size and int(array.max()) >= 1 << 63:
            return None
        return array.astype(np.int64)  # PyTorch has few operators for the others
    if array.dtype in (np.longdouble, np.clongdouble):
        return array.astype(np.float64 if array.dtype.kind == "f" else np.complex128)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def class_number(number: int, label: Any, names: Mapping[str, int], classes: int | None = None) -> np.ndarray:
    """A record's class as an integer without axes.

    Args:
        number: Of the record, for errors.
        label: A whole number or a name.
        names: Class numbers by name.
        classes: How many there are; None if that is not known yet.

    Raises:
        BadInput: If it is no class, such as a real number, several numbers (one-hot), or one beyond the last class.
    """
    array = np.asarray(_as_array(label))
    choices = f", or one of {', '.join(map(str, names))}" if names else ""
    if array.size == 1 and array.dtype.kind == "U" and str(array.item()) in names:
        return np.asarray(names[str(array.item())], np.int64)
    if array.size != 1:
        raise BadInput(
            found=f"record {number} with several labels" if array.size else f"record {number} with an empty label",
            needed=f"one class number from 0{choices}",
            do="take the number of the one that is set (argmax) if the labels are one-hot",
        )
    is_beyond = array.dtype.kind in "iu" and classes is not None and array.item() >= classes
    if array.dtype.kind not in "iu" or array.item() < 0 or is_beyond:
        many = "" if not is_beyond else f" for {classes} classes"
        raise BadInput(
            found=f"record {number} with the label {array.item()!r}{many}",
            needed=f"one class number from 0{choices}",
            do="convert the labels",
        )
    return array.reshape(()).astype(np.int64)


def class_set(number: int, label: Any, names: Mapping[str, int], classes: int | None = None) -> np.ndarray:
    """Which classes a record has, 0 or 1 for each, float64.

    Args:
        number: Of the record, for errors.
        label: Names of the classes that it has, or a 0 or 1 for each class.
        names: Class numbers by name.
        classes: How many there are; None if that is not known yet.

    Raises:
        BadInput: If it is neither, or has not as many numbers as there are classes.
    """
    array = _as_array(label)
    given = None if array is None or array.ndim != 1 or (array.dtype.kind != "U" and array.size) else array.tolist()
    if given is not None and classes and all(name in names for name in given):
        flags = np.zeros(classes)
        flags[[names[name] for name in given]] = 1.0
        return flags
    is_vector = array is not None and array.ndim == 1 and array.dtype.kind in "biuf" and bool(np.isin(array, (0, 1)).all())
    if array is None or not is_vector or (classes is not None and len(array) != classes):
        what = f"{len(array)} labels" if array is not None and is_vector else f"the label {label!r:.60}"
        count = "each class" if classes is None else f"each of the {classes} classes"
        raise BadInput(
            found=f"record {number} with {what}",
            needed=f"a 0 or 1 for {count}" + (f", or a list of some of {', '.join(map(str, names))}" if names else ""),
            do="convert the labels",
        )
    return array.astype(np.float64)


def class_shares(number: int, label: Any, names: Mapping[str, int], classes: int | None = None) -> np.ndarray:
    """A record's probability of each class, float64.

    Args:
        number: Of the record, for errors.
        label: A number for each class, or numbers by name, 0 for those left out.
        names: Class numbers by name.
        classes: How many there are; None if that is not known yet.

    Raises:
        BadInput: If they are no probabilities that add up to 1, or not as many as there are classes.
    """
    if isinstance(label, Mapping) and classes and all(name in names for name in label):
        by_number = {names[name]: share for name, share in label.items()}
        label = [by_number.get(index, 0.0) for index in range(classes)]
    array = as_numbers(label)
    is_vector = array is not None and array.ndim == 1 and array.dtype.kind in "biuf" and array.size > 0
    if array is None or not is_vector or (classes is not None and len(array) != classes):
        what = f"{len(array)} probabilities" if array is not None and is_vector else f"the label {label!r:.60}"
        count = "each class" if classes is None else f"each of the {classes} classes"
        raise BadInput(found=f"record {number} with {what}", needed=f"a probability for {count}", do="convert the labels")
    shares = array.astype(np.float64)
    if not (shares >= 0).all() or not abs(shares.sum() - 1) <= _SUM_TOLERANCE:
        raise BadInput(
            found=f"record {number} with probabilities that add up to {shares.sum():.6g}",
            needed="numbers of 0 or more that add up to 1",
            do="divide them by their sum",
        )
    return shares


def _as_array(value: Any) -> np.ndarray | None:
    """An array of whatever type NumPy finds; None where there is none."""
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_quantized:
            return None
        value = value.detach().cpu().resolve_conj().resolve_neg()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy().copy()  # NumPy has no bfloat16
    if isinstance(value, np.ma.MaskedArray) and bool(np.ma.getmaskarray(value).any()):
        return None
    try:
        return np.array(value)
    except (ValueError, TypeError, OverflowError, RuntimeError):
        return None


def _described(value: Any) -> str:
    return f"{value!r:.40}" if isinstance(value, int | float | str | bytes) else f"a {type(value).__name__}"
