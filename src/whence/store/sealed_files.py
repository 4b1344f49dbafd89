"""The sealed files of a store as they were when it was opened: what is read later is the same bytes, or is refused.

A file that is replaced under its name, or written to, has another inode or other times of change; one that has kept all of these and not
its bytes (a failing disk) no longer has its checksum. Nothing here is mapped: see `tensor_bytes`.
"""

import hashlib
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import xxhash
from torch import Tensor

from whence.errors import StoreChanged, StoreCorrupt
from whence.plain_files import open_plain
from whence.store.files import damaged, reason
from whence.store.tensor_bytes import ALIGNED, Memory, Span, spans_of, tensor_at

__all__ = ["Identity", "Mark", "SealedFiles"]

Identity = tuple[int, int, int, int, int]
"""Device, inode, bytes, time of the last write and of the last change of anything, in nanoseconds."""
Result = TypeVar("Result")

# Copied and summed at a time: a piece stays in the second-level cache in between.
_PIECE = 256 << 10
# A file that changes while it is read is read again; one that changes all the time is given up.
_TRIES = 3
# Two changes within a tick of the clock leave the same time, so a file this young may change once more without a trace. Ticks are of 10 ms at
# most, and of up to 2 s on file systems that count seconds.
_TICK_NS, _COARSE_TICK_NS, _SECOND_NS = 50_000_000, 2_500_000_000, 1_000_000_000


@dataclass(frozen=True)
class Mark:
    """What a file was when it was looked at.

    Args:
        identity: Which file it was, and when it had last changed.
        spans: Where its tensors lie; none for other files.
        checksums: By tensor the XXH3 of its bytes, taken while the whole file had the sealed SHA-256; none before that.
    """

    identity: Identity
    spans: Mapping[str, Span]
    checksums: Mapping[str, int]


