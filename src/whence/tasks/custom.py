"""Any model and any loss: the loss is a function of the model and a batch."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from whence.data import Dataset, Example
from whence.errors import BadInput
from whence.functions import identity_of
from whence.internals import map_tree
from whence.tasks.base import AbstractTask, Batch
from whence.tasks.fields import as_numbers, plain_text, record_id, record_source
from whence.tasks.images import image_path
from whence.tasks.outputs import Outputs
from whence.tasks.prepared import SameInputs, examples_from

__all__ = ["Custom"]


class Custom(AbstractTask):
    """A task from a per-example loss.

    Args:
        model: Any module.
        loss: `loss(model, batch)` gives one loss per example, shape (B,), summed over whatever an example consists of.
        measure: `measure(model, batch)` gives what a query asks about, shape (B,); None takes minus the loss.
        collate: Turns a list of records into a batch; None stacks tensors, numbers, tuples and mappings as PyTorch's loader does.
        outputs: `outputs(model, batch)` gives the model's outputs and their likelihood (`whence.tasks.Outputs`), for methods whose curvature
            is a Gauss-Newton matrix; its losses must add up to `loss`.
        unit: What the measurement is counted in.
        **options: See `AbstractTask`.
    """

    kind = "custom"

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[nn.Module, Batch], Tensor],
        *,
        measure: Callable[[nn.Module, Batch], Tensor] | None = None,
        collate: Callable[[list[Any]], Batch] | None = None,
        outputs: Callable[[nn.Module, Batch], Outputs] | None = None,
        unit: str = "units of the loss, negated",
        **options: Any,
    ):
        super().__init__(model, **options)
        self._loss, self._measure, self._collate = loss, measure, collate
        self._outputs = outputs
        self.unit = unit

    @property
    def preprocessing(self) -> str:
        """Digest of the loss and the measurement: source text, defaults, and the numbers and strings they see from outside."""
        parts = [identity_of(function) for function in (self._loss, self._measure)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def prepare(self, records: Iterable[Any]) -> Dataset:
        """Records as they are; `id`, `source` and `text` are read from mappings and kept from the batch.

        An `image` that is a path stays in the batch as it is, for the collate function to open; pages show it.
        """
        same = SameInputs()

        def example(number: int, record: Any) -> list[Example]:
            prepared = _example(number, record)
            return [prepared if self._collate is not None else same.checked(number, prepared)]

        return examples_from(records, example, skip_bad=self.skip_bad)

    def collate(self, examples: Sequence[Example]) -> Batch:
        """What the collate function makes of the records, on the model's device.

        Raises:
            BadInput: If there is none and the records do not go into one batch.
        """
        rows = [_restore(example.fields) for example in examples]
        batch = _stacked(examples, rows) if self._collate is None else self._collate(rows)
        return map_tree(lambda leaf: leaf.to(self.device) if isinstance(leaf, Tensor) else leaf, batch)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The user's loss, shape (B,)."""
        return self._loss(model, batch)

    def measurement(self, model: nn.Module, batch: Batch) -> Tensor:
        """The user's measurement, shape (B,)."""
        return -self._loss(model, batch) if self._measure is None else self._measure(model, batch)

    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        """The user's outputs."""
        return super().outputs(model, batch) if self._outputs is None else self._outputs(model, batch)


def _example(number: int, record: Any) -> Example:
    if isinstance(record, Mapping):
        fields = {str(key): _plain(number, key, value) for key, value in record.items() if key not in ("id", "source", "text")}
        image = image_path(record.get("image"))
        words = record_id(number, record), record_source(number, record), plain_text(number, record)
        return Example(words[0], fields, source=words[1], text=words[2], image="" if image is None else str(image))
    parts = record if isinstance(record, tuple | list) else (record,)
    return Example(str(number), {f"#{index}": _plain(number, index, part) for index, part in enumerate(parts)})


def _stacked(examples: Sequence[Example], rows: list[Any]) -> Batch:
    try:
        return default_collate(rows)
    except (RuntimeError, TypeError, ValueError, KeyError) as error:
        raise BadInput(
            found=f"examples that do not go into one batch, {examples[0].id!r} to {examples[-1].id!r} ({str(error).splitlines()[0]})",
            needed="numbers, tensors of equal shapes, and tuples, lists and mappings of these",
            do="pass a collate function to whence.Custom",
        ) from error


def _plain(number: int, name: Any, value: Any) -> Any:
    """A field as an example keeps it.

    Raises:
        BadInput: If it has no bytes that a fingerprint could be made of.
    """
    if isinstance(value, Path):
        return str(value)
    # Copies: what changes or moves an array later, sharing it with other processes among them, must not reach the examples.
    if isinstance(value, np.ndarray):
        numbers = as_numbers(value)
        if numbers is None:
            masked = " with masked entries" * isinstance(value, np.ma.MaskedArray)
            raise BadInput(**_unusable(number, name, f"an array of {value.dtype}{masked}"))
        return numbers
    if value is None or isinstance(value, str | int | float):
        return value
    if not isinstance(value, Tensor):
        if not _has_bytes(value):
            raise BadInput(**_unusable(number, name, f"of type {type(value).__name__}"))
        return value
    if value.layout != torch.strided or value.is_quantized:
        raise BadInput(**_unusable(number, name, "a sparse or quantized tensor"))
    value = value.detach().cpu()
    return value.clone() if value.dtype == torch.bfloat16 else value.numpy().copy()  # NumPy has no bfloat16


def _unusable(number: int, name: Any, what: str) -> dict[str, str]:
    return {
        "found": f"record {number} whose field {name!r} is {what}",
        "needed": "arrays, tensors, numbers or strings, or lists of numbers of equal lengths",
        "do": "convert the field, or leave it out of the record",
    }


def _has_bytes(value: Any) -> bool:
    try:
        return not np.asarray(value).dtype.hasobject
    except (ValueError, TypeError, RuntimeError):
        return False


def _restore(fields: Mapping[str, Any]) -> Any:
    """Back to the record's own form: positional names are those that `_example` gave to tuples."""
    tensors = {key: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for key, value in fields.items()}
    if not all(key.startswith("#") for key in tensors):
        return tensors
    return tuple(tensors.values()) if len(tensors) > 1 else tensors["#0"]
