"""What can be refused before a model is loaded: numbers out of range, and what the data or the store has no use for."""

from collections.abc import Sized
from typing import Any

from whence.commands.task_options import TaskOptions
from whence.errors import BadInput
from whence.settings import Damping, Rerank

__all__ = ["check_count", "check_number", "check_question"]


def check_number(flag: str, value: float | None, *, least: float = 1, most: float | None = None, of: str = "") -> None:
    """Refuse a number out of range.

    Args:
        flag: As it was typed.
        value: The number; None was not given.
        least: The smallest that may be.
        most: The largest that may be; None for any.
        of: What `most` is the number of.

    Raises:
        BadInput: If it is out of range.
    """
    if value is None or (value >= least and (most is None or value <= most)):
        return
    needed = f"{least:,} or more" if most is None else f"{least:,} to {most:,}{f' {of}' if of else ''}"
    raise BadInput(found=f"{flag} {value:g}", needed=needed, do="correct it, or leave it out")


def check_count(
    flag: str, value: int | None, records: Any, reading: TaskOptions, *, share: int = 1, of: str = "training examples"
) -> None:
    """Refuse to take more examples than there are.

    Args:
        flag: As it was typed.
        value: How many; None was not given.
        records: The training data.
        reading: How it is read: a long text that is split is several examples, whose number is not known yet.
        share: One so many-th of the examples may be taken at most.
        of: What they are.
    """
    most = max(1, len(records) // share) if isinstance(records, Sized) and reading.long != "split" else None
    check_number(flag, value, most=most, of=of)


def check_question(opened: Any, damping: Damping, second: Rerank | None = None, k: int = 1) -> None:
    """Refuse what a store cannot be asked, before its model is loaded.

    Args:
        opened: The store.
        damping: Of its curvature.
        second: A second stage.
        k: Hits.

    Raises:
        BadInput: If its rows hold no exact curvature for a second stage, or a second store is not there.
    """
    from whence.pipeline.stored.prepared import check_damping
    from whence.store import open_store

    check_damping(opened.blueprint.method, damping)
    if second is None:
        return
    second.rows_kept(k, len(opened))
    if second.by != "exact":
        open_store(second.by)
    elif opened.blueprint.method != "aligned":
        raise BadInput(
            found=f"--rerank exact for a store of {opened.blueprint.method}",
            needed="a store of aligned, whose codes hold EK-FAC and its damping",
            do="name a larger store of the same data instead, or use whence attribute",
        )
