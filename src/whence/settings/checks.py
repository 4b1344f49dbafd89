"""What a record of settings has to be, and its fields."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache, wraps
from inspect import Parameter, signature
from numbers import Integral, Real
from pathlib import PurePath
from types import NoneType, UnionType
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

from whence.errors import BadInput, UnknownOption

__all__ = ["DAMPINGS", "check_record", "records_only", "shown", "typed"]

Given = ParamSpec("Given")
Result = TypeVar("Result")
Kind = TypeVar("Kind")
_LONGEST = 80
_WORDS = {int: "a whole number", float: "a finite number", bool: "True or False", str: "a text", NoneType: "None"}
# Options of a damping by name, as the command line has them, and the fields of a Damping.
DAMPINGS = {"relative_damping": "relative", "absolute_damping": "absolute", "damping_rule": "rule"}


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
    if isinstance(value, Real) and "relative" in getattr(kind, "__dataclass_fields__", {}):
        inside = f"relative={value!r}"
    raise BadInput(
        found=f"{name}={shown(value)}",
        needed=f"a record of settings, {kind.__name__}",
        do=f"write {name}={kind.__name__}({inside})",
    )


def typed(kind: type[Kind]) -> type[Kind]:
    """A record whose fields are held against their types when it is made, before its own checks; below `@dataclass`."""
    own = kind.__dict__.get("__post_init__")

    def __post_init__(self: Any) -> None:  # noqa: N807
        for name, hint in _hints(type(self)).items():
            _check_field(name, getattr(self, name), hint)
        if own is not None:
            own(self)

    kind.__post_init__ = __post_init__  # pyright: ignore[reportAttributeAccessIssue]
    return kind


def records_only(**homes: Any) -> Callable[[Callable[Given, Result]], Callable[Given, Result]]:
    """A function that holds its records of settings against their classes.

    Of an option by name that it does not take, it says in which of its records that option lives.

    Args:
        **homes: By argument, the class of the record that it takes, or a union of such classes. A keyword-only argument of a
            single class is checked; what else an argument takes, the function checks itself.
    """

    def decorated(function: Callable[Given, Result]) -> Callable[Given, Result]:
        parameters = signature(function).parameters
        title = function.__qualname__.removesuffix(".__init__")
        checked = {
            name: home
            for name, home in homes.items()
            if isinstance(home, type) and parameters[name].kind is Parameter.KEYWORD_ONLY
        }

        @wraps(function)
        def called(*arguments: Given.args, **options: Given.kwargs) -> Result:
            for name in options.keys() - parameters.keys():
                _refuse_option(title, name, options[name], homes)
            for name in checked.keys() & options.keys():
                if options[name] is not None or parameters[name].default is not None:
                    check_record(options[name], checked[name], name)
            return function(*arguments, **options)

        return called

    return decorated


def _refuse_option(function: str, name: str, value: Any, homes: Mapping[str, Any]) -> None:
    """Say where an option lives; return if that is not known, so that Python says what it says.

    Raises:
        UnknownOption: If a record has it.
    """
    for argument, home in homes.items():
        for kind in get_args(home) or (home,):
            inside = _inside(kind, name, value)
            if inside:
                raise UnknownOption(
                    found=f"the option {name} of {function}",
                    needed="settings in their record",
                    do=f"write {argument}={'.'.join(kind.__module__.split('.')[:2])}.{kind.__name__}({inside})",
                )


def _inside(kind: type, name: str, value: Any) -> str:
    """How a record of a kind is given an option by its name, or "" where it has none of that name."""
    names = {item.name for item in fields(kind)}
    if name in names:
        return f"{name}={shown(value)}"
    if name not in DAMPINGS:
        return ""
    damping = f"{DAMPINGS[name]}={shown(value)}"
    if "damping" in names:
        return f"damping=whence.settings.Damping({damping})"
    return damping if DAMPINGS[name] in names else ""


@cache
def _hints(kind: type) -> dict[str, Any]:
    """Types of a record's fields, but for those that only type checkers know."""
    return {item.name: item.type for item in fields(kind) if not isinstance(item.type, str)}  # pyright: ignore[reportArgumentType]


def _check_field(name: str, value: Any, hint: Any) -> None:
    if _fits(value, hint):
        return
    kinds = [kind for kind in (hint, *get_args(hint)) if isinstance(kind, type) and is_dataclass(kind)]
    if kinds:
        check_record(value, kinds[0], name)
    raise BadInput(found=f"{name}={shown(value)}", needed=_words(hint), do=f"correct {name}, or leave it out")


def _fits(value: Any, hint: Any) -> bool:
    origin = get_origin(hint)
    if hint is Any:
        return True
    if origin in (Union, UnionType):
        return any(_fits(value, choice) for choice in get_args(hint))
    if origin is Literal:  # which words there are the record's own check says
        return any(type(value) is type(choice) for choice in get_args(hint))
    if hint in (None, NoneType):
        return value is None
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    kind = origin or hint
    if not isinstance(kind, type):
        return True
    if issubclass(kind, PurePath):
        return isinstance(value, os.PathLike)
    return isinstance(value, kind) and not (kind is Sequence and isinstance(value, str))


def _words(hint: Any) -> str:
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_words(choice) for choice in get_args(hint)))
    if origin is Literal:
        return "one of: " + ", ".join(str(choice) for choice in get_args(hint))
    if hint in _WORDS:
        return _WORDS[hint]
    kind = origin or hint
    return "a path" if isinstance(kind, type) and issubclass(kind, PurePath) else f"a {getattr(kind, '__name__', kind)}"


def shown(value: Any) -> str:
    """A value in an error message: a class by its name, and no more than a line of anything."""
    text = value.__name__ if isinstance(value, type) else repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
