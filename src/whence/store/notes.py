"""Which files of a store had their sealed bytes when they were last read: noted in the user's cache, so that they need not be read again.

A note holds for one file in one place, by its inode and times of change (`SealedFiles.check`). A store that was copied or moved has none.
"""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from whence.distributed import Ranks
from whence.errors import WhenceError
from whence.plain_files import read_plain
from whence.store.cache import note_path
from whence.store.files import write_bytes
from whence.strict_json import parse_json

__all__ = ["read_notes", "write_notes"]


def read_notes(folder: Path, ranks: Ranks) -> dict[str, Any]:
    """What is noted of a store's files, by name; empty if nothing is, or it cannot be read.

    Args:
        folder: The store.
        ranks: Processes that check a part each, and note it each in a file of its own.
    """
    path = _path(folder, ranks)
    try:
        notes = {} if path is None else parse_json(read_plain(path))
    except (OSError, ValueError):
        return {}
    return notes if isinstance(notes, dict) else {}


def write_notes(folder: Path, ranks: Ranks, notes: Mapping[str, Any]) -> None:
    """Note what was found; where nothing can be written everything is checked every time."""
    path = _path(folder, ranks)
    if path is not None:
        with contextlib.suppress(WhenceError):
            write_bytes(path, [json.dumps(notes, separators=(",", ":"), sort_keys=True).encode()])


def _path(folder: Path, ranks: Ranks) -> Path | None:
    return note_path(folder, "" if ranks.count == 1 else f"{ranks.rank}-of-{ranks.count}")
