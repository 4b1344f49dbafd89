"""Files that mean something together only, such as the arrays of a bank and the record that says what they are: all new, or all as before.

Files cannot be renamed together. They are written into a folder of their own inside the one that they are for, which gets another name when
it is whole: from then on they count, and are moved to their places. A process that is killed before that has changed nothing; one that is
killed after it leaves a few moves, which the next one to write makes. Whoever reads looks into that folder first.
"""

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from whence.durable import disk_errors, sync, write_file
from whence.errors import BadInput
from whence.plain_files import check_name
from whence.store.files import refuse_linked, sha256_of, write_record

__all__ = ["altered", "array_chunks", "check_set", "new_folder", "path_in_set", "removed_after", "write_set"]

_BEGUN, _WHOLE = ".files.tmp", ".files.whole"


def array_chunks(array: np.ndarray) -> Iterator[bytes | memoryview]:
    """The bytes of an array in NumPy's own format.

    Yields:
        The header, then the numbers, row by row.
    """
    array = np.asarray(array, order="C")
    header = BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    yield header.getvalue()
    if array.size:
        yield array.reshape(-1).view(np.uint8).data


def write_set(folder: Path, parts: Mapping[str, Iterable[bytes | memoryview]], record: str, content: Mapping[str, Any]) -> None:
    """Write files and the record that speaks of them; whoever reads finds all of them or those from before.

    Args:
        folder: Where they go; made if it is not there.
        parts: Content by name.
        record: Name of the record, a JSON file.
        content: What it says; the SHA-256 of the parts are added as `files`.

    Raises:
        DiskFull: If there is no room; what was there is still there.
        BadInput: If the folder cannot be written.
    """
    begun = folder / _BEGUN
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _put_in_place(folder)
        _remove(begun)
        try:
            files = {name: write_file(begun / name, chunks) for name, chunks in parts.items()}
            write_record(begun / record, {**content, "files": files})
        except BaseException:
            _remove(begun)
            raise
        os.rename(begun, folder / _WHOLE)
        sync(folder)
        _put_in_place(folder)


def path_in_set(folder: Path, name: str) -> Path:
    """Where a file that `write_set` wrote is read.

    Raises:
        StoreCorrupt: If a link is where the process that wrote it left its files.
    """
    refuse_linked(folder / _WHOLE)
    path = folder / _WHOLE / name
    return path if os.path.lexists(path) else folder / name


def check_set(folder: Path, files: Mapping[str, str]) -> None:
    """Refuse files that are not those that their record was written with. A record of another program may say nothing of them.

    Args:
        folder: Where they are.
        files: SHA-256 by name, as the record has them.

    Raises:
        BadInput: If one is not.
    """
    for name in altered(folder, files):
        raise BadInput(
            found=f"{name[:80]} in {folder}, which is not the file that was written with its record",
            needed="files that were written together",
            do="restore the folder from a copy, or make it again",
        )


def altered(folder: Path, files: Mapping[str, str]) -> Iterator[str]:
    """Which of some files are missing, cannot be read, or have other bytes; arguments as in `check_set`.

    Yields:
        Names, as the record has them.
    """
    for name, sha256 in files.items():
        try:
            is_same = sha256_of(path_in_set(folder, check_name(name))) == sha256
        except (OSError, ValueError):
            is_same = False
        if not is_same:
            yield name


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Fill a folder that appears when it is whole.

    Args:
        folder: Where it will be; it may be there if it is empty.

    Yields:
        The folder to write into.

    Raises:
        BadInput: If it cannot be written.
    """
    begun = folder.with_name(f".{folder.name}.tmp")
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove(begun)
        begun.mkdir()
        try:
            yield begun
            sync(begun)
            os.rename(begun, folder)
        except BaseException:
            _remove(begun)
            raise
        sync(folder.parent)


@contextlib.contextmanager
def removed_after(folder: Path) -> Iterator[Path]:
    """A folder that is only needed inside the block, and what a killed process left of it is removed before.

    Yields:
        The folder, which is not there yet.
    """
    _remove(folder)
    try:
        yield folder
    finally:
        _remove(folder)


def _put_in_place(folder: Path) -> None:
    """Move what was written whole to where it belongs."""
    whole = folder / _WHOLE
    refuse_linked(whole)
    if not whole.is_dir():
        return
    for path in sorted(whole.iterdir()):
        os.replace(path, folder / path.name)
    sync(folder)
    whole.rmdir()


def _remove(folder: Path) -> None:
    """Remove a folder that a killed process left; of a link only the link."""
    if folder.is_symlink() or folder.is_file():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)