class SealedFiles:
    """Files by their names inside a store, each read as it was sealed.

    Args:
        folder: The store.
        sealed: SHA-256 of each file.
        held: Names of those that are kept open from the first look on: what is put in their place later is not read.
    """

    def __init__(self, folder: Path, sealed: Mapping[str, str], shared: Sequence[str] = ()):
        self.folder, self.sealed = folder, dict(sealed)
        self.marks: dict[str, Mark] = {}
        self._descriptors: dict[str, int | None] = dict.fromkeys(shared)
        self._summed: set[tuple[str, str]] = set()
        self._memory = Memory()
        self._lock = threading.Lock()
        weakref.finalize(self, _close, self._descriptors)

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which opens the files itself and finds them the same or not."""
        return {"folder": self.folder, "sealed": self.sealed, "marks": dict(self.marks), "shared": tuple(self._descriptors)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"], state["sealed"], state["shared"])
        self.marks.update(state["marks"])

    def check(self, name: str, noted: Any = None) -> Any:
        """Refuse a file that is not what was sealed.

        Args:
            name: Of the file.
            noted: What an earlier check gave; if the file is still that one its bytes are not read.

        Returns:
            What a later check may be given, as JSON; None if there is nothing that it could rely on.

        Raises:
            StoreCorrupt: If it is not.
        """
        with self._opened(name) as file:
            mark = self._noted(name, file, noted)
            if mark is None:
                mark = self._checked(name, file)
                if mark is None:
                    raise StoreCorrupt(**damaged(self.folder / name, "its checksum is not the sealed one"))
            self.marks[name] = mark
        if _is_young(mark.identity):
            return None
        return [_text(mark.identity), self.sealed[name], "".join(f"{checksum:016x}" for checksum in mark.checksums.values())]

    def tensors(
        self, name: str, names: Sequence[str] | None = None, take: Callable[[int], memoryview] | None = None
    ) -> dict[str, Tensor]:
        """Some or all tensors of a file, in memory of their own. Each is held against its checksum when it is first read.

        Args:
            name: Of the file.
            names: Of the tensors; None for all.
            take: Gives the memory; None for memory that is used again once nobody holds the tensors.

        Returns:
            The tensors by name.

        Raises:
            StoreCorrupt: If the file is missing, or not what was sealed.
            StoreChanged: If it has changed since the store was opened.
        """

        def copied(file: int, mark: Mark) -> dict[str, Tensor]:
            chosen = self._chosen(name, mark, names)
            starts, size = {}, 0
            for tensor, span in chosen.items():
                starts[tensor] = size
                size += -(-span.size // ALIGNED) * ALIGNED
            memory = (take or self._memory.take)(size)
            if size > _PIECE and hasattr(os, "posix_fadvise"):
                first, last = min(span.start for span in chosen.values()), max(span.stop for span in chosen.values())
                os.posix_fadvise(file, first, last - first, os.POSIX_FADV_WILLNEED)
            for tensor, span in chosen.items():
                wanted = None if (name, tensor) in self._summed else mark.checksums.get(tensor)
                copied_bytes = _copied(
                    file, span, memory[starts[tensor] : starts[tensor] + span.size], is_summed=wanted is not None
                )
                if copied_bytes != wanted:
                    raise _Damaged(f"the tensor {tensor} has not its checksum")
                if wanted is not None and not _is_young(mark.identity):
                    self._summed.add((name, tensor))
            return {tensor: tensor_at(memory, starts[tensor], span) for tensor, span in chosen.items()}

        return self._read(name, copied)

    def rows(self, name: str, names: Sequence[str], rows: Sequence[int]) -> dict[str, Tensor]:
        """Some rows of some tensors of a file; nothing else is read.

        Raises:
            StoreCorrupt: As in `tensors`.
            StoreChanged: As there.
        """

        def copied(file: int, mark: Mark) -> dict[str, Tensor]:
            tensors = {}
            for tensor, span in self._chosen(name, mark, names).items():
                if rows and not 0 <= min(rows) <= max(rows) < (span.shape[0] if span.shape else 0):
                    raise _Damaged(f"the tensor {tensor} has not the rows that were sealed")
                size = span.row_bytes
                memory = memoryview(bytearray(size * len(rows)))
                for index, row in enumerate(rows):
                    at = span.start + row * size
                    _copied(file, Span(torch.uint8, (size,), at, at + size), memory[index * size : (index + 1) * size])
                tensors[tensor] = tensor_at(memory, 0, span.of_rows(len(rows)))
            return tensors

        return self._read(name, copied)

    def spans(self, name: str) -> Mapping[str, Span]:
        """Where the tensors of a file lie, and their shapes and types.

        Raises:
            StoreCorrupt: As in `tensors`.
            StoreChanged: As there.
        """
        return (self.marks.get(name) or self._read(name, lambda _, mark: mark)).spans

    def content(self, name: str, start: int, stop: int) -> bytes:
        """Bytes of a file from one to before another, fewer at its end.

        Raises:
            StoreCorrupt: As in `tensors`.
            StoreChanged: As there.
        """
        return self._read(name, lambda file, _: os.pread(file, stop - start, start))

    def faults(self) -> dict[str, str]:
        """Files that can no longer be read as they were when the store was opened, and why. Only those that changed are read."""
        faults = {}
        for name, mark in list(self.marks.items()):
            if self._descriptors.get(name) is not None:
                continue
            try:
                if _identity(os.lstat(self.folder / name)) != mark.identity:
                    self._read(name, lambda *_: None)
            except OSError as error:
                faults[name] = reason(error)
            except (StoreChanged, StoreCorrupt) as error:
                faults[name] = error.found
        return faults

    def _read(self, name: str, action: Callable[[int, Mark], Result]) -> Result:
        """What is made of a file that was the same one before and after.

        Raises:
            StoreCorrupt: If it is missing or damaged.
            StoreChanged: If it has changed since the store was opened.
        """
        for _ in range(_TRIES):
            with self._opened(name) as file:
                mark = self._mark(name, file)
                try:
                    result = action(file, mark)
                except _Damaged as error:
                    if _identity(os.fstat(file)) == mark.identity:
                        raise StoreCorrupt(**damaged(self.folder / name, str(error))) from error
                    continue
                except OSError as error:  # a disk that cannot read it
                    raise StoreCorrupt(**damaged(self.folder / name, reason(error))) from error
                if _identity(os.fstat(file)) == mark.identity:
                    return result
        raise StoreChanged(**self._changed(name, "it changes while it is read"))

    def _mark(self, name: str, file: int) -> Mark:
        """What the file is, which is what it was at the first look.

        Raises:
            StoreCorrupt: If it cannot be read.
            StoreChanged: If its bytes have changed since.
        """
        mark, identity = self.marks.get(name), _identity(os.fstat(file))
        if mark is not None and mark.identity == identity:
            return mark
        if mark is None:
            mark = Mark(identity, self._spans(name, file, identity[2]), {})
        else:  # another file, or one that was touched: the same bytes are as good
            mark = self._checked(name, file)
            if mark is None:
                raise StoreChanged(**self._changed(name, "it has other bytes now"))
        self.marks[name] = mark
        return mark

    def _noted(self, name: str, file: int, noted: Any) -> Mark | None:
        """The mark that an earlier check left, if it was of this very file as it is now."""
        identity = _identity(os.fstat(file))
        if not isinstance(noted, list) or noted[:2] != [_text(identity), self.sealed[name]]:
            return None
        spans = self._spans(name, file, identity[2])
        try:
            checksums = {tensor: int(noted[2][16 * at : 16 * at + 16], 16) for at, tensor in enumerate(spans)}
        except (IndexError, TypeError, ValueError):
            return None
        return Mark(identity, spans, checksums)

    def _checked(self, name: str, file: int) -> Mark | None:
        """A mark of a file whose bytes are the sealed ones; None if they are not."""
        for _ in range(_TRIES):
            identity = _identity(os.fstat(file))
            try:
                spans = self._spans(name, file, identity[2])
            except StoreCorrupt:
                return None
            checksums: dict[str, int] = {}
            whole, room = hashlib.sha256(), memoryview(bytearray(_PIECE))
            for tensor, span in _all_of(spans, identity[2]):
                part = xxhash.xxh3_64()
                for at in range(span.start, span.stop, _PIECE):
                    piece = room[: os.preadv(file, [room[: span.stop - at]], at)]
                    whole.update(piece)
                    part.update(piece)
                if tensor is not None:
                    checksums[tensor] = part.intdigest()
            if _identity(os.fstat(file)) == identity:
                return Mark(identity, spans, checksums) if whole.hexdigest() == self.sealed[name] else None
        return None

    def _spans(self, name: str, file: int, size: int) -> dict[str, Span]:
        if not name.endswith(".safetensors"):
            return {}
        try:
            return spans_of(lambda start, stop: os.pread(file, stop - start, start), size)
        except (ValueError, OSError) as error:
            raise StoreCorrupt(**damaged(self.folder / name, str(error))) from error

    def _chosen(self, name: str, mark: Mark, names: Sequence[str] | None) -> dict[str, Span]:
        missing = [tensor for tensor in names or () if tensor not in mark.spans]
        if missing:
            raise StoreCorrupt(**damaged(self.folder / name, f"it has no tensor {missing[0]}"))
        return {tensor: mark.spans[tensor] for tensor in (mark.spans if names is None else names)}

    @contextmanager
    def _opened(self, name: str) -> Iterator[int]:
        """Open a file, or use what was kept open.

        Yields:
            A descriptor.

        Raises:
            StoreCorrupt: If it cannot be opened.
            StoreChanged: If it could be before.
        """
        descriptor = self._descriptors.get(name)
        if descriptor is not None:
            yield descriptor
            return
        try:
            opened = open_plain(self.folder / name)
        except OSError as error:
            why = "it is missing" if isinstance(error, FileNotFoundError) else reason(error)
            if name in self.marks:
                raise StoreChanged(**self._changed(name, why)) from error
            raise StoreCorrupt(**damaged(self.folder / name, why)) from error
        with opened:
            if name in self._descriptors:
                with self._lock:
                    if self._descriptors[name] is None:
                        self._descriptors[name] = os.dup(opened.fileno())
            yield opened.fileno()

    def _changed(self, name: str, why: str) -> dict[str, str]:
        return {
            "found": f"files in {self.folder} that have changed since they were opened ({name}: {why})",
            "needed": "the same files for as long as it is read",
            "do": "open it again (start a service again); `whence verify` says whether it is whole",
        }


class _Damaged(Exception):
    """Bytes that are not the sealed ones, or no longer."""


def _identity(stat: os.stat_result) -> Identity:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _text(identity: Identity) -> str:
    return ":".join(map(str, identity))


def _is_young(identity: Identity) -> bool:
    tick = _TICK_NS if identity[4] % _SECOND_NS else _COARSE_TICK_NS
    return abs(time.time_ns() - identity[4]) < tick


def _copied(file: int, span: Span, memory: memoryview, *, is_summed: bool = False) -> int | None:
    """Copy the bytes of a tensor; returns their checksum if it is wanted.

    Raises:
        _Damaged: If the file ends before they do.
    """
    digest = xxhash.xxh3_64() if is_summed else None
    done = 0
    while done < span.size:
        count = os.preadv(file, [memory[done : done + _PIECE]], span.start + done)
        if not count:
            raise _Damaged("it ends too early")
        if digest is not None:
            digest.update(memory[done : done + count])
        done += count
    return None if digest is None else digest.intdigest()


def _all_of(spans: Mapping[str, Span], size: int) -> Iterator[tuple[str | None, Span]]:
    """All bytes of a file in order, those of each tensor apart.

    Yields:
        The tensor's name, None for what lies between tensors, and where.
    """
    at = 0
    for name, span in spans.items():
        if span.start > at:
            yield None, Span(torch.uint8, (span.start - at,), at, span.start)
        yield name, span
        at = span.stop
    if at < size:
        yield None, Span(torch.uint8, (size - at,), at, size)


def _close(descriptors: Mapping[str, int | None]) -> None:
    for file in descriptors.values():
        if file is not None:
            os.close(file)
