"""Whatever people pass as data, as a dataset."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from whence.data import Dataset
from whence.errors import BadInput
from whence.store import dtype_named
from whence.tasks import AbstractTask

__all__ = ["as_dataset", "autocast_named"]


def as_dataset(task: AbstractTask, data: Dataset | Iterable[Any]) -> Dataset:
    """Prepared examples.

    Args:
        task: Says what a record is.
        data: Records, or a dataset that is ready.

    Returns:
        The dataset.

    Raises:
        BadInput: If it is a mapping (of splits, say) or one string, which would be read key by key or letter by letter.
    """
    if isinstance(data, Dataset):
        return data
    if isinstance(data, Mapping):
        raise BadInput(
            found=f"a mapping with the keys {', '.join(map(str, list(data)[:4]))} as data",
            needed="the records themselves",
            do="pick one split, such as data['train'], or put a single record into a list",
        )
    if isinstance(data, str | bytes):
        raise BadInput(
            found="one string as data",
            needed="a list of records",
            do="put it into a list; to read a file use whence.load_records",
        )
    return task.prepare(data)


def autocast_named(name: str | None) -> torch.dtype | None:
    """The type of the model's arithmetic: None for its own, which options call "none" and blueprints null."""
    return None if name in (None, "none") else dtype_named(name)
