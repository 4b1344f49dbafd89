"""Two folders that change places in one step, so that nobody finds neither."""

import ctypes
import os
import sys
import tempfile
from pathlib import Path

from whence.durable import disk_errors, sync
from whence.errors import BadInput

__all__ = ["check_exchange", "exchange_folders"]

# Of linux/fs.h and of sys/stdio.h of macOS.
_RENAME_EXCHANGE, _RENAME_SWAP = 2, 2
_HERE = -100  # AT_FDCWD: paths are from the current folder


def exchange_folders(left: Path, right: Path) -> None:
    """Have two folders of one file system change names: whoever looks finds the one or the other under each name, never nothing.

    Args:
        left: A folder.
        right: Another one.

    Raises:
        OSError: If the system or the file system cannot.
    """
    library = ctypes.CDLL(None, use_errno=True)
    paths = os.fsencode(left), os.fsencode(right)
    if sys.platform == "darwin":
        failed = library.renamex_np(*paths, ctypes.c_uint(_RENAME_SWAP))
    else:
        failed = library.renameat2(_HERE, paths[0], _HERE, paths[1], ctypes.c_uint(_RENAME_EXCHANGE))
    if failed:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(left))
    for folder in {left.parent, right.parent}:
        sync(folder)


def check_exchange(folder: Path, other: Path) -> None:
    """Refuse folders that cannot change places, before hours of work that would end with it.

    Args:
        folder: One of them.
        other: Another one beside it, in which two empty ones are made for a trial, and removed.

    Raises:
        BadInput: If they cannot.
    """
    with disk_errors(other), tempfile.TemporaryDirectory(dir=other, prefix=".exchange-") as scratch:
        left, right = Path(scratch, "left"), Path(scratch, "right")
        left.mkdir()
        right.mkdir()
        try:
            why = f"{folder} is a file system of its own" if folder.stat().st_dev != other.stat().st_dev else ""
            exchange_folders(left, right)
        except (OSError, AttributeError) as error:  # a library without the call
            why = str(error)
        if why:
            raise BadInput(
                found=f"two folders in {folder.parent} that cannot change places ({why})",
                needed="a file system on which they can (ext4, XFS, Btrfs, APFS), so that the store is never missing",
                do="build a new store into another folder, which is what a refit makes",
            )
