"""What is known of each example, one line of JSON each."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from whence.data import Example

__all__ = ["example_line", "read_example", "split_lines"]

_TYPES = {"id": str, "length": int, "source": str, "text": str, "prompt": int, "image": str, "label": str, "predicted": str}
_NEEDED = {"id", "length"}


def example_line(example: Example, label: Mapping[str, str] | None = None) -> bytes:
    """The line of an example, with its break; of a classifier's with its `label`, and with `predicted`, what the model saw at the build."""
    fields: dict[str, object] = {"id": example.id, "length": example.length}
    if example.source:
        fields["source"] = example.source
    if example.text:
        fields["text"] = example.text
    if example.span is not None:
        fields["span"] = list(example.span)
    if example.prompt:
        fields["prompt"] = example.prompt
    if example.scored:
        fields["scored"] = [list(pair) for pair in example.scored]
    if example.image:
        fields["image"] = example.image
    fields |= label or {}
    return json.dumps(fields, ensure_ascii=False).encode() + b"\n"


def split_lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Lines of a file that is read in blocks.

    Yields:
        Lines, without their breaks.
    """
    begun = b""
    for block in blocks:
        *lines, begun = (begun + block).split(b"\n")
        yield from lines
    if begun:
        yield begun


def read_example(line: bytes) -> dict[str, Any]:
    """What a line says of an example, whoever wrote it; quick, since a store has millions of them.

    Raises:
        ValueError: If it says something else than `example_line` would.
    """
    try:
        fields = json.loads(line)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(fields, dict) or not fields.keys() >= _NEEDED:
        raise ValueError("it has no id or no length")
    for name, value in fields.items():
        if name in _TYPES:
            if type(value) is not _TYPES[name] or type(value) is int and not 0 <= value < 1 << 63:
                raise ValueError(f"{name} is not what an example has there")
        elif name == "span":
            _check_pair(value)
        elif name == "scored" and isinstance(value, list):
            for pair in value:
                _check_pair(pair)
        else:
            raise ValueError(f"it has an unknown field {name[:40]!r}")
    if b"\\ud" in line or b"\\uD" in line:  # halves of characters can only come from escapes
        json.dumps(fields, ensure_ascii=False).encode()  # a UnicodeEncodeError is a ValueError
    return fields


def _check_pair(value: Any) -> None:
    if not isinstance(value, list) or len(value) != 2 or any(type(each) is not int or each < 0 for each in value):
        raise ValueError("a part of its text has no first and last character")
