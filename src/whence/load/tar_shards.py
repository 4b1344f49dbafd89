"""Records from many files, one after the other and never all at once: JSONL, Parquet, Arrow, and tar files as WebDataset writes them."""

import glob
import io
import json
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from whence.errors import BadInput, first_line
from whence.load.unpacked import LONGEST_RECORD, lines_of, unpacked
from whence.strict_json import parse_json

__all__ = ["Shards", "stream_records"]

_TARS = (".tar", ".tar.gz", ".tgz")
_KINDS = (".jsonl", ".jsonl.gz", ".parquet", ".arrow", *_TARS)
_IMAGES = ("jpg", "jpeg", "png", "webp")
_ROWS_AT_ONCE = 1024
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


@dataclass(frozen=True)
class Shards:
    """Records of several files in the order of their names; every pass over it reads them again.

    Args:
        files: The files.
        folder: What their names are taken relative to in ids.
    """

    files: tuple[Path, ...]
    folder: Path

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for file in self.files:
            name = file.relative_to(self.folder).as_posix()
            number = -1
            try:
                records = _samples(file) if file.name.endswith(_TARS) else enumerate(records_of_file(file))
                for number, (key, record) in enumerate(records):  # noqa: B007, told below
                    if not isinstance(record, dict):
                        raise ValueError(f"a {type(record).__name__}, not a mapping")
                    # By file and row or key: a file that is added later leaves the ids of the others alone.
                    yield {"id": f"{name}#{key}", "source": name, **record}
            except (ValueError, OSError, EOFError, RecursionError, tarfile.TarError, zlib.error, lzma.LZMAError) as error:
                raise BadInput(
                    found=f"{file}, which cannot be read after {number + 1:,} records ({first_line(error)})",
                    needed=f"a whole file of {', '.join(_KINDS)}",
                    do="mend the file, or move it away",
                ) from error

    @property
    def identity(self) -> str:
        """Names, sizes and times of change of the files, which tell whether anything is different without reading them."""
        marks = [(str(file.relative_to(self.folder)), file.stat().st_size, file.stat().st_mtime_ns) for file in self.files]
        return json.dumps(marks)


def stream_records(pattern: str | Path) -> Shards:
    """Records of sharded data, for `whence.pipeline.spool`.

    A record without an id gets its file's name and its row there, "part-00003.parquet#17", and its file's name as its source.

    A tar file is read as WebDataset lays it out, from beginning to end without unpacking it anywhere: neighbouring members that are called
    alike up to the first dot after the last slash are one record, "part-000.tar#00017". Its `.txt` is the `text`, `.cls` the class number
    `label`, `.json` holds any fields, and an image (.jpg, .jpeg, .png, .webp) becomes the model's `inputs`: red, green and blue between 0
    and 1, shape (3, height, width). Members of other kinds are passed over.

    Args:
        pattern: A folder, a file, or a pattern such as "data/part-*.parquet". Files end in .jsonl, .jsonl.gz, .parquet, .arrow, .tar, .tar.gz
            or .tgz.

    Returns:
        What can be iterated over, any number of times.

    Raises:
        BadInput: If there is no such file.
    """
    path = Path(pattern)
    paths = sorted(path.rglob("*")) if path.is_dir() else sorted(Path(name) for name in glob.glob(str(pattern), recursive=True))
    files = tuple(file for file in paths if file.is_file() and file.name.endswith(_KINDS))
    if not files:
        raise BadInput(
            found=f"no files of data at {pattern}", needed=f"files ending in {', '.join(_KINDS)}", do="check the path"
        )
    folder = path if path.is_dir() else Path(*_common([file.parent.parts for file in files]))
    return Shards(files, folder)


def _common(parts: list[tuple[str, ...]]) -> tuple[str, ...]:
    same = 0
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        same += 1
    return parts[0][:same]


