"""Score tables on disk: `scores.npy` and `table.json`, so that any program can make or read one."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from whence.errors import BadInput, StoreCorrupt
from whence.records import ScoreTable, Values, values_by_unit
from whence.store import read_array, read_json, record_of
from whence.store.file_sets import array_chunks, check_set, path_in_set, write_set

__all__ = ["load_table", "origin_of_table", "save_table"]

_FORMAT = "whence table 1"
# Of these the scores have a file; parts by unit and token are for looking at, not for judging.
_ARRAYS = {"scores", "parts", "tokens", "weights"}


@dataclass(frozen=True)
class _Record:
    """What `table.json` holds; see `ScoreTable`."""

    query_ids: tuple[str, ...]
    train_ids: tuple[str, ...]
    method: str
    unit: str = ""
    notes: tuple[str, ...] = ()
    tuned_on: tuple[str, ...] = ()
    bytes_per_example: float | None = None
    seconds: float | None = None
    provenance: dict[str, str] = field(default_factory=dict)
    is_weighted: bool = False
    values: Values | None = None
    origin: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)


def save_table(table: ScoreTable, folder: str | Path, *, origin: Mapping[str, Any] | None = None) -> None:
    """Write a table into a folder, float32 in NumPy's format; one that is there is replaced as a whole or not at all.

    Args:
        table: The table.
        folder: Made if it is not there.
        origin: What the table was made from, for `origin_of_table`: digests of the models, fingerprints of data and queries.

    Raises:
        BadInput: If its weights are not multiplied in, so that its numbers are no scores.
    """
    if table.weights is not None:
        raise BadInput(
            found=f"a table of {table.method} with weights that are not multiplied in",
            needed="scores",
            do="add it to an ensemble and save its table, or make it with weighted=True",
        )
    scores = table.scores.float().cpu().numpy()
    facts = {field.name: getattr(table, field.name) for field in fields(ScoreTable) if field.name not in _ARRAYS}
    content = {"format": _FORMAT, **facts, **({} if origin is None else {"origin": dict(origin)})}
    write_set(Path(folder), {"scores.npy": array_chunks(scores)}, "table.json", content)


def origin_of_table(folder: str | Path) -> dict[str, Any]:
    """What a table says of the models, the data and the queries that it was made from; empty if it says nothing.

    Args:
        folder: Of a table that `load_table` reads.
    """
    return dict(_read(Path(folder)).origin)


def load_table(folder: str | Path) -> ScoreTable:
    """Read a table, also one that another program wrote.

    Args:
        folder: With `scores.npy`, real numbers (queries, train), positive for proponents, and `table.json`, of which `query_ids`,
            `train_ids` and `method` must be there. Without `values`, which says what the numbers are, their unit does; those of a unit that
            whence itself does not use are scores.

    Returns:
        The table.

    Raises:
        BadInput: If a file is missing or does not fit the other.
    """
    folder = Path(folder)
    recorded = _read(folder)
    try:
        scores = read_array(path_in_set(folder, "scores.npy"))
    except StoreCorrupt as error:
        raise BadInput(**_no_table(folder, error.found)) from error
    if tuple(scores.shape) != (len(recorded.query_ids), len(recorded.train_ids)):
        raise BadInput(
            found=f"scores {tuple(scores.shape)} for {len(recorded.query_ids)} queries and {len(recorded.train_ids)} examples in {folder}",
            needed="one row per query id, one column per train id",
            do="write the two files again",
        )
    check_set(folder, recorded.files)
    if not scores.is_floating_point():
        scores = scores.double()
    facts = {field.name: getattr(recorded, field.name) for field in fields(ScoreTable) if field.name not in _ARRAYS}
    return ScoreTable(scores, **{**facts, "values": recorded.values or values_by_unit(recorded.unit)})


def _read(folder: Path) -> _Record:
    """What `table.json` says.

    Raises:
        BadInput: If it is missing, or says something else.
    """
    path = path_in_set(folder, "table.json")
    try:
        content = read_json(path)
        names = {field.name for field in fields(_Record)}
        # Another program may have more to say.
        return record_of(_Record, {name: value for name, value in dict(content).items() if name in names})
    except StoreCorrupt as error:
        raise BadInput(**_no_table(folder, error.found)) from error
    except KeyError as error:
        raise BadInput(**_no_table(folder, f"table.json has no {error}")) from error
    except (TypeError, ValueError) as error:
        raise BadInput(**_no_table(folder, str(error))) from error


def _no_table(folder: Path, why: str) -> dict[str, str]:
    return {
        "found": f"{folder}, which is no score table ({why})",
        "needed": "scores.npy (queries, train) and table.json with query_ids, train_ids and method",
        "do": "check the path, or write the two files",
    }
