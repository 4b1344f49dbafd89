"""Whatever people pass as data, as a dataset."""

from collections.abc import Iterable
from typing import Any

import torch

from whence.data import Dataset
from whence.errors import BadInput
from whence.store import dtype_named
from whence.tasks import AbstractTask, records_in

__all__ = ["as_dataset", "autocast_named", "refuse_bare_model"]


def refuse_bare_model(task: Any) -> None:
    """Refuse a model, or anything else, that stands where a task belongs.

    Args:
        task: What was passed as one.

    Raises:
        BadInput: If it is none.
    """
    if not isinstance(task, AbstractTask):
        kind = type(task).__name__
        raise BadInput(
            found=f"a {'model (' + kind + ')' if isinstance(task, torch.nn.Module) else kind} where a task belongs",
            needed="a task: the model, what its records are and the loss of each",
            do="pass whence.CausalLM(model, tokenizer), whence.Classification(model) or whence.Custom(model, loss)",
        )


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