def records_of_file(file: Path) -> Iterator[Any]:
    """The records of one file that ends in .jsonl, .jsonl.gz, .parquet or .arrow.

    Yields:
        One record at a time.

    Raises:
        BadInput: If pyarrow is needed and not installed.
        ValueError: If the file is not what its name says.
    """
    if file.name.endswith((".jsonl", ".jsonl.gz")):
        if file.suffix == ".gz" and not file.stat().st_size:
            raise ValueError("nothing in it, not even the mark of a compressed file")
        with lines_of(file, is_packed=file.suffix == ".gz") as lines:
            yield from (parse_json(line, any_number=True) for line in lines if line.strip())
        return
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise BadInput(
            found=f"no pyarrow package for {file}",
            needed="it, to read Parquet and Arrow",
            do="pip install 'whence-tda[datasets]'",
        ) from error
    if file.suffix == ".parquet":
        with pyarrow.parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(_ROWS_AT_ONCE):
                yield from batch.to_pylist()
        return
    with pyarrow.memory_map(str(file)) as source:
        is_stream = True
        try:
            batches = pyarrow.ipc.open_stream(source)  # as Hugging Face datasets write them
        except pyarrow.ArrowInvalid:
            reader = pyarrow.ipc.open_file(source)
            batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
            is_stream = False
        for batch in batches:
            for start in range(0, batch.num_rows, _ROWS_AT_ONCE):
                yield from batch.slice(start, _ROWS_AT_ONCE).to_pylist()
        # A stream that was cut between two batches is read like a whole one; only its last bytes tell.
        if is_stream:
            source.seek(max(source.size() - len(_END_OF_STREAM), 0))
            if source.read() != _END_OF_STREAM:
                raise ValueError("no end of the Arrow stream: the file was cut short, or something follows the end")


def _samples(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Records of a tar file by key.

    Nothing is written, so that names may be whatever they like; links and devices are passed over.

    Yields:
        Key and record.

    Raises:
        ValueError: If what is there is no record.
    """
    options = {"mode": "r|", "tarinfo": _Member, "encoding": "utf-8", "errors": "replace"}
    with unpacked(file) as stream, tarfile.open(fileobj=stream, **options) as members:
        for key, group in groupby((member for member in members if member.isreg()), lambda member: _named(member)[0]):
            record: dict[str, Any] = {}
            for member in group:
                if member.size > LONGEST_RECORD:
                    raise ValueError(f"a member of {member.size:,} bytes, more than {LONGEST_RECORD:,}")
                opened = members.extractfile(member)
                content = {} if opened is None else _member(_named(member)[1], opened.read())
                twice = sorted(content.keys() & record.keys())
                if twice:
                    raise ValueError(f"two members with {twice[0]!r} for {key!r}")
                record |= content
            if not record:
                raise ValueError(f"nothing of a known kind for {key!r}")
            yield key, record
        _check_end(members)


class _Member(tarfile.TarInfo):
    """A member's header. Where one should be and is not, `tarfile` takes that for the end: of a cut or damaged archive it reads the start."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> "tarfile.TarInfo":
        """The next header.

        Raises:
            HeaderError: At the end, where `tarfile` expects it.
            ReadError: If the archive does not go on with a header or the mark of its end.
        """
        try:
            return super().fromtarfile(archive)
        except tarfile.HeaderError as error:
            if isinstance(error, tarfile.EOFHeaderError):  # pyright: ignore[reportAttributeAccessIssue]
                raise error
            raise tarfile.ReadError(
                f"{error} where a member or the end of the archive should be: cut short or damaged"
            ) from None


def _check_end(members: tarfile.TarFile) -> None:
    """Hold what is left of an archive against what ends one: two blocks of zeros, and zeros only.

    Raises:
        ReadError: If there is less, or something else.
    """
    rest = members.fileobj.read(tarfile.BLOCKSIZE)  # the first block was read as a header
    if len(rest) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("no end of the archive: cut short")
    while rest:
        if any(rest):
            raise tarfile.ReadError("more after the end of the archive, such as a second archive")
        rest = members.fileobj.read(1 << 16)


def _named(member: tarfile.TarInfo) -> tuple[str, str]:
    """Key and kind: up to the first dot after the last slash, and after it."""
    folder, slash, name = member.name.rpartition("/")
    stem, _, kind = name.partition(".")
    return folder + slash + stem, kind.lower()


def _member(kind: str, content: bytes) -> dict[str, Any]:
    """Fields from one member of a record; none if it is of another kind.

    Raises:
        ValueError: If it is not what its name says.
        BadInput: If Pillow is missing.
    """
    if kind == "txt":
        return {"text": content.decode("utf-8-sig")}
    if kind == "cls":
        return {"label": int(content)}
    if kind == "json":
        fields = parse_json(content, any_number=True)
        if not isinstance(fields, dict) or not fields:
            raise ValueError(f"a .json of type {type(fields).__name__}, not a mapping with fields")
        return fields
    if kind not in _IMAGES:
        return {}
    try:
        from PIL import Image
    except ImportError as error:
        raise BadInput(found="no Pillow package", needed="it, to open images", do="pip install 'whence-tda[images]'") from error
    try:
        with Image.open(io.BytesIO(content)) as image:
            return {"inputs": np.asarray(image.convert("RGB"), np.float32).transpose(2, 0, 1) / 255}
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from error
