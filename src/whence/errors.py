"""Errors by reason, each saying what was found, what was needed and what to do."""

import re

__all__ = [
    "BadInput",
    "DiskFull",
    "NonFinite",
    "OutOfMemory",
    "RankLost",
    "StoreChanged",
    "StoreCorrupt",
    "StoreMismatch",
    "UnknownOption",
    "Unsupported",
    "WhenceError",
    "WorkerLost",
    "first_line",
    "is_question",
    "printable",
]

# Escape sequences and other controls, marks that turn the reading direction, line breaks of Unicode, and halves of characters.
_STEERING = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u061c\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """A text that cannot steer a terminal: controls, marks that turn the reading direction and halves of characters are replaced."""
    return _STEERING.sub("\N{REPLACEMENT CHARACTER}", text)


def first_line(error: Exception) -> str:
    """What another library says, at most 160 characters of its first line; the kind of error where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def is_question(text: str) -> bool:
    """Whether somebody wrote what they want to know, where a name of a file, a folder or a store is read.

    >>> is_question("Why is the sky blue?"), is_question("data/train.jsonl")
    (True, False)
    """
    words = text.split()
    return len(words) > 2 or (len(words) > 1 and text.rstrip().endswith(("?", ".", "!")))


class WhenceError(Exception):
    """A failure that whence understands. The command line prints it as one line and exits with status 2.

    Args:
        found: What is there.
        needed: What was needed instead; may be empty when `found` says it all.
        do: The way out.

    >>> print(WhenceError(found="3 labels for 4 rows", needed="one label per row", do="check the file"))
    found 3 labels for 4 rows; needed one label per row; do this: check the file
    """

    def __init__(self, *, found: str, needed: str = "", do: str):
        self.found, self.needed, self.do = found, needed, do
        parts = [f"found {found}", f"needed {needed}" if needed else "", f"do this: {do}"]
        super().__init__(printable("; ".join(part for part in parts if part)))

    def __reduce__(self):
        return _rebuild, (type(self), self.found, self.needed, self.do)


def _rebuild(kind: type[WhenceError], found: str, needed: str, do: str) -> WhenceError:
    return kind(found=found, needed=needed, do=do)


class BadInput(WhenceError):
    """The user's model, data, folder or argument cannot be used as it is."""


class UnknownOption(WhenceError):
    """A name that is not in the table it should come from."""


class Unsupported(WhenceError):
    """A layer, loss or model that whence cannot attribute as asked."""


class StoreMismatch(WhenceError):
    """A store that belongs to another model, tokenizer, dataset, method or version."""


class StoreCorrupt(WhenceError):
    """A store whose bytes are not those that were written."""


class StoreChanged(WhenceError):
    """A store that was changed by somebody else while it was open."""


class NonFinite(WhenceError):
    """A NaN or an infinity, with the place that made it."""


class OutOfMemory(WhenceError):
    """Even the smallest batch does not fit."""


class RankLost(WhenceError):
    """Another process of the same job stopped before its part was done."""


class WorkerLost(WhenceError):
    """Workers ended again and again, at their start or with the same part of a scan."""


class DiskFull(WhenceError):
    """The disk does not hold what the step has to write."""
