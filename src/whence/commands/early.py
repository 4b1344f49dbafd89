"""What can be refused before a model is loaded: numbers out of range, and what the data or the store has no use for."""

from collections.abc import Sized
from pathlib import Path
from typing import Any

from whence.commands.task_options import TaskOptions
from whence.errors import BadInput
from whence.settings import Damping, Rerank

__all__ = [
    "SINGLE",
    "check_along",
    "check_checkpoint",
    "check_count",
    "check_number",
    "check_question",
    "check_run",
    "is_along_folder",
]

SINGLE = "a single store: those along a run are only scored, each by a scan"
"""What an option is for that stores along a run have no use for."""


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


def check_along(run: Path | None, checkpoints: int | None) -> None:
    """Refuse checkpoints that are none of a run, or no number of them.

    Args:
        run: Folder of a recorded run.
        checkpoints: Of it, per stage.

    Raises:
        BadInput: If they are.
    """
    if checkpoints is not None and run is None:
        raise BadInput(found="--checkpoints without --run", needed="the run whose checkpoints they are", do="add --run")
    check_number("--checkpoints", checkpoints)


def is_along_folder(store: Path) -> bool:
    """Whether a folder has stores along a recorded run, which are asked together."""
    from whence.pipeline.through.along_record import is_along

    return is_along(store)


def check_run(store: Path, run: Path | None) -> None:
    """Refuse the place of a run for a store that is not along one.

    Args:
        store: What is asked.
        run: Where the run is said to be.

    Raises:
        BadInput: If the store is not along a run.
    """
    if run is not None and not is_along_folder(store):
        raise BadInput(
            found=f"--run for the store {store}",
            needed="stores along a recorded run, as `whence build --run` makes them",
            do="leave it out, or check the path",
        )


def check_checkpoint(opened: Any, task: Any) -> None:
    """Refuse to ask the store of one checkpoint of a run with other weights, such as those that the run ended with.

    Args:
        opened: The store.
        task: The model.

    Raises:
        BadInput: If they are others.
    """
    run = opened.blueprint.task.get("run")
    if run and opened.blueprint.model != task.weights:
        step = run.get("step") if isinstance(run, dict) else run
        raise BadInput(
            found=f"the store of a run's weights after {step} steps in {opened.folder}, and a model with others",
            needed="a model with those weights, or all stores of that run together",
            do=f"ask {opened.folder.parent}, or pass --model with such a model",
        )


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
