"""Whatever people pass as data, as a dataset."""

from collections.abc import Iterable
from typing import Any

import torch

from whence.data import Dataset
from whence.store import dtype_named
from whence.tasks import AbstractTask, records_in

__all__ = ["as_dataset", "autocast_named"]


def as_dataset(task: AbstractTask, data: Dataset | Iterable[Any]) -> Dataset:
    """Prepared examples.

    Args:
        task: Says what a record is.
        data: Records, or a dataset that is ready.

    Returns:
        The dataset.

    Raises:
        BadInput: If it is something else, see `whence.tasks.records_in`.
    """
    if isinstance(data, Dataset):
        return data
    # Here too: a task of somebody's own may go over data as it comes.
    return task.prepare(records_in(data))


def autocast_named(name: str | None) -> torch.dtype | None:
    """The type of the model's arithmetic: None for its own, which options call "none" and blueprints null."""
    return None if name in (None, "none") else dtype_named(name)
