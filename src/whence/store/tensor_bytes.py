"""Where the tensors of a safetensors file lie, and how its bytes become tensors.

Bytes are copied into memory of the reader's own. Of a mapped file that is cut while it is read nothing is left but a signal (SIGBUS) that
ends the process, and what is written into it shows at once.
"""

import contextlib
import hashlib
import math
import mmap
import os
import tempfile
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from whence.strict_json import parse_json

__all__ = [
    "ALIGNED",
    "TYPES",
    "Memory",
    "Span",
    "fresh_memory",
    "mapped_copy",
    "rows_of",
    "spans_of",
    "tensor_at",
    "tensors_of",
]

TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
# Ten times the header of a store of ten thousand units.
_MOST_HEADER_BYTES = 32 << 20
_MOST_AXES, _LONGEST_AXIS = 16, 1 << 40
ALIGNED = 64
"""Tensors that share memory begin at multiples of this."""
# Copied at a time.
_PIECE = 1 << 20
# Fresh memory below this is cheap; above it large pages make copying three times as fast.
_LARGE = 4 << 20
# The shard in use, the one that is read ahead, and one that somebody is not done with.
_PIECES = 3


@dataclass(frozen=True)
class Span:
    """Where one tensor lies in a file.

    Args:
        dtype: Its type.
        shape: Its shape.
        start: Its first byte, counted from the start of the file.
        stop: One past its last byte.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.stop - self.start

    @property
    def row_bytes(self) -> int:
        """Bytes of one place along the first axis."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def of_rows(self, rows: int) -> "Span":
        """What so many rows of it look like on their own."""
        return Span(self.dtype, (rows, *self.shape[1:]), 0, rows * self.row_bytes)


