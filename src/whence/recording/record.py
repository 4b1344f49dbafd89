"""What `run.json` says, read as a stranger's word: typed, and held against itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whence.errors import StoreCorrupt, StoreMismatch
from whence.plain_files import check_name
from whence.store.files import damaged, read_json, tensor_shapes
from whence.strict_json import fitted, record_of

__all__ = ["VERSION", "check_checkpoints", "read_run"]

VERSION = 1
_MOST_RANKS = 1 << 20
_NUMBERS = ("momentum", "dampening", "weight_decay", "r", "weight_lr_power", "matrix_eps")


@dataclass(frozen=True)
class _Checkpoint:
    step: int
    file: str
    sha256: str


@dataclass(frozen=True)
class _Log:
    start: int
    stop: int
    file: str
    sha256: str


@dataclass(frozen=True)
class _Settings:
    optimizer: str
    module: str
    groups: tuple[dict[str, Any], ...]
    start: int = 0


@dataclass(frozen=True)
class _Stage:
    name: str
    start: int
    is_new: bool = False


@dataclass(frozen=True)
class _Loss:
    step: int
    loss: float


@dataclass(frozen=True)
class _Rules:
    start: int
    groups: tuple[tuple[str, ...] | None, ...]
    states: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class _Run:
    version: int
    finished: bool
    steps: int
    checkpoints: tuple[_Checkpoint, ...]
    logs: tuple[_Log, ...]
    settings: tuple[_Settings, ...]
    stages: tuple[_Stage, ...]
    losses: tuple[_Loss, ...] = ()
    rules: tuple[_Rules, ...] = ()
    unrestored: str = ""
    bases: tuple[_Checkpoint, ...] = ()
    ranks: int = 1
    skipped: int = 0
    seed: int | None = None
    data: str | None = None
    fingerprint: str | None = None
    structure: dict[str, Any] | None = None
    frozen: Any = None


def read_run(folder: Path, do: str) -> dict[str, Any]:
    """What a run's folder says of the run.

    Args:
        folder: The run's, or that of one of its processes.
        do: What to do about a run of another version.

    Returns:
        The content of `run.json`.

    Raises:
        StoreCorrupt: If it is missing, or is not what a recorder writes.
        StoreMismatch: If another version wrote it.
    """
    path = folder / "run.json"
    content = read_json(path)
    version = content.get("version") if isinstance(content, dict) else None
    if isinstance(content, dict) and (type(version) is not int or version != VERSION):
        raise StoreMismatch(found=f"a run of version {str(version)[:40]} in {folder}", needed=f"version {VERSION}", do=do)
    try:
        record = record_of(_Run, content)
        for name in (*(entry.file for entry in (*record.checkpoints, *record.bases)), *(log.file for log in record.logs)):
            check_name(name)
        for settings in record.settings:
            for group in settings.groups:
                _check_group(group)
    except (KeyError, TypeError, ValueError) as error:
        raise StoreCorrupt(**damaged(path, f"it is incomplete: {error}")) from error
    why = _impossible(record)
    if why:
        raise StoreCorrupt(**damaged(path, why))
    return content


def check_checkpoints(folder: Path, record: Mapping[str, Any], do: str) -> None:
    """Refuse checkpoints that are not of one model, by their headers; the bytes are held against their sums when they are read.

    Args:
        folder: Of the run.
        record: What `read_run` gave.
        do: What to do where they are not.

    Raises:
        StoreCorrupt: If there are none, a file is missing, or one has other weights than the last.
    """
    why, path = "it has no checkpoints", folder / "run.json"
    shapes = []
    for entry in record["checkpoints"]:
        path = folder / entry["file"]
        try:
            tensors = tensor_shapes(path)
        except StoreCorrupt as error:
            raise StoreCorrupt(found=error.found, needed=error.needed, do=do) from error
        shapes.append({name: shape for name, (shape, _) in tensors.items() if name.startswith("model.")})
        why = ""
    if not why and any(shapes[-1].get(name) != shape for each in shapes for name, shape in each.items()):
        why = "it has other weights than an earlier checkpoint"
    used = {f"model.{name}" for entry in record["settings"] for group in entry["groups"] for name in group["parameters"]}
    if not why and used - shapes[-1].keys():
        why = f"it has no {min(used - shapes[-1].keys())[:80]!r}, which was trained"
    if why:
        raise StoreCorrupt(**{**damaged(path, why), "do": do})


def _check_group(group: dict[str, Any]) -> None:
    """Refuse settings of a group of parameters that no optimizer has.

    Raises:
        KeyError: If its parameters are not named.
        TypeError: If one has another type.
    """
    fitted(list[str], group["parameters"], "parameters")
    for name in _NUMBERS:
        fitted(float, group.get(name, 0.0), name)
    fitted(float | list[float | None], group.get("eps", 0.0), "eps")  # Adafactor has two
    if "betas" in group:
        fitted(tuple[float, float], group["betas"], "betas")


def _impossible(record: _Run) -> str:
    """What no recorder writes; empty if there is nothing."""
    if not record.steps >= 0 or not 1 <= record.ranks <= _MOST_RANKS:
        return f"{record.steps:,} steps of {record.ranks:,} processes"
    if not _follow([log.start for log in record.logs], [log.stop for log in record.logs], record.steps):
        return f"its logs are not those of {record.steps:,} steps"
    steps = [entry.step for entry in record.checkpoints]
    if steps and (steps[0] != 0 or record.finished and steps[-1] != record.steps):  # only the first process keeps any
        return "its checkpoints are not those of a whole run"
    if any(not 0 <= before < after for before, after in zip(steps, steps[1:], strict=False)):
        return "its checkpoints are not in order"
    starts = [settings.start for settings in record.settings]
    if record.steps and (
        not starts or starts[0] != 0 or any(before >= after for before, after in zip(starts, starts[1:], strict=False))
    ):
        return "its settings do not begin with the first step, or are not in order"
    if any(not settings.groups for settings in record.settings):
        return "an optimizer without parameters"
    if any(not 0 <= stage.start <= record.steps for stage in record.stages):
        return "a stage that begins outside of the run"
    return ""


def _follow(starts: Sequence[int], stops: Sequence[int], last: int) -> bool:
    """Whether pieces follow each other from 0 to the last step."""
    return [0, *stops[:-1]] == list(starts) and stops[-1] == last if stops else last == 0
