"""Whose an example is: the source of every training example, and the line of a report it counts on."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from whence.errors import BadInput

__all__ = ["LineKind", "Lines", "lines_of", "named_sources", "whole_of"]

# A named source, unknown ones, what the robust rule withholds, what no share is given for being too small, and what nothing raised.
LineKind = Literal["source", "unknown", "withheld", "noise", "none"]
_WINDOW = re.compile(r"(.+)#\d+")


@dataclass(frozen=True)
class Lines:
    """The lines of a report, and which of them each example counts on.

    The sources come first, by name; the last three lines, or four with the robust rule, are for what has no source.

    Args:
        names: Of all lines.
        kinds: "source", "unknown", "withheld", "noise" or "none", per line.
        examples: Training examples of each line.
        of_examples: Number of the line of each example, shape (N,).
        is_listed: Whether the sources mention it, shape (N,).
    """

    names: tuple[str, ...]
    kinds: tuple[LineKind, ...]
    examples: tuple[int, ...]
    of_examples: np.ndarray
    is_listed: np.ndarray

    @property
    def unlisted(self) -> int:
        """How many examples the sources do not mention."""
        return int((~self.is_listed).sum())

    @property
    def withheld(self) -> int:
        """Number of the line for what the robust rule pays to nobody."""
        return self.kinds.index("withheld")

    @property
    def noise(self) -> int:
        """Number of the line for scores below the noise floor."""
        return len(self.names) - 2

    @property
    def none(self) -> int:
        """Number of the line for queries that nothing speaks for."""
        return len(self.names) - 1

    def listed(self, train_ids: Sequence[str]) -> dict[str, str]:
        """By id the source that each listed example counts for, empty for unknown: `lines_of` makes the same lines from it."""
        named = [name if kind == "source" else "" for name, kind in zip(self.names, self.kinds, strict=True)]
        lines = zip(train_ids, self.of_examples.tolist(), self.is_listed.tolist(), strict=True)
        return {name: named[line] for name, line, is_listed in lines if is_listed}


def named_sources(records: Iterable[Any], by: str = "source") -> dict[str, str]:
    """Whose each training example is, from a field of the records.

    >>> named_sources([{"id": "a", "licence": "MIT"}, {"id": "b"}], by="licence")
    {'a': 'MIT', 'b': ''}

    Args:
        records: Mappings, as `whence.build` takes them; without an `id`, a record is named by its number.
        by: The field: source, author, licence; "id" makes every record a source of its own.

    Returns:
        By id the name of the source, empty where the record has none.

    Raises:
        BadInput: If a record is no mapping, two have one id, a value is not one name, or no record has the field.
    """
    source_of: dict[str, str] = {}
    for number, record in enumerate(records):
        if not isinstance(record, Mapping):
            raise BadInput(
                found=f"record {number}, a {type(record).__name__}",
                needed="a mapping with the field of its source",
                do="pass sources by id instead",
            )
        name = str(record.get("id", number))
        value = name if by == "id" else record.get(by)
        if name in source_of:
            raise BadInput(found=f"two records with the id {name!r}", needed="every id once", do="make the ids unique")
        if isinstance(value, Mapping | list | tuple | set):
            raise BadInput(
                found=f"several values in the field {by!r} of {name!r}",
                needed="one name, since it is not said how they share",
                do="join them into one name, or choose another field",
            )
        source_of[name] = "" if value is None else str(value).strip()
    if not any(source_of.values()):
        raise BadInput(
            found=f"no record with the field {by!r}, of {len(source_of):,}",
            needed="a field that says whose an example is",
            do="name one that is there",
        )
    return source_of


def whole_of(name: str) -> str | None:
    """The id of the text that an example is a part of, such as "book" for "book#3"; None where it is no part."""
    window = _WINDOW.fullmatch(name)
    return None if window is None else window[1]


def lines_of(
    train_ids: Sequence[str], sources: Mapping[str, str], others: Iterable[str] = (), *, robust: bool = False
) -> Lines:
    """Sort training examples into lines.

    An id such as "book#3", which a long text gets when it is split, counts for "book" unless it is listed itself.

    Args:
        train_ids: Of the examples, in the table's order.
        sources: By id the name of its source, empty for unknown.
        others: Names that get a line even without an example.
        robust: Whether there is a line for what the robust rule withholds.

    Returns:
        The lines.

    Raises:
        BadInput: If no example has a known source.
    """
    owners = [sources[name] if name in sources else sources.get(whole_of(name) or name) for name in train_ids]
    names = sorted({owner for owner in owners if owner} | set(others))
    if not any(owners):
        raise BadInput(
            found=f"no source for any of the {len(train_ids):,} training examples, such as {train_ids[0]!r}",
            needed=f"sources by the ids of the table; these are by ids such as {next(iter(sources), '')!r}",
            do="pass the records that the table was made from",
        )
    number_of = {name: number for number, name in enumerate(names)}
    of_examples = np.array([number_of[owner] if owner else len(names) for owner in owners], dtype=np.int64)
    rest: dict[LineKind, str] = {"unknown": "unknown source"}
    rest |= {"withheld": "withheld by the robust rule"} if robust else {}
    rest |= {"noise": "below the noise floor", "none": "no proponents"}
    kinds: list[LineKind] = ["source"] * len(names)
    counts = np.bincount(of_examples, minlength=len(names) + len(rest))
    return Lines(
        (*names, *rest.values()),
        (*kinds, *rest),
        tuple(counts.tolist()),
        of_examples,
        np.array([owner is not None for owner in owners]),
    )
