"""The ids of a dataset's examples, for trainers that know them by their place."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from whence.errors import BadInput

__all__ = ["digest_of_ids", "ids_of", "names_of"]


def names_of(ids: Any) -> list[str]:
    """The ids of a batch as people pass them: of any iterable, a tensor of numbers or a column of an array.

    Args:
        ids: An id for each example.

    Returns:
        The ids as words.

    Raises:
        BadInput: If it is a single id, a word among them: its letters would be taken for ids.

    >>> names_of((1, "b"))
    ['1', 'b']
    """
    is_one = isinstance(ids, str | bytes) or not isinstance(ids, Iterable) or getattr(ids, "ndim", 1) == 0
    if is_one:
        raise BadInput(
            found=f"{str(ids.item() if isinstance(ids, Tensor) else ids)[:40]!r} as the ids of a batch",
            needed="several, an id for each example",
            do="pass a list, [id] for a batch of one",
        )
    values = ids.tolist() if isinstance(ids, Tensor) else ids
    return [str(name.item() if isinstance(name, Tensor) else name) for name in values]


def ids_of(data: Any, field: str) -> list[str]:
    """What a field holds, or else the place of each example.

    Args:
        data: A dataset with a length; examples that are no mappings have no fields.
        field: Name of the field.

    Returns:
        An id for each.
    """
    if field in (getattr(data, "column_names", None) or ()):
        return [str(name) for name in data[field]]
    if not len(data) or not isinstance(data[0], Mapping):  # no reason to read the others
        return [str(number) for number in range(len(data))]
    return [str(data[number].get(field, number)) for number in range(len(data))]


def digest_of_ids(ids: Sequence[str]) -> str:
    """SHA-256 of ids in their order: tells a dataset from another."""
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()
