"""Who makes which shard of a store that several processes write.

A lease is a lock on one byte of the file `.leases`: byte 0 for what only one process may do at a time, byte 1 + n for shard n, and one far
behind them for who has started processes on other machines. The system takes a lease back the moment its process ends, however it ends, so a
lost process's shard is free at once and nothing has to be timed or cleaned up. Such locks work across machines on file systems that have
them (NFS 4, Lustre with `flock`, GPFS).
"""

import errno
import fcntl
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from whence.errors import BadInput
from whence.store.files import disk_errors, locked, open_to_lock
from whence.store.remote import is_remote

__all__ = ["Leases", "check_shared", "leases", "starter"]

# Behind all shards, and within what NFS 3 can lock.
_STARTER = (1 << 31) - 2
_SIGHT_SECONDS = 10.0


@dataclass(frozen=True)
class Leases:
    """What this process may write; use `leases`.

    Args:
        file: Whose bytes are locked; None for a process that has the folder to itself.
        start_share: Where among the shards this process begins, as a share of them, so that several begin in different places.
    """

    file: IO[bytes] | None = None
    start_share: float = 0.0

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no other process is in such a block, and keep others out.

        Yields:
            Nothing.
        """
        self._lock(0, wait=True)
        try:
            yield
        finally:
            self._unlock(0)

    @contextmanager
    def shard(self, number: int, *, wait: bool = False) -> Iterator[bool]:
        """Lease a shard.

        Args:
            number: Of the shard.
            wait: Wait for a process that has it; it may well have made it then.

        Yields:
            Whether it is this process's now; always so after waiting.
        """
        is_mine = self._lock(1 + number, wait=wait)
        try:
            yield is_mine
        finally:
            if is_mine:
                self._unlock(1 + number)

    def _lock(self, byte: int, *, wait: bool) -> bool:
        if self.file is None:
            return True
        try:
            fcntl.lockf(self.file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, byte)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            raise BadInput(
                found=f"a file system at {self.file.name} that has no locks ({error.strerror})",
                needed="one with locks, so that several processes do not write the same file",
                do="build on a local disk, NFS 4, or Lustre mounted with flock, or with one process",
            ) from error
        return True

    def _unlock(self, byte: int) -> None:
        if self.file is not None:
            fcntl.lockf(self.file, fcntl.LOCK_UN, 1, byte)


@contextmanager
def leases(folder: Path, rank: int, count: int) -> Iterator[Leases]:
    """Open a folder for writing by this process alone, or by `count` of them.

    Args:
        folder: The store; made if it is not there.
        rank: Number of this process.
        count: Processes that write together; they need not start or end at the same time.

    Yields:
        What this process may write.

    Raises:
        BadInput: If several are to write into an object store.
    """
    if count > 1:
        _refuse_remote(folder)
    with locked(folder, shared=count > 1):
        if count == 1:
            yield Leases()
            return
        with disk_errors(folder):
            file = open_to_lock(folder / ".leases")
        with file:
            yield Leases(file, rank / count)


def _refuse_remote(folder: Path) -> None:
    if is_remote(folder):
        raise BadInput(
            found=f"several processes for {folder}",
            needed="a file system with locks, which an object store has not",
            do="build into a folder that all processes see and copy that, or build with one process",
        )


@contextmanager
def starter(folder: Path) -> Iterator[None]:
    """Let processes that are started on other machines see, with `check_shared`, that this is their folder.

    Args:
        folder: Made if it is not there.

    Yields:
        Nothing.

    Raises:
        BadInput: If it is in an object store.
    """
    _refuse_remote(folder)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = open_to_lock(folder / ".leases")
    with file:
        # Waits for nobody: who else started something here waits for the shards.
        with suppress(OSError):
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _STARTER)
        yield


def check_shared(folder: Path, *, seconds: float = _SIGHT_SECONDS) -> None:
    """Refuse to work in a folder that is not the one of who has started this process, or that has no locks between machines.

    Args:
        folder: As its `starter` named it.
        seconds: To wait for a file that a file system between machines may show late.

    Raises:
        BadInput: If it is not that folder, or if a lock is not seen here.
    """
    patience = time.monotonic() + seconds
    while not (is_there := (folder / ".leases").exists()) and time.monotonic() < patience:
        time.sleep(0.2)
    if is_there and _is_locked(folder / ".leases"):
        return
    raise BadInput(
        found=f"a folder {folder} on {socket.gethostname()} that is not the one of the same name where the command was started",
        needed="a file system that all machines see, with locks between them, so that they do not write the same file",
        do="name a folder on NFS 4, Lustre mounted with flock or GPFS, or let one machine do it",
    )


def _is_locked(path: Path) -> bool:
    """Whether another process has the starter's byte."""
    with disk_errors(path), open_to_lock(path) as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _STARTER)
        except OSError as error:
            return error.errno in (errno.EACCES, errno.EAGAIN)
        return False
