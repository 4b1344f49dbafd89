"""Taking back a change of a store that was stopped, for whoever goes on with something else."""

import os
from pathlib import Path

from whence.store.commitment import remove_commitments
from whence.store.deleted import unlisted_deleted
from whence.store.files import disk_errors, file_sizes, locked
from whence.store.format import shard_stem
from whence.store.opening import open_store
from whence.store.resume import BEFORE, is_growing, listed_files
from whence.store.rewritten import drop_unlisted

__all__ = ["take_back_unfinished"]


def take_back_unfinished(folder: Path) -> None:
    """Make a store what it was before an addition or a deletion that was stopped; nothing changes where there is none.

    Args:
        folder: The store, on a disk.

    Raises:
        BadInput: If another process is changing it.
        StoreCorrupt: If what it was before is not whole.
    """
    with locked(folder):
        if is_growing(folder):
            store = open_store(folder)
            listed = {Path(shard_stem(seal.number)).name for seal in store.sealed}
            with disk_errors(folder):
                for name in file_sizes(folder / "shards"):
                    if name.partition(".")[0] not in listed:
                        (folder / "shards" / name).unlink()
                drop_unlisted(folder, store.files)
                os.replace(folder / BEFORE, folder / "manifest.json")
        with disk_errors(folder):
            for name in unlisted_deleted(folder, listed_files(folder) or {}):
                (folder / name).unlink()
        remove_commitments(folder, listed_files(folder) or {})
