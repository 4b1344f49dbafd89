"""Settings by name, for those who do not want to write the record that they are fields of."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, ClassVar, Protocol, TypeVar

from whence.errors import BadInput, UnknownOption

__all__ = ["only_options", "split_options"]


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


Record = TypeVar("Record", bound=_Dataclass)


def split_options(record: Record, options: Mapping[str, Any], name: str) -> tuple[Record, dict[str, Any]]:
    """Options by name that are fields of a record, put into it, and the other options.

    Args:
        record: What was given as an object; with nothing but defaults nothing was.
        options: Options by name; a None was not given.
        name: Of the argument that takes the object.

    Raises:
        BadInput: If both say something, or the record is something else, such as a mapping or a class.
    """
    _check_record(record, name)
    names = {field.name for field in fields(record)}
    own = {option: value for option, value in options.items() if option in names and value is not None}
    rest = {option: value for option, value in options.items() if option not in names and value is not None}
    kind = type(record)
    if own and record != kind():
        raise BadInput(
            found=f"{', '.join(own)} beside {name}=",
            needed="one of the two",
            do=f"write {name}={kind.__name__}({next(iter(own))}=...)",
        )
    return (kind(**own) if own else record), rest


def _check_record(record: Any, name: str) -> None:
    if is_dataclass(record) and not isinstance(record, type):
        return
    flat = ", ".join(f"{key}={value!r}" for key, value in record.items()) if isinstance(record, Mapping) else ""
    raise BadInput(
        found=f"{name}={record!r}",
        needed="a record of settings",
        do=f"leave {name} out and pass its fields by name" + (f": {flat}" if flat else ""),
    )


def only_options(record: Record, options: Mapping[str, Any], name: str) -> Record:
    """The record, for what takes no other options.

    Args:
        record: What was given as an object.
        options: Fields of it by name.
        name: Of the argument that takes the object.

    Raises:
        UnknownOption: If an option is no field of it.
    """
    record, rest = split_options(record, options, name)
    if rest:
        names = ", ".join(field.name for field in fields(record))
        raise UnknownOption(
            found=f"the option {next(iter(rest))!r}", needed=f"one of: {names}", do="leave it out, or correct it"
        )
    return record
