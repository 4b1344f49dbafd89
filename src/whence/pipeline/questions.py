"""Queries as people pass them, and what an answer keeps of each."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from whence.data import Dataset, Example
from whence.pipeline.inputs import as_dataset, refuse_bare_model
from whence.strict_json import is_plain
from whence.tasks import AbstractTask, records_in

__all__ = ["questions_of"]

# As a long text is named when it is split.
_WINDOW = re.compile(r"(.+)#\d+")


def questions_of(task: AbstractTask, queries: Dataset | Iterable[Any]) -> tuple[Dataset, tuple[dict[str, Any], ...]]:
    """Queries, prepared, and the record of each.

    Args:
        task: Says what a record is.
        queries: As `task.prepare` takes them, or already prepared.

    Returns:
        The dataset; and per query its id, its text or its prompt and completion, and whatever else its record has that JSON holds.
    """
    refuse_bare_model(task)
    if isinstance(queries, Dataset):
        return queries, tuple(_described(example, {}) for example in queries.examples)
    records = list(records_in(queries))
    dataset = as_dataset(task, records)
    if len(records) == len(dataset):
        given: Sequence[Any] = records
    else:  # some were skipped or split
        by_id = {_name(number, record): record for number, record in enumerate(records)}
        given = [by_id.get(example.id, by_id.get(_whole(example.id))) for example in dataset.examples]
    return dataset, tuple(_described(example, record) for example, record in zip(dataset.examples, given, strict=True))


def _described(example: Example, record: Any) -> dict[str, Any]:
    """What is known of a query in plain values, its id first."""
    given = record if isinstance(record, Mapping) else {}
    facts = {"id": example.id, **{str(name): value for name, value in given.items() if name != "id" and is_plain(value)}}
    if not given and example.prompt:
        facts |= {"prompt": example.text[: example.prompt], "completion": example.text[example.prompt :]}
    elif not given and example.text:
        facts["text"] = example.text
    return facts


def _name(number: int, record: Any) -> str:
    name = record.get("id") if isinstance(record, Mapping) else None
    return str(number) if name is None else str(name)


def _whole(name: str) -> str:
    window = _WINDOW.fullmatch(name)
    return name if window is None else window[1]
