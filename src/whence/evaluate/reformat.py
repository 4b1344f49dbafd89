"""Queries with the same content in another format: scores that follow content stay, scores that follow format change."""

import copy
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from whence.errors import BadInput, UnknownOption

__all__ = ["FORMATS", "reformatted"]

_WORDS = ("text", "prompt", "completion")


def _upper(record: Mapping[str, str]) -> dict[str, str]:
    return {name: text.upper() for name, text in record.items()}


def _json(record: Mapping[str, str]) -> dict[str, str]:
    """As the value of a field; of a completion's the end is not asked about."""
    before, after = {"text": '{"text": "', "prompt": '{"text": "'}, {"text": '"}'}
    escaped = {name: json.dumps(text, ensure_ascii=False)[1:-1] for name, text in record.items()}
    return {name: before.get(name, "") + text + after.get(name, "") for name, text in escaped.items()}


def _marks(record: Mapping[str, str]) -> dict[str, str]:
    """Commas are semicolons, full stops dashes, and the quotation marks of the other kind."""
    other = str.maketrans({",": ";", ".": " -", '"': "'", "'": '"', ":": " -"})
    return {name: text.translate(other) for name, text in record.items()}


FORMATS: Mapping[str, Callable[[Mapping[str, str]], dict[str, str]]] = {"upper": _upper, "json": _json, "marks": _marks}
"""By name: capitals; the text as the field of a JSON object; other punctuation."""


def reformatted(records: Iterable[Any], how: str | Callable[[Any], Any]) -> list[Any]:
    """Records with the same content in another format, under the same ids.

    Held against the same truth, or against the scores of the queries as they were, they tell what of a method's scores is due to the format.

    Args:
        records: Queries: texts, or mappings with `text`, or with `prompt` and `completion`.
        how: One of FORMATS for texts; or a function from a record to a record, for anything else.

    Returns:
        A record each; what has no id gets its number, which is what tasks name it by.

    Raises:
        BadInput: If a record has no text.
        UnknownOption: If there is no such format.

    >>> reformatted([{"id": "q", "text": "A cat, it sat."}], "marks")
    [{'id': 'q', 'text': 'A cat; it sat -'}]
    >>> reformatted([{"prompt": "A cat", "completion": " sat"}], "json")
    [{'prompt': '{"text": "A cat', 'completion': ' sat', 'id': '0'}]
    """
    if isinstance(how, str) and how not in FORMATS:
        raise UnknownOption(
            found=f"the format {how!r}", needed=f"one of: {', '.join(FORMATS)}", do="pick one, or pass a function"
        )
    changed = []
    for number, record in enumerate(records):
        if not isinstance(how, str):
            other = how(copy.deepcopy(record))
            has_id = isinstance(other, Mapping) and isinstance(record, Mapping)
            changed.append({**other, "id": str(record.get("id", number))} if has_id else other)
            continue
        record = {"text": record} if isinstance(record, str) else record
        words = {name: record[name] for name in _WORDS if isinstance(record, Mapping) and isinstance(record.get(name), str)}
        if not words:
            raise BadInput(
                found=f"record {number} without a text, for the format {how}",
                needed="text, or prompt and completion",
                do="pass a function from a record to a record (on the command line file.py:function)",
            )
        changed.append({**record, **FORMATS[how](words), "id": str(record.get("id", number))})
    return changed
