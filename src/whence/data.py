"""Datasets with stable ids, a fingerprint, and length-bucketed batches."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from whence.errors import BadInput

__all__ = ["Dataset", "Example", "Skipped", "batches", "digest_of", "skipped_note", "spread_places"]

# Skipped records that a note names one by one.
_NAMED = 20


@dataclass(frozen=True)
class Example:
    """One training example or query, ready for the model.

    Args:
        id: Stable id, unique in its dataset.
        fields: What the task's collate function takes: arrays by name.
        length: Positions it costs (tokens of a text); batches are packed by it.
        source: Where it comes from, for people and for shares per source.
        text: Its text, if it has one.
        span: Characters of the source document that the text covers.
        prompt: How many characters at the start of `text` are given, not scored.
        token_spans: Characters of `text` that each token covers, shape (length, 2); None if not known.
        scored: Characters of `text` that are scored, where that is not everything after the prompt: several turns of a conversation.
        image: Path of its image, if it has one in a file.
    """

    id: str
    fields: Mapping[str, Any]
    length: int = 1
    source: str = ""
    text: str = ""
    span: tuple[int, int] | None = None
    prompt: int = 0
    # An array, not tuples: a corpus has many tokens, and these are a twentieth of the size.
    token_spans: np.ndarray | None = field(default=None, repr=False)
    scored: tuple[tuple[int, int], ...] = ()
    image: str = ""

    @property
    def digest(self) -> bytes:
        """Of its id and content."""
        return digest_of(self.id, *(part for item in sorted(self.fields.items()) for part in item))


@dataclass(frozen=True)
class Skipped:
    """A record that could not be used and was left out, because the task was told to (`skip_bad`).

    Args:
        id: Its id, or its number where it has none.
        reason: What was found in it.
    """

    id: str
    reason: str


@dataclass(frozen=True)
class Dataset:
    """Examples in a fixed order, each with a stable id.

    Args:
        examples: The examples.
        skipped: Records that were left out, in order.

    Raises:
        BadInput: If it is empty or two examples share an id.
    """

    examples: Sequence[Example]
    skipped: tuple[Skipped, ...] = ()

    def __post_init__(self):
        if not self.examples:
            raise BadInput(found="an empty dataset", needed="at least one example", do="check the path and the field names")
        seen: set[str] = set()
        for example in self.examples:
            if example.id in seen:
                raise BadInput(
                    found=f"two examples with the id {example.id!r}",
                    needed="a stable id of its own for every example",
                    do="make the ids unique, or leave them out to number the examples in order",
                )
            seen.add(example.id)

    def __len__(self) -> int:
        return len(self.examples)

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """Ids in order."""
        return tuple(example.id for example in self.examples)

    def spread(self, count: int) -> "Dataset":
        """So many of the examples at most, evenly over all of them."""
        return Dataset([self.examples[index] for index in spread_places(len(self), count)])

    @cached_property
    def fingerprint(self) -> str:
        """Digest of ids and contents in order: equal exactly when the examples are."""
        digest = hashlib.sha256()
        for example in self.examples:
            digest.update(example.digest)
        return digest.hexdigest()


def spread_places(total: int, count: int) -> list[int]:
    """So many places of a sequence at most, evenly over all of it.

    >>> spread_places(10, 4)
    [0, 2, 5, 7]
    """
    count = min(count, total)
    return [index * total // count for index in range(count)]


def skipped_note(what: str, skipped: Sequence[Skipped]) -> tuple[str, ...]:
    """What a reader of scores has to know of records that were left out.

    Args:
        what: What they would have been, such as "training records".
        skipped: The records.

    Returns:
        One line, or none if there are no such records.

    >>> skipped_note("queries", [Skipped("q7", "record 7 without a text")])
    ("1 queries that cannot be used were left out: 'q7' (record 7 without a text)",)
    """
    if not skipped:
        return ()
    names = ", ".join(f"{record.id!r} ({record.reason})" for record in skipped[:_NAMED])
    more = f" and {len(skipped) - _NAMED:,} more" if len(skipped) > _NAMED else ""
    return (f"{len(skipped):,} {what} that cannot be used were left out: {names}{more}",)


def digest_of(*parts: Any) -> bytes:
    """SHA-256 over a sequence of strings, numbers, None and arrays, each framed by its type and length.

    Raises:
        BadInput: If a part is none of these.
    """
    digest = hashlib.sha256()
    for part in parts:
        if part is None or isinstance(part, str | int | float | bool):
            kind, content = type(part).__name__, str(part).encode()
        else:
            if isinstance(part, torch.Tensor) and part.dtype == torch.bfloat16:
                part = part.view(torch.int16)
            try:
                array = np.ascontiguousarray(part)
            except ValueError:  # lists of different lengths
                array = np.asarray(None)
            if array.dtype.hasobject:
                raise BadInput(
                    found=f"a field of type {type(part).__name__}",
                    needed="arrays, tensors, numbers or strings",
                    do="convert the field, or leave it out of the record",
                )
            kind, content = f"{array.dtype.str}{array.shape}", array.tobytes()
        digest.update(f"{kind}:{len(content)}:".encode())
        digest.update(content)
    return digest.digest()


def batches(lengths: Sequence[int], *, max_positions: int, max_examples: int = 256) -> Iterator[list[int]]:
    """Indices packed by length, so that little is spent on padding.

    Longest first: a batch too large for memory shows at the start. A batch holds at most `max_positions` positions,
    padding included, but always at least one example. The plan depends on nothing but the arguments.

    Yields:
        Lists of indices into `lengths`, each index once.

    >>> list(batches([3, 9, 3, 2], max_positions=9))
    [[1], [0, 2, 3]]
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    batch: list[int] = []
    for index in order:
        longest = lengths[batch[0]] if batch else 0
        if batch and (longest * (len(batch) + 1) > max_positions or len(batch) == max_examples):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
