"""What a record of settings has to be."""

from collections.abc import Mapping
from typing import Any

from whence.errors import BadInput

__all__ = ["check_record"]


def check_record(value: Any, kind: type, name: str) -> None:
    """Refuse what is no record of its kind, such as a mapping of its fields, or the class itself.

    Args:
        value: What was given.
        kind: The record's class.
        name: Of the argument that takes it.

    Raises:
        BadInput: If it is something else.
    """
    if isinstance(value, kind):
        return
    inside = ", ".join(f"{key}={item!r}" for key, item in value.items()) if isinstance(value, Mapping) else ""
    raise BadInput(
        found=f"{name}={value.__name__ if isinstance(value, type) else repr(value)}",
        needed=f"a record of settings, {kind.__name__}",
        do=f"write {name}={kind.__name__}({inside})",
    )
