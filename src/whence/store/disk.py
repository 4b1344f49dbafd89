"""What a store takes on disk: its rows, their texts, and what all of them share."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from whence.errors import DiskFull
from whence.store.remote import is_remote

__all__ = ["DiskBytes", "enough_disk", "folder_bytes", "size_text"]

# What rows share may be so many times themselves, or so many bytes, before it is said that a store is not the way.
_MUCH_SHARED, _LITTLE_BYTES = 16, 256 << 20


@dataclass(frozen=True, kw_only=True)
class DiskBytes:
    """Bytes of a store on disk, or those that one is expected to take.

    Args:
        row_bytes: Of each row, as it is scored.
        rows: Of the files of rows.
        texts: Of the files with ids and texts of the examples.
        shared: Of everything else: curvature, code, records of the store.
    """

    row_bytes: int
    rows: int
    texts: int
    shared: int

    @property
    def total(self) -> int:
        """Of all files."""
        return self.rows + self.texts + self.shared

    def to_dict(self) -> dict[str, int]:
        """Plain values, as `--json` prints them."""
        return {"rows": self.rows, "texts": self.texts, "shared": self.shared, "total": self.total}

    def __str__(self) -> str:
        text = (
            f"{size_text(self.total)}: {size_text(self.rows)} of rows ({self.row_bytes:,} bytes each), "
            f"{size_text(self.texts)} of their texts and {size_text(self.shared)} shared by all of them"
        )
        if self.shared <= max(_MUCH_SHARED * self.rows, _LITTLE_BYTES):
            return text
        times = self.shared / max(self.rows, 1)
        return f"{text}, {times:,.0f} times the rows; with so few examples attribute gives the scores without a store"


def folder_bytes(folder: Path) -> int:
    """Bytes of all files in a folder on a disk."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def enough_disk(folder: Path, rows: int, row_bytes: int, shared_bytes: int) -> None:
    """Refuse a store that the disk does not hold; of an object store the size is not known.

    Args:
        folder: The store.
        rows: To be written.
        row_bytes: Of each.
        shared_bytes: Of what all rows share.

    Raises:
        DiskFull: If there is less room.
    """
    if is_remote(folder):
        return
    needed, free = rows * row_bytes + shared_bytes, shutil.disk_usage(folder).free
    if needed > free:
        raise DiskFull(
            found=f"{size_text(free)} free at {folder}",
            needed=f"{size_text(needed)} for {rows:,} rows",
            do="free some space, choose another folder, or a smaller rank",
        )


def size_text(size: int) -> str:
    """Bytes for people, in KiB or MiB."""
    return f"{size / 2**20:,.0f} MiB" if size >= 10 << 20 else f"{size / 2**10:,.0f} KiB"
