"""Compressed files, and what they may unpack to: a megabyte of deflate can stand for a gigabyte of zeros."""

import bz2
import gzip
import io
import lzma
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TextIO

from whence.plain_files import open_plain

__all__ = ["LONGEST_RECORD", "check_zip", "lines_of", "unpacked"]

LONGEST_RECORD = 1 << 26
"""Characters of a line, and bytes of a member of an archive: one record is in memory at a time, and is never longer."""

# Texts shrink to a third or a tenth, the dullest log to a hundredth. Small files may be as dull as they like.
_RATIO = 200
_FREE_BYTES = 1 << 26
_KINDS = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\0", lzma.open))


@contextmanager
def unpacked(file: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file that may be compressed, by whatever its first bytes say.

    Args:
        file: The file.

    Yields:
        A stream, which checks the compression's own checksums and its end, and raises ValueError where it grows out of all proportion.
    """
    with open_plain(file, is_named=True) as raw:
        first = raw.read(6)
        raw.seek(0)
        opened: Any = next((kind for mark, kind in _KINDS if first.startswith(mark)), None)
        if opened is None:
            yield raw
            return
        with opened(raw) as stream:
            yield io.BufferedReader(_Bounded(stream, file))


@contextmanager
def lines_of(file: Path, *, is_packed: bool) -> Iterator[Iterator[str]]:
    """The lines of a text in UTF-8.

    Args:
        file: The file.
        is_packed: Whether it is compressed by gzip.

    Yields:
        The lines, which raise ValueError at one that is too long, or where the file grows out of all proportion.
    """
    with open_plain(file, is_named=True) as raw, gzip.open(raw) if is_packed else raw as stream:
        binary = io.BufferedReader(_Bounded(stream, file)) if is_packed else stream
        with io.TextIOWrapper(binary, encoding="utf-8-sig") as text:  # type: ignore[arg-type]
            yield _lines(text)


def check_zip(file: Path) -> None:
    """Refuse an archive such as `.npz` whose members are too large for it; what they say of their size is all that is unpacked.

    Args:
        file: The archive.

    Raises:
        ValueError: If they are.
    """
    with zipfile.ZipFile(file) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > _most_bytes(file):
        raise ValueError(_too_much(file))


class _Bounded(io.RawIOBase):
    """A stream that ends with an error where more comes out of it than its file can honestly hold."""

    def __init__(self, stream: Any, file: Path):
        self.stream, self.file, self.left = stream, file, _most_bytes(file)

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read as much as fits.

        Raises:
            ValueError: If it is too much.
        """
        content = self.stream.read(len(buffer))
        self.left -= len(content)
        if self.left < 0:
            raise ValueError(_too_much(self.file))
        buffer[: len(content)] = content
        return len(content)


def _lines(text: TextIO) -> Iterator[str]:
    while line := text.readline(LONGEST_RECORD + 1):
        if len(line) > LONGEST_RECORD:
            raise ValueError(f"a line of more than {LONGEST_RECORD:,} characters")
        yield line


def _most_bytes(file: Path) -> int:
    return _FREE_BYTES + _RATIO * file.stat().st_size


def _too_much(file: Path) -> str:
    return f"{file.stat().st_size:,} bytes that unpack to more than {_most_bytes(file):,}"
