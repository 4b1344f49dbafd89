"""Errors by reason, each saying what was found, what was needed and what to do."""

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
]


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
        super().__init__("; ".join(part for part in parts if part))

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
