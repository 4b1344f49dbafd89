"""The user's cache folder: what a reader notes about a store is kept there, never in the store."""

import hashlib
import os
import sys
from pathlib import Path

__all__ = ["cache_folder", "note_path"]


def cache_folder() -> Path | None:
    """Where notes are kept; it may be deleted at any time.

    `WHENCE_CACHE_DIR` if that is set, else `whence` in XDG_CACHE_HOME, in ~/Library/Caches on a Mac, or in ~/.cache.

    Returns:
        The folder, which may not be there yet; None where there is no home.
    """
    if chosen := os.environ.get("WHENCE_CACHE_DIR"):
        return Path(chosen).absolute()
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):  # others are to be ignored, says the XDG specification
        return Path(base) / "whence"
    try:
        home = Path.home()
    except RuntimeError:
        return None
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "whence"


def note_path(folder: Path, part: str = "") -> Path | None:
    """The file for what is noted about a store.

    Args:
        folder: The store, a local folder; links to it lead to one and the same note.
        part: Of the store, where several processes note a part each.

    Returns:
        The file, which may not be there; None where there is no cache.
    """
    cache = cache_folder()
    if cache is None:
        return None
    name = hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:32]
    return cache / "verified" / f"{name}{f'-{part}' if part else ''}.json"
