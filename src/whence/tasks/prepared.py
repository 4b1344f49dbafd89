"""From records to examples: those that cannot be used are counted and named, and all others have the same inputs."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from whence.data import Dataset, Example, Skipped
from whence.errors import BadInput
from whence.tasks.fields import scalar
from whence.tasks.reading import records_in

__all__ = ["SameInputs", "examples_from"]

# A dataset of which so many records cannot be used is not read to its end for the sake of a message.
_ENOUGH_BAD = 100
_NAMED = 5


def examples_from(data: Any, make: Callable[[int, Any], Iterable[Example]], *, skip_bad: bool = False) -> Dataset:
    """A dataset of the examples that its records stand for.

    Args:
        data: See `records_in`.
        make: From a record's number and the record to its examples; raises BadInput for one that cannot be used.
        skip_bad: Leave such records out, with a note of each, instead of refusing the data.

    Returns:
        The dataset.

    Raises:
        BadInput: If records cannot be used, with their ids and how many there are; with `skip_bad`, if none can.
    """
    examples: list[Example] = []
    skipped: list[Skipped] = []
    first: BadInput | None = None
    total = 0
    for number, record in enumerate(records_in(data)):
        total += 1
        try:
            examples.extend(make(number, record))
        except BadInput as error:
            name = _named(number, record)
            if first is None:
                is_told = name == str(number) or repr(name) in error.found
                problem = error.found if is_told else f"{error.found} (id {name!r})"
                first = BadInput(found=problem, needed=error.needed, do=error.do)
            skipped.append(Skipped(name, error.found))
            if not skip_bad and len(skipped) == _ENOUGH_BAD:
                break
    if first is not None and (not skip_bad or not examples):
        raise BadInput(**_unusable(first, skipped, total))
    return Dataset(examples, tuple(skipped))


@dataclass
class SameInputs:
    """Holds the inputs of every example against those of the first: the same names, and whole or real numbers alike.

    A batch is made of the names in its first example, so that a name which only some have would come and go with the batch.
    """

    first: dict[str, str] = field(default_factory=dict)

    def checked(self, number: int, example: Example) -> Example:
        """The example.

        Args:
            number: Of its record, for errors.
            example: The example.

        Raises:
            BadInput: If its inputs are others than the first one's.
        """
        kinds = {name: _kind(value) for name, value in example.fields.items()}
        self.first = self.first or kinds
        if kinds.keys() != self.first.keys():
            raise BadInput(
                found=f"record {number} with the inputs {', '.join(sorted(kinds))}, where the first has {', '.join(sorted(self.first))}",
                needed="the same in every record",
                do="fill them in, or drop them everywhere",
            )
        odd = next((name for name, kind in kinds.items() if kind != self.first[name]), None)
        if odd is not None:
            raise BadInput(
                found=f"record {number} whose {odd!r} is {kinds[odd]}, where the first has {self.first[odd]}",
                needed="one kind of numbers in every record",
                do="convert them, such as to real numbers",
            )
        return example


def _kind(value: Any) -> str:
    """What a field holds, in a word."""
    if isinstance(value, Tensor):
        return "real numbers" if value.is_floating_point() else "complex numbers" if value.is_complex() else "whole numbers"
    words = {"f": "real numbers", "c": "complex numbers", "U": "text", "S": "text", "O": "objects"}
    return words.get(np.asarray(value).dtype.kind, "whole numbers")


def _unusable(first: BadInput, skipped: Sequence[Skipped], total: int) -> dict[str, str]:
    """What to say of data some of whose records cannot be used."""
    count = len(skipped)
    if count == total:
        more = f"; none of {total:,} records can be used" if total > 1 else ""
        return {"found": first.found + more, "needed": first.needed, "do": first.do}
    names = ", ".join(repr(record.id) for record in skipped[:_NAMED]) + (", ..." if count > _NAMED else "")
    of = f"the first {total:,}" if count == _ENOUGH_BAD else f"{total:,}"
    others = "" if count == 1 else f"; {count:,} of {of} records cannot be used: {names}"
    leave = f"pass skip_bad=True to the task (--skip-bad) to leave {'this one' if count == 1 else 'them'} out of {of}"
    return {"found": first.found + others, "needed": first.needed, "do": f"{first.do}; or {leave}"}


def _named(number: int, record: Any) -> str:
    value = scalar(record.get("id")) if isinstance(record, Mapping) else None
    return str(value) if isinstance(value, int | str) and value != "" else str(number)