def spans_of(read: Callable[[int, int], bytes], size: int) -> dict[str, Span]:
    """Where the tensors of a safetensors file lie, whoever wrote it.

    Args:
        read: Gives the bytes from the first number to before the second.
        size: Of the file.

    Returns:
        By name, in the order of the file.

    Raises:
        ValueError: If it is no such file: its header cannot be read, or speaks of bytes that are not there.
    """
    length = int.from_bytes(read(0, 8), "little")
    if size < 8 or length > min(size - 8, _MOST_HEADER_BYTES):
        raise ValueError("its header is not there")
    try:
        header = parse_json(read(8, 8 + length))
        spans = {name: _span(entry, 8 + length, size) for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError("its header cannot be read") from error
    in_order = sorted(spans.items(), key=lambda item: item[1].start)
    if any(span.stop > other.start for (_, span), (_, other) in pairwise(in_order)):
        raise ValueError("tensors that overlap")
    return dict(in_order)


def _span(entry: Mapping[str, Any], first: int, size: int) -> Span:
    (start, stop), shape = entry["data_offsets"], entry["shape"]
    numbers = [start, stop, *shape]
    if len(shape) > _MOST_AXES or any(
        type(number) is not int or not 0 <= number <= max(size, _LONGEST_AXIS) for number in numbers
    ):
        raise ValueError("numbers that are none")
    span = Span(TYPES[entry["dtype"]], tuple(shape), first + start, first + stop)
    if span.size != math.prod(shape) * span.dtype.itemsize or span.stop > size:
        raise ValueError("a tensor that is not there")
    return span


def tensor_at(memory: memoryview, at: int, span: Span) -> Tensor:
    """The tensor whose bytes begin at a place in memory; it keeps the memory alive."""
    if not span.size:
        return torch.empty(span.shape, dtype=span.dtype)
    return torch.frombuffer(memory, dtype=span.dtype, count=span.size // span.dtype.itemsize, offset=at).view(span.shape)


def tensors_of(file: IO[bytes], names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Some or all tensors of an open safetensors file, copied.

    Args:
        file: The file; where it is read up to does not matter.
        names: Of the tensors; None for all.

    Returns:
        The tensors by name, in memory of their own.

    Raises:
        ValueError: If it is no such file, lacks one of them, or ends too early.
        OSError: If it cannot be read.
    """
    number = file.fileno()
    spans = spans_of(lambda start, stop: os.pread(number, stop - start, start), os.fstat(number).st_size)
    missing = [name for name in names or () if name not in spans]
    if missing:
        raise ValueError(f"it has no tensor {missing[0][:80]!r}")
    chosen = {name: spans[name] for name in (spans if names is None else names)}
    starts, size = {}, 0
    for name, span in chosen.items():
        starts[name] = size
        size += -(-span.size // ALIGNED) * ALIGNED
    memory = fresh_memory(size)
    for name, span in chosen.items():
        done = 0
        while done < span.size:
            rest = memory[starts[name] + done : starts[name] + min(done + _PIECE, span.size)]
            count = os.preadv(number, [rest], span.start + done)
            if not count:
                raise ValueError("it ends too early")
            done += count
    return {name: tensor_at(memory, starts[name], span) for name, span in chosen.items()}


def rows_of(file: IO[bytes], name: str, rows: range) -> Tensor:
    """Some neighbouring rows of a tensor of an open safetensors file; nothing else is read.

    Raises:
        ValueError: If it is no such file, lacks them, or ends too early.
        OSError: If it cannot be read.
    """
    number = file.fileno()
    span = spans_of(lambda start, stop: os.pread(number, stop - start, start), os.fstat(number).st_size).get(name)
    if span is None or not span.shape or not 0 <= rows.start <= rows.stop <= span.shape[0]:
        raise ValueError(f"it has no such rows of {name!r}")
    part = span.of_rows(len(rows))
    content = os.pread(number, part.size, span.start + rows.start * span.row_bytes)
    if len(content) != part.size:
        raise ValueError("it ends too early")
    return tensor_at(memoryview(bytearray(content)), 0, part)


def mapped_copy(file: IO[bytes], folder: Path, sha256: str) -> dict[str, Tensor]:
    """The tensors of an open safetensors file, mapped from a copy that has no name, so that nobody can cut it or write into it.

    The system reads of it what is touched and may drop that again: for what is larger than memory, at the price of the room on the disk for
    as long as one of the tensors lives.

    Args:
        file: The file, which is read from the start.
        folder: The copy is on this folder's disk; where that cannot be written, in the folder for temporary files.
        sha256: What the copy's checksum must be.

    Returns:
        The tensors by name.

    Raises:
        ValueError: If it has another checksum, or is no such file.
        OSError: If it cannot be read, or there is no room.
    """
    digest = hashlib.sha256()
    file.seek(0)
    with _nameless(folder) as copy:
        while piece := file.read(_PIECE):
            digest.update(piece)
            copy.write(piece)
        copy.flush()
        size = copy.tell()
        if digest.hexdigest() != sha256:
            raise ValueError("its checksum is another")
        number = copy.fileno()
        spans = spans_of(lambda start, stop: os.pread(number, stop - start, start), size)
        # Of its own for whoever writes into a tensor; the file stays as it is.
        memory = memoryview(mmap.mmap(number, size, access=mmap.ACCESS_COPY))
    return {name: _placed(memory, span) for name, span in spans.items()}


def _placed(memory: memoryview, span: Span) -> Tensor:
    """A tensor where it lies, or moved where numbers of its type cannot lie there."""
    if span.start % span.dtype.itemsize == 0:
        return tensor_at(memory, span.start, span)
    own = fresh_memory(span.size)
    own[: span.size] = memory[span.start : span.stop]
    return tensor_at(own, 0, span)


def _nameless(folder: Path) -> IO[bytes]:
    try:
        return tempfile.TemporaryFile(dir=folder)
    except (PermissionError, FileNotFoundError):
        return tempfile.TemporaryFile()


class Memory:
    """Memory to read into, which is used again once nobody holds a tensor of it: touching fresh pages takes longer than copying."""

    def __init__(self):
        self._pieces: list[tuple[mmap.mmap, weakref.ref[memoryview]]] = []
        self._lock = threading.Lock()

    def take(self, size: int) -> memoryview:
        """So many bytes or more, the caller's for as long as it holds the view or a tensor of it."""
        with self._lock:
            fitting = (
                index
                for index, (memory, user) in enumerate(self._pieces)
                if user() is None and size <= len(memory) <= 2 * size + _LARGE
            )
            index = next(fitting, None)
            memory = _fresh(size) if index is None else self._pieces.pop(index)[0]
            view = memoryview(memory)
            self._pieces = [(memory, weakref.ref(view)), *self._pieces[: _PIECES - 1]]
            return view


def fresh_memory(size: int) -> memoryview:
    """So many bytes, for whoever keeps them."""
    return memoryview(_fresh(size))


def _fresh(size: int) -> mmap.mmap:
    memory = mmap.mmap(-1, max(size, 1))
    if size >= _LARGE and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without large pages
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
