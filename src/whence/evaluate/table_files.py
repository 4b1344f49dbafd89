"""Score tables on disk: `scores.npy` and `table.json`, so that any program can make or read one."""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from whence.errors import BadInput
from whence.records import ScoreTable
from whence.store import disk_errors, write_json

__all__ = ["load_table", "origin_of_table", "save_table"]

_FORMAT = "whence table 1"
# Of these the scores have a file; parts by unit and token are for looking at, not for judging.
_ARRAYS = {"scores", "parts", "tokens", "weights"}


def save_table(table: ScoreTable, folder: str | Path, *, origin: Mapping[str, Any] | None = None) -> None:
    """Write a table into a folder, float32 in NumPy's format; `table.json` comes last.

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
    folder = Path(folder)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "scores.npy", table.scores.float().cpu().numpy())
    facts = {field.name: getattr(table, field.name) for field in fields(ScoreTable) if field.name not in _ARRAYS}
    write_json(folder / "table.json", {"format": _FORMAT, **facts, **({} if origin is None else {"origin": dict(origin)})})


def origin_of_table(folder: str | Path) -> dict[str, Any]:
    """What a table says of the models, the data and the queries that it was made from; empty if it says nothing.

    Args:
        folder: Of a table that `load_table` reads.
    """
    found = json.loads((Path(folder) / "table.json").read_text("utf-8")).get("origin")
    return found if isinstance(found, dict) else {}


def load_table(folder: str | Path) -> ScoreTable:
    """Read a table, also one that another program wrote.

    Args:
        folder: With `scores.npy`, real numbers (queries, train), positive for proponents, and `table.json`, of which `query_ids`,
            `train_ids` and `method` must be there.

    Returns:
        The table.

    Raises:
        BadInput: If a file is missing or does not fit the other.
    """
    folder = Path(folder)
    try:
        content = json.loads((folder / "table.json").read_text("utf-8"))
        scores = torch.from_numpy(np.load(folder / "scores.npy", allow_pickle=False))
        names = {field.name for field in fields(ScoreTable)} - _ARRAYS
        facts = {"unit": "", **{name: value for name, value in content.items() if name in names}}
        facts |= {name: tuple(facts.get(name, ())) for name in ("query_ids", "train_ids", "tuned_on", "notes")}
        table = ScoreTable(scores, **facts)
    except (OSError, ValueError, TypeError) as error:
        raise BadInput(
            found=f"{folder}, which is no score table ({error})",
            needed="scores.npy (queries, train) and table.json with query_ids, train_ids and method",
            do="check the path, or write the two files",
        ) from error
    if tuple(scores.shape) != (len(table.query_ids), len(table.train_ids)):
        raise BadInput(
            found=f"scores {tuple(scores.shape)} for {len(table.query_ids)} queries and {len(table.train_ids)} examples in {folder}",
            needed="one row per query id, one column per train id",
            do="write the two files again",
        )
    return table
