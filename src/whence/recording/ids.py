"""The ids of a dataset's examples, for trainers that know them by their place."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["digest_of_ids", "ids_of"]


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
