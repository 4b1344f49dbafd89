"""Files that are either whole or absent: written beside, synced, renamed. All that whence keeps is written through here.

A file of lines that only grows is the one exception: a line of it is whole or, after a kill, cut off at the end, and then goes.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from whence.errors import BadInput, DiskFull

__all__ = ["AppendedLines", "disk_errors", "sync", "unwritable", "write_file"]

_BLOCK_BYTES = 1 << 20


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


def write_file(path: Path, chunks: Iterable[bytes | memoryview], *, mode: int | None = None) -> str:
    """Write a file atomically and durably.

    Args:
        path: Where it will be; nothing is there until all is written.
        chunks: Its content.
        mode: Who may read and write it; None for whom the process's umask lets.

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
                if mode is not None:  # before anything is in it
                    os.fchmod(file.fileno(), mode)
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


class AppendedLines:
    """A file of lines that only grows, by one process at a time.

    A process that is killed while it appends leaves whole lines and perhaps the beginning of one; that beginning is removed when the file is
    opened to be appended to. What `append` has returned from is on the disk, unless it was told that this may wait for `sync`.

    Args:
        path: The file; made, readable by its owner only, if it is not there.

    Raises:
        BadInput: If it cannot be written, or another process appends to it.
    """

    def __init__(self, path: Path):
        self.path = path
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            self.file = os.open(path, flags, 0o600)
            try:
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self.size = self._whole_bytes()
                self.torn = os.fstat(self.file).st_size - self.size
                if self.torn:
                    os.ftruncate(self.file, self.size)
                os.fsync(self.file)
                sync(path.parent)
                self.synced = self.size
            except OSError as error:
                os.close(self.file)
                if isinstance(error, BlockingIOError):
                    raise OSError(errno.EBUSY, "another process appends to it") from None
                raise

    def last(self, stop: int | None = None) -> bytes:
        """The last line, or the last one before a byte, without its break; empty if there is none."""
        begun, end = b"", max((self.size if stop is None else stop) - 1, 0)
        while end > 0 and b"\n" not in begun:
            start = max(0, end - _BLOCK_BYTES)
            begun, end = os.pread(self.file, end - start, start) + begun, start
        return begun.rpartition(b"\n")[2]

    def append(self, lines: Iterable[bytes], *, is_synced: bool = True) -> None:
        """Add lines, all or none of them unless the process is killed.

        Args:
            lines: Without breaks.
            is_synced: Whether they have to be on the disk now; else they are once `sync` returns.

        Raises:
            OSError: If there is no room, or the disk fails; the file is as before.
        """
        content = b"".join(line + b"\n" for line in lines)
        try:
            at = 0
            while at < len(content):
                at += os.write(self.file, memoryview(content)[at:])
            if is_synced:
                os.fsync(self.file)
        except OSError:
            os.ftruncate(self.file, self.size)
            raise
        self.size += len(content)
        self.synced = self.size if is_synced else self.synced

    def sync(self) -> None:
        """Have all lines on the disk.

        Raises:
            OSError: If the disk fails; then lines that it may lack are gone.
        """
        if self.synced == self.size:
            return
        try:
            os.fsync(self.file)
        except OSError:
            os.ftruncate(self.file, self.synced)
            self.size = self.synced
            raise
        self.synced = self.size

    def line_at(self, at: int) -> bytes:
        """The line that begins at a byte, with its break; empty at the end."""
        line = b""
        while b"\n" not in line and (block := os.pread(self.file, _BLOCK_BYTES, at + len(line))):
            line += block
        return line[: line.find(b"\n") + 1]

    def replace_from(self, at: int, lines: Iterable[bytes]) -> None:
        """Have lines stand in place of all that is behind a byte.

        Args:
            at: Where a line begins.
            lines: Without breaks.

        Raises:
            OSError: If there is no room, or the disk fails.
        """
        os.ftruncate(self.file, at)
        self.size = at
        self.append(lines)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self.file)

    def _whole_bytes(self) -> int:
        """Bytes up to the end of the last whole line."""
        end = os.fstat(self.file).st_size
        while end > 0:
            start = max(0, end - _BLOCK_BYTES)
            at = os.pread(self.file, end - start, start).rfind(b"\n")
            if at >= 0:
                return start + at + 1
            end = start
        return 0


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
