"""The model and data that a store records: loaded where that is only data, and where it is more only if a person said so.

Whoever wrote a store wrote these names, too. A function in a Python file is code, a name on a hub is whatever lies there now, and a relative
path is whatever lies where the command is run. None of them is loaded because a store says so.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from whence.commands.diffusion_options import DrawnOptions, MeasuringOptions
from whence.commands.plain_model import asks_for
from whence.commands.task_options import TaskOptions
from whence.errors import BadInput, StoreCorrupt
from whence.settings import Placement

__all__ = ["Trust", "needs_trust", "recorded_needs_trust", "task_of_store", "train_records"]

Trust = Annotated[bool, Parameter(name="--trust", negative="")]
_PYTHON = re.compile(r"\.py\w?(:|$)", re.IGNORECASE)
_TYPES = ("bfloat16", "float16", "float32", "float64")
# A folder of texts has no more files than the store has rows; others lie beside them.
_FILES_A_ROW, _FILES = 4, 20_000
_OPTIONS = {"long", "max_length", "track", "ignore", "functional", "skip_bad", "labelling", "reference", "beta", "diffusion"}


def task_of_store(
    opened: Any,
    store: Path,
    model: str | None,
    placement: Placement = Placement(),
    ranks: Any = None,
    *,
    trust: bool = False,
    measuring: Mapping[str, Any] = {},
) -> Any:
    """The task that a store was built with, loaded from where it was then, or from `model`; in the same type if nothing else is said.

    Args:
        opened: The store.
        store: Its folder, as it was named.
        model: The model that the person named; None takes the recorded one.
        placement: Where its weights go, and in which type.
        ranks: Connected processes that it is split over, if the placement says so.
        trust: Whether the person trusts what the store records.
        measuring: Of a diffusion model, what the person asks about otherwise than the store records.

    Returns:
        The task.

    Raises:
        BadInput: If it is not known where the model is, it is not there, or it is recorded as something that only a person may name.
        StoreCorrupt: If what is recorded has not the form that a build gives it.
    """
    from whence.distributed import Ranks
    from whence.load import load_task

    origin = _origin(opened, store)
    recorded = origin["model"]
    if model is None and not recorded:
        raise BadInput(
            found=f"a store built from Python in {store}",
            needed="to know where its model is",
            do="pass --model, or query it from Python",
        )
    if model is None:
        _check_there(recorded, f"no model at {recorded}, where it was when {store} was built", "the same model", "--model")
    is_plain = model is None and not trust
    if is_plain:
        _refuse(needs_trust("model", recorded), store, "--model")
    reference = origin["options"].get("reference")
    if reference and not trust:
        _refuse(needs_trust("model", reference), store, "")
    augment = str(origin["options"].get("diffusion", {}).get("augment", ""))
    if ".py" in augment and not trust:
        _refuse(f"the augmentation {augment!r}, Python code that would be run", store, "")
    if measuring:
        _measure(origin, measuring, model or recorded)
    if placement.model_dtype == "auto" and origin["dtype"]:
        placement = replace(placement, model_dtype=origin["dtype"])
    loaded, _ = load_task(
        model or recorded,
        kind=origin["kind"],
        placement=placement,
        ranks=ranks or Ranks(),
        is_plain=is_plain,
        **origin["options"],
    )
    return loaded


def _measure(origin: dict[str, Any], measuring: Mapping[str, Any], model: str) -> None:
    """Put what queries ask about into the options of a diffusion model.

    Raises:
        BadInput: If the store is of another task, or of one that a function makes.
    """
    is_made = ".py:" in model
    if origin["kind"] != "diffusion" or is_made:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in measuring)
        raise BadInput(
            found=f"{flags} for a store of --task {origin['kind']}{' by a function' if is_made else ''}",
            needed="a store that was built with --task diffusion and a pipeline's folder",
            do="leave it out, or set it in the function that makes the task",
        )
    origin["options"]["diffusion"] = {**origin["options"].get("diffusion", {}), **measuring}


def train_records(opened: Any, store: Path, train: tuple[str, ...], *, trust: bool = False) -> list[Any]:
    """The records that a store was built from, from where they were then, or from where they are said to be now.

    Args:
        opened: The store.
        store: Its folder, as it was named.
        train: Where the data is now; empty takes the recorded place.
        trust: Whether the person trusts what the store records.

    Returns:
        The records.

    Raises:
        BadInput: If it is not known where they are, they are not there, or they are recorded as something that only a person may name.
        StoreCorrupt: If what is recorded has not the form that a build gives it.
    """
    from whence.load import load_records

    origin = _origin(opened, store)
    recorded = origin["data"]
    if not train:
        what, needed = f"where it was when {store} was built", "the data that it was built from"
        if not recorded:
            raise BadInput(
                found=f"a store in {store} that does not say where its training data is",
                needed=needed,
                do="pass --train with the place where it is now",
            )
        _check_there(recorded, f"no training data at {recorded}, {what}", needed, "--train")
        if not trust:
            _refuse(needs_trust("data", recorded), store, "--train")
            _check_small(Path(recorded), store, len(opened))
    return [record for data in train or (recorded,) for record in load_records(data, split=origin["split"])]


def recorded_needs_trust(opened: Any, store: Path) -> list[str]:
    """Of the model and the data that a store records, those that are loaded only if a person says so, and why.

    Args:
        opened: The store.
        store: Its folder, as it was named.

    Raises:
        StoreCorrupt: If what is recorded has not the form that a build gives it.
    """
    origin = _origin(opened, store)
    return [why for role in ("model", "data") if origin[role] and (why := needs_trust(role, origin[role]))]


def needs_trust(role: str, name: str) -> str:
    """Why what a store records is not loaded unless a person says so; empty if it is only data.

    Args:
        role: What it is recorded as: "model" or "data".
        name: As it is recorded.

    >>> needs_trust("model", "job.py:make")
    "the model 'job.py:make', Python code that would be run"
    >>> needs_trust("data", "/data/train.jsonl")
    ''
    """
    if _PYTHON.search(name):
        return f"the {role} {name!r}, Python code that would be run"
    if not Path(name).is_absolute():
        return f"the {role} {name!r}, which would be looked up where the command runs and on the hub"
    path = Path(name)
    if path.exists() and not (path.is_file() or path.is_dir()):
        return f"the {role} {name!r}, which is neither a file nor a folder"
    more = asks_for(path) if role == "model" and path.exists() else ""
    return f"the {role} {name!r}, {more}" if more else ""


def _refuse(why: str, store: Path, option: str) -> None:
    """Refuse to load what only a person may name.

    Raises:
        BadInput: If there is a reason to.
    """
    if why:
        raise BadInput(
            found=f"a store in {store} that records {why}",
            needed="you to say so, as anybody can have written the store",
            do=(f"pass {option} with what you mean, or" if option else "pass")
            + " --trust if you trust whoever made this store",
        )


def _origin(opened: Any, store: Path) -> dict[str, Any]:
    """What a store records of its model and data, empty strings for what it does not.

    Raises:
        StoreCorrupt: If it has not the form that a build gives it.
    """
    try:
        return _as_built(opened.blueprint.task)
    except TypeError as error:
        raise StoreCorrupt(
            found=f"a store in {store} that records no model as a build does ({error})",
            needed="what `whence build` writes under task in blueprint.json",
            do="restore the folder from a copy, or build it again",
        ) from error


def _as_built(origin: Mapping[str, Any]) -> dict[str, Any]:
    """What is recorded, each of its type.

    Raises:
        TypeError: If something is not.
    """
    from whence.store import fitted, record_of

    names = ("model", "data", "task", "kind", "split", "dtype")
    as_built: dict[str, Any] = {name: fitted(str, origin.get(name, ""), name) for name in names}
    options = dict(fitted(dict[str, Any], origin.get("options", {}), "options"))
    unknown = sorted(options.keys() - _OPTIONS)
    plain = {name: value for name, value in options.items() if name not in unknown and name != "diffusion"}
    read = record_of(TaskOptions, plain)
    of_diffusion = dict(fitted(dict[str, Any], options.get("diffusion", {}), "diffusion"))
    of_queries = {field.name for field in fields(MeasuringOptions)}
    record_of(MeasuringOptions, {name: value for name, value in of_diffusion.items() if name in of_queries})
    record_of(DrawnOptions, {name: value for name, value in of_diffusion.items() if name not in of_queries})
    wrong = {
        "dtype": as_built["dtype"] not in ("", *_TYPES),
        "max_length": (read.max_length or 1) < 1,
        "beta": read.beta is not None and not 0 < read.beta < float("inf"),
        **dict.fromkeys(unknown, True),
    }
    for name, is_wrong in wrong.items():
        if is_wrong:
            raise TypeError(f"{name} is {(as_built | options)[name]!r}")
    return {**as_built, "kind": as_built["task"] or as_built["kind"], "split": as_built["split"] or "train", "options": options}


def _check_there(recorded: str, missing: str, needed: str, option: str) -> None:
    """Refuse a place that is not there any more.

    Raises:
        BadInput: If it is not.
    """
    path = Path(recorded.rsplit(":", 1)[0] if ".py:" in recorded else recorded)
    if path.is_absolute() and not path.exists():
        raise BadInput(found=missing, needed=needed, do=f"pass {option} with the place where it is now")


def _check_small(path: Path, store: Path, rows: int) -> None:
    """Refuse a recorded folder that holds far more than the store has rows, such as a whole disk.

    Raises:
        BadInput: If it does.
    """
    count, at_most = 0, _FILES + _FILES_A_ROW * rows
    for _, folders, files in os.walk(path):
        count += len(folders) + len(files)
        if count > at_most:
            _refuse(f"the data {str(path)!r}, a folder of more than {at_most:,} files for {rows:,} rows", store, "--train")
