"""What several verbs share: loading the task of a store and its training data, and where tables go."""

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from whence.config import Placement
from whence.errors import BadInput

__all__ = ["TYPED", "Json", "Placed", "check_table_folder", "read_token", "task_of_store", "train_records", "workers_of"]

# The words of the command that runs, for records of what was done.
TYPED: ContextVar[tuple[str, ...]] = ContextVar("typed", default=())
Placed = Annotated[Placement, Parameter(name="*")]
Json = Annotated[bool, Parameter(name="--json", negative="")]


def task_of_store(
    opened: Any,
    store: Path,
    model: str | None,
    placement: Placement = Placement(),
    ranks: Any = None,
) -> Any:
    """The task that a store was built with, loaded from where it was then, or from `model`; in the same type if nothing else is said.

    Raises:
        BadInput: If it is not known where the model is, or it is not there.
    """
    from whence.distributed import Ranks
    from whence.load import load_task

    origin = opened.blueprint.task
    if model is None and "model" not in origin:
        raise BadInput(
            found=f"a store built from Python in {store}",
            needed="to know where its model is",
            do="pass --model, or query it from Python",
        )
    recorded = str(origin.get("model", ""))
    place = Path(recorded.rsplit(":", 1)[0] if ".py:" in recorded else recorded)
    if model is None and place.is_absolute() and not place.exists():
        raise BadInput(
            found=f"no model at {origin['model']}, where it was when {store} was built",
            needed="the same model",
            do="pass --model with the place where it is now",
        )
    if placement.model_dtype == "auto" and "dtype" in origin:
        placement = replace(placement, model_dtype=origin["dtype"])
    kind = origin.get("task", origin["kind"])
    found, _ = load_task(
        model or origin["model"], kind=kind, placement=placement, ranks=ranks or Ranks(), **origin.get("options", {})
    )
    return found


def train_records(opened: Any, store: Path, train: tuple[str, ...]) -> list[Any]:
    """The records that a store was built from, from where they were then, or from where they are said to be now.

    Raises:
        BadInput: If it is not known where they are, or they are not there.
    """
    from whence.load import load_records

    origin = opened.blueprint.task
    recorded = str(origin.get("data", ""))
    place = Path(recorded.rsplit(":", 1)[0] if ".py:" in recorded else recorded)
    if not train and (not recorded or (place.is_absolute() and not place.exists())):
        gone = f"no training data at {recorded}, where it was when {store} was built"
        raise BadInput(
            found=gone if recorded else f"a store in {store} that does not say where its training data is",
            needed="the data that it was built from",
            do="pass --train with the place where it is now",
        )
    return [record for data in train or (recorded,) for record in load_records(data, split=origin.get("split", "train"))]


def check_table_folder(folder: Path, settings: Mapping[str, Any]) -> None:
    """Refuse, before anything long runs, a folder with a table that was made in another way, which would be written over.

    Args:
        folder: Where a table is to go.
        settings: What its scores depend on, as JSON has it; what is written as `settings` of the table's origin.

    Raises:
        BadInput: If there is such a table.
    """
    from whence.evaluate import origin_of_table

    if not (folder / "table.json").exists():
        return
    known = origin_of_table(folder).get("settings")
    mine = json.loads(json.dumps(settings))
    if known == mine:
        return
    names = [] if not isinstance(known, dict) else [name for name in {**mine, **known} if known.get(name) != mine.get(name)]
    told = f"made with other settings ({', '.join(names)})" if names else "that does not say what it was made with"
    raise BadInput(
        found=f"a table in {folder} {told}",
        needed="a new folder, or one with a table that was made in the same way",
        do="choose another folder, or move that one away",
    )


def read_token(path: Path) -> str:
    """The token of a service, from a file: on a command line everyone on the machine could read it.

    Raises:
        BadInput: If the file cannot be read.
    """
    try:
        return path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(found=f"no token in {path}", needed="a text file that holds it", do="check the path") from error


def workers_of(workers: int | None, ray: str | None) -> AbstractContextManager[Any]:
    """The workers that were asked for, on their way, until the block ends; None in it if none were.

    Raises:
        BadInput: If it is not said how many.
    """
    if workers is None and ray is not None:
        raise BadInput(found="--ray without --workers", needed="how many workers", do="add --workers, or leave --ray out")
    if workers is None:
        return nullcontext()
    from whence.workers import Workers

    return Workers(workers, ray=ray)
