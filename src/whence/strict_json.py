"""Reading JSON that somebody else wrote: bounded, without a second meaning, and of the types that were announced."""

import json
import math
import reprlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

__all__ = ["fitted", "is_plain", "parse_json", "record_of"]

# Nothing of ours is nested half as deep; what walks through a record by recursion has room for this.
_DEEPEST = 64
# Digits of the largest number of 64 bits: what torch and file systems count with.
_DIGITS = 19
Record = TypeVar("Record")


def parse_json(content: bytes | str, *, any_number: bool = False) -> Any:
    """The value of a JSON text.

    Args:
        content: The text, as UTF-8 if it is bytes.
        any_number: Whether NaN, infinities and whole numbers of any length are let through, as Python writes them.

    Returns:
        Mappings, lists, strings, numbers, booleans and None.

    Raises:
        ValueError: If it is no JSON, names a field of an object twice, is nested deeper than 64, or holds a number or a half of a character
            that nothing else could hold.

    >>> parse_json('{"rows": 1, "rows": 2}')
    Traceback (most recent call last):
    ValueError: the field 'rows' twice in one object
    """
    text = content.decode("utf-8") if isinstance(content, bytes) else content
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_int=int if any_number else _integer,
            parse_float=float if any_number else _finite,
            parse_constant=float if any_number else _no_number,
        )
    except RecursionError:
        raise ValueError(f"nested deeper than {_DEEPEST}") from None
    _check_depth(value)
    if "\\ud" in text or "\\uD" in text:  # halves of characters can only come from escapes
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("half of a character (a lone surrogate)") from None
    return value


def is_plain(value: Any) -> bool:
    """Whether JSON holds a value as it is: texts, finite numbers, booleans, None, and lists and mappings of these.

    >>> is_plain({"tags": ["a", 1]}), is_plain((1, 2)), is_plain(math.nan)
    (True, False, False)
    """
    try:
        return bool(json.loads(json.dumps(value, allow_nan=False)) == value)
    except (TypeError, ValueError, RecursionError):
        return False


def record_of(kind: type[Record], content: Any) -> Record:
    """A record from a JSON object that has its fields and no others, each of the type that the record announces.

    Args:
        kind: A dataclass, whose fields may be records, too.
        content: What `parse_json` gave.

    Returns:
        The record, lists as tuples where it announces tuples.

    Raises:
        KeyError: If a field is missing.
        TypeError: If there is another one, or one has another type; a boolean is no number here.
    """
    if not isinstance(content, dict):
        raise TypeError(f"{reprlib.repr(content)} instead of an object")
    announced = {field.name: field for field in fields(kind)}  # pyright: ignore[reportArgumentType]
    unknown = sorted(content.keys() - announced.keys())
    if unknown:
        raise TypeError(f"an unknown field {unknown[0][:80]!r}")
    types = get_type_hints(kind)
    values = {}
    for name, field in announced.items():
        if name in content:
            values[name] = fitted(types[name], content[name], name)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise KeyError(name)
    return kind(**values)


def fitted(announced: Any, value: Any, name: str) -> Any:
    """A value of JSON as the announced type.

    Args:
        announced: A type as in annotations: plain types, records, unions, `Literal`, tuples, lists, sequences, mappings by string, `Any`.
        value: The value.
        name: What it is called in errors.

    Returns:
        The value itself, lists as tuples and objects as records where those are announced.

    Raises:
        TypeError: If it has another type.
        KeyError: If a record in it lacks a field.
    """
    outer, inner = get_origin(announced), get_args(announced)
    if announced is Any:
        return value
    if outer in (Union, UnionType):
        return _first_fitting(inner, value, name)
    if outer is Literal:
        fits = any(type(value) is type(choice) and value == choice for choice in inner)
    elif outer in (tuple, list, Sequence):
        return _sequence(outer, inner, value, name)
    elif outer in (dict, Mapping):
        if isinstance(value, dict):
            return {key: fitted(inner[1], part, f"{name}[{key[:80]!r}]") for key, part in value.items()}
        fits = False
    elif is_dataclass(announced):
        return record_of(announced, value)  # pyright: ignore[reportArgumentType]
    elif announced is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
    elif announced is int:
        fits = isinstance(value, int) and not isinstance(value, bool)
    else:
        fits = isinstance(value, NoneType if announced is None else announced)
    if not fits:
        raise TypeError(f"{name} is {reprlib.repr(value)}, not {_described(announced)}")
    return value


def _first_fitting(choices: Sequence[Any], value: Any, name: str) -> Any:
    if value is None and NoneType in choices:
        return None
    others = [choice for choice in choices if choice is not NoneType]
    for choice in others[:-1]:
        with suppress(TypeError):
            return fitted(choice, value, name)
    return fitted(others[-1], value, name)


def _sequence(outer: Any, inner: tuple[Any, ...], value: Any, name: str) -> Any:
    if not isinstance(value, list):
        raise TypeError(f"{name} is {reprlib.repr(value)}, not a list")
    if outer is tuple and inner[-1] is not Ellipsis:
        if len(value) != len(inner):
            raise TypeError(f"{name} has {len(value):,} parts, not {len(inner)}")
        return tuple(fitted(kind, part, name) for kind, part in zip(inner, value, strict=True))
    if inner[0] is str or inner[0] is int:  # the long ones: ids by the million
        if set(map(type, value)) - {inner[0]}:
            wrong = next(part for part in value if type(part) is not inner[0])
            raise TypeError(f"{name} holds {reprlib.repr(wrong)}, not {_described(inner[0])}")
        return tuple(value) if outer is tuple else value
    parts = [fitted(inner[0], part, name) for part in value]
    return tuple(parts) if outer is tuple else parts


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"the field {twice[:80]!r} twice in one object")
    return mapping


def _integer(text: str) -> int:
    if len(text) > _DIGITS + 1 or abs(value := int(text)) >= 1 << 63:
        raise ValueError(f"a whole number of {len(text):,} digits")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]}, which is too large")
    return value


def _no_number(text: str) -> float:
    raise ValueError(f"{text}, which is no number of JSON")


def _check_depth(value: Any) -> None:
    level, depth = [value], 0
    while level := [part for part in level if isinstance(part, dict | list)]:
        depth += 1
        if depth > _DEEPEST:
            raise ValueError(f"nested deeper than {_DEEPEST}")
        inside = (container.values() if isinstance(container, dict) else container for container in level)
        level = [part for parts in inside for part in parts if isinstance(part, dict | list)]


def _described(announced: Any) -> str:
    choices = get_args(announced) if get_origin(announced) is Literal else ()
    if choices:
        return f"one of {', '.join(map(str, choices))}"
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", None: "null", NoneType: "null"}
    return names.get(announced, "an object")
