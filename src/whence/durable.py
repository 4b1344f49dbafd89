"""Files that are either whole or absent: written beside, synced, renamed. All that whence keeps is written through here."""

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from whence.errors import BadInput, DiskFull

__all__ = ["disk_errors", "sync", "unwritable", "write_file"]


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what a disk can refuse into errors that say what to do.

    Yields:
        Nothing.

    Raises:
        DiskFull: If no space is left.
        BadInput: If the folder cannot be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                found=f"no space left for {path}",
                needed="room for the rest of the store",
                do="free some space and run the same command again: finished shards are kept",
            ) from error
        raise BadInput(**unwritable(path, error.strerror or str(error))) from error


def unwritable(path: Path, why: str) -> dict[str, str]:
    """What to say of a file or folder that cannot be written."""
    return {
        "found": f"{path}, which cannot be written ({why})",
        "needed": "a folder that can be created and written",
        "do": "choose another output folder or change its permissions",
    }


def write_file(path: Path, chunks: Iterable[bytes | memoryview]) -> str:
    """Write a file atomically and durably.

    Args:
        path: Where it will be; nothing is there until all is written.
        chunks: Its content.

    Returns:
        SHA-256 of the content.

    Raises:
        OSError: Turned into `DiskFull` or `BadInput` by `disk_errors`.
    """
    digest = hashlib.sha256()
    beside = path.with_name(path.name + ".tmp")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _created(beside)
        mine = os.fstat(file.fileno())
        try:
            with file:
                for chunk in chunks:
                    digest.update(chunk)
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            if not _is_still(beside, mine):
                raise OSError(errno.EBUSY, "another process is writing it")
            os.replace(beside, path)
        except BaseException:
            if _is_still(beside, mine):
                beside.unlink()
            raise
        sync(path.parent)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Have what was written to a file, or which names a folder has, on the disk.

    Raises:
        OSError: If the system cannot.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _created(path: Path) -> IO[bytes]:
    """A new file, never one that was planted there: what a killed process left, or a link, is removed and not written through."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    return open(path, "xb")  # which a link in the way refuses


def _is_still(path: Path, mine: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.lstat(path), mine)
    except OSError:
        return False
