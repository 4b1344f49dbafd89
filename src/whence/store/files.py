"""Files of a store, here or in an object store: written as a whole, read only if they are files."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

import torch
from torch import Tensor

from whence.durable import disk_errors, unwritable, write_file
from whence.errors import BadInput, DiskFull, StoreCorrupt
from whence.plain_files import JSON_BYTES, check_real_folder, open_plain, read_plain
from whence.store.remote import fetch_tensors, is_remote, put, remote_errors
from whence.store.strict_arrays import read_npy
from whence.store.tensor_bytes import mapped_copy, spans_of, tensors_of
from whence.strict_json import parse_json, record_of

__all__ = [
    "check_writable",
    "damaged",
    "disk_errors",
    "file_sizes",
    "locked",
    "open_to_lock",
    "read_array",
    "read_json",
    "read_lines",
    "read_mapped",
    "read_record",
    "read_tensors",
    "sha256_of",
    "tensor_shapes",
    "write_bytes",
    "write_json",
    "write_record",
    "write_tensors",
]

Record = TypeVar("Record")
SEAL = "seal"
"""Under this name a record has the checksum of the rest of it."""
_LONGEST_LINE = 64 << 20
# Direct reads need aligned payloads; the safetensors library itself aligns to 8 bytes only.
_ALIGNMENT = 4096
_TYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.bool: "BOOL",
}


def check_writable(folder: Path) -> None:
    """Refuse an output folder that cannot be made or written, before anything long runs.

    Raises:
        BadInput: If it cannot.
    """
    if is_remote(folder):  # a right to write shows when something is written
        return
    parent = folder.absolute()
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        why = f"no right to write in {parent}" if parent.is_dir() else f"{parent} is a file"
        raise BadInput(**unwritable(folder, why))


def write_bytes(path: Path, chunks: Iterable[bytes | memoryview]) -> str:
    """Write a file, or an object of an object store, so that it is there as a whole or not at all; see `write_file`.

    Args:
        path: Where it will be.
        chunks: Its content.

    Returns:
        SHA-256 of the content.
    """
    if not is_remote(path):
        return write_file(path, chunks)
    content = b"".join(chunks)
    put(path, content)
    return hashlib.sha256(content).hexdigest()


def write_json(path: Path, content: Any) -> str:
    """Write a JSON file atomically; returns its SHA-256."""
    return write_bytes(path, [json.dumps(content, indent=1, sort_keys=True).encode() + b"\n"])


def write_record(path: Path, content: Mapping[str, Any]) -> str:
    """Write a JSON object with its own checksum, by which `read_json` notices a changed letter; returns the file's SHA-256."""
    plain = json.loads(json.dumps(dict(content)))
    return write_json(path, {**plain, SEAL: _seal_of(plain)})


def _seal_of(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write a safetensors file atomically, its payload starting at a multiple of 4096 bytes; returns its SHA-256."""
    header: dict[str, Any] = {}
    at = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _TYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)

    def chunks() -> Iterator[bytes | memoryview]:
        yield len(text).to_bytes(8, "little") + text
        for tensor in tensors.values():
            if tensor.numel():
                yield tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data

    return write_bytes(path, chunks())


def read_tensors(path: Path, names: Sequence[str] | None = None, *, sha256: str | None = None) -> dict[str, Tensor]:
    """Some or all tensors of a safetensors file, in memory of their own.

    Args:
        path: The file.
        names: Of the tensors; None for all.
        sha256: That of the whole file, where a record knows it.

    Returns:
        The tensors by name.

    Raises:
        StoreCorrupt: If it is missing, no file, or not what was written.
    """
    try:
        if is_remote(path):
            return fetch_tensors(path, names)
        with open_plain(path) as file:
            if sha256 is None or hashlib.file_digest(file, "sha256").hexdigest() == sha256:
                return tensors_of(file, names)
    except (ValueError, OSError) as error:
        raise StoreCorrupt(**damaged(path, _why(error))) from error
    raise StoreCorrupt(**damaged(path, "its checksum is another"))


def read_mapped(path: Path, sha256: str) -> dict[str, Tensor]:
    """All tensors of a file that may be larger than memory; see `mapped_copy`.

    Raises:
        StoreCorrupt: If it is missing, no file, or not what was written.
        DiskFull: If there is no room for the copy.
    """
    try:
        if is_remote(path):
            if sha256_of(path) == sha256:
                return fetch_tensors(path, None)
            raise StoreCorrupt(**damaged(path, "its checksum is another"))
        with open_plain(path) as file:
            return mapped_copy(file, path.parent, sha256)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                found=f"no space left for a copy of {path}, which is read from it",
                needed="as much room as the file takes, for as long as it is used",
                do="free some space and run the same command again",
            ) from error
        raise StoreCorrupt(**damaged(path, _why(error))) from error
    except ValueError as error:
        raise StoreCorrupt(**damaged(path, _why(error))) from error


def tensor_shapes(path: Path) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and type of the tensors of a safetensors file, of which only the header is read.

    Raises:
        StoreCorrupt: If it is missing, no file, or no such file.
    """
    try:
        with open_plain(path) as file:
            number = file.fileno()
            spans = spans_of(lambda start, stop: os.pread(number, stop - start, start), os.fstat(number).st_size)
    except (ValueError, OSError) as error:
        raise StoreCorrupt(**damaged(path, _why(error))) from error
    return {name: (span.shape, span.dtype) for name, span in spans.items()}


def read_array(path: Path) -> Tensor:
    """The numbers of a `.npy` file.

    Raises:
        StoreCorrupt: If it is missing, no file, or holds something else; see `read_npy`.
    """
    try:
        return torch.from_numpy(read_npy(path))
    except (OSError, ValueError, TypeError) as error:
        raise StoreCorrupt(**damaged(path, _why(error))) from error


def damaged(path: Path, why: str) -> dict[str, str]:
    """What to say of a file that is not what was written, with the way out for this kind of file."""
    if path.parent.name == "shards":
        do = "delete that shard's files (also its .json) and run the same `whence build` again: it makes only what is missing"
    elif path.name in ("axes.safetensors", "curvature.safetensors", "manifest.json"):
        do = "delete it and run the same `whence build` again: it makes only what is missing"
    else:
        do = "restore the folder from a copy, or build into another folder"
    return {"found": f"a damaged file {path} ({why})", "needed": "the bytes that were sealed", "do": do}


def read_json(path: Path, *, any_number: bool = False) -> Any:
    """The content of a JSON file of a store, a table, a run or whatever else lies in a folder; see `parse_json` for what is refused.

    Args:
        path: Of the file.
        any_number: Whether NaN, infinities and whole numbers of any length are let through.

    Raises:
        StoreCorrupt: If it is missing, not a file, no such JSON, or not what `write_record` wrote there.
    """
    try:
        content = parse_json(read_content(path), any_number=any_number)
        # Other programs, and records whose checksum is kept elsewhere, have none.
        if not isinstance(content, dict) or SEAL not in content or content.pop(SEAL) == _seal_of(content):
            return content
        error = None
        why = "it is not what was written"
    except (OSError, ValueError) as cause:
        error, why = cause, reason(cause)
    raise StoreCorrupt(
        found=f"{path.name} missing or unreadable in {path.parent} ({why})",
        needed="a whole file of the kind that is written there",
        do="restore the folder from a copy, or make it again by the command that made it",
    ) from error


def read_record(kind: type[Record], path: Path, *, any_number: bool = False) -> Record:
    """A record from a JSON file; see `record_of`.

    Args:
        kind: A dataclass that says which fields there are, and of which types.
        path: Of the file.
        any_number: As in `read_json`.

    Raises:
        StoreCorrupt: If the file is missing, not a file, or holds another record.
    """
    content = read_json(path, any_number=any_number)
    try:
        return record_of(kind, content)
    except (KeyError, TypeError, ValueError) as error:
        raise StoreCorrupt(**damaged(path, _why(error))) from error


def read_lines(path: Path) -> Iterator[Any]:
    """The values of a file of JSON lines, one after the other; see `parse_json` for what is refused.

    Yields:
        One value a line.

    Raises:
        OSError: If it is missing, or no file.
        ValueError: If a line is too long or no such JSON.
    """
    with open_plain(path) as file:
        while line := file.readline(_LONGEST_LINE + 1):
            if len(line) > _LONGEST_LINE:
                raise ValueError(f"a line of more than {_LONGEST_LINE:,} bytes")
            yield parse_json(line)


def read_content(path: Path, at_most: int = JSON_BYTES) -> bytes:
    """All bytes of a file beside others, here or in an object store.

    Raises:
        OSError: If it is not there, is no file, or has more bytes than that.
    """
    if not is_remote(path):
        return read_plain(path, at_most=at_most)
    with remote_errors(path):
        remote: Any = path
        content = remote.fs.cat_file(remote.path, start=0, end=at_most + 1)
    if len(content) > at_most:
        raise OSError(f"it has more than the {at_most:,} bytes that such a file may have")
    return content


def _why(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "it is missing"
    return f"it has no {error}" if isinstance(error, KeyError) else reason(error)


def reason(error: Exception) -> str:
    """What went wrong, without the path that an error of the system repeats."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
        OSError: If it is not there, or no file.
    """
    with path.open("rb") if is_remote(path) else open_plain(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_sizes(folder: Path) -> dict[str, int]:
    """Bytes of the files in a folder, by name, from one listing; empty if there is no folder. Links count as absent.

    Raises:
        StoreCorrupt: If the folder is a link, or anything else than a folder.
    """
    try:
        if is_remote(folder):
            with remote_errors(folder):
                remote: Any = folder
                listed = remote.fs.ls(remote.path, detail=True)
            return {entry["name"].rsplit("/", 1)[-1]: entry["size"] for entry in listed if entry["type"] == "file"}
        refuse_linked(folder)
        with os.scandir(folder) as entries:
            return {
                entry.name: entry.stat(follow_symlinks=False).st_size
                for entry in entries
                if entry.is_file(follow_symlinks=False)
            }
    except FileNotFoundError:
        return {}


def refuse_linked(folder: Path) -> None:
    """Refuse a folder inside a store, bank or run that is a link or no folder, before anything in it is read or written.

    Raises:
        StoreCorrupt: If it is one.
    """
    try:
        check_real_folder(folder)
    except OSError as error:
        raise StoreCorrupt(**damaged(folder, str(error))) from error


def open_to_lock(path: Path) -> IO[bytes]:
    """Open a file whose locks are used and whose content is not, making it if it is not there; a link is not followed.

    Raises:
        OSError: If something else than a file is there, or it cannot be opened.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # NFS locks need a right to read and to write
    file = os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=0)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, f"{path.name} is not a file")
    return file


@contextlib.contextmanager
def locked(folder: Path, *, wait: bool = False, shared: bool = False) -> Iterator[None]:
    """Only one writer per folder, also across machines that share a file system with locks; object stores have none.

    Args:
        folder: Made if it is not there.
        wait: Wait for another process instead of refusing, where writing takes a moment only.
        shared: Together with others that share it, but not beside one that does not.

    Yields:
        Nothing.

    Raises:
        BadInput: If another process is writing there.
    """
    if is_remote(folder):
        yield
        return
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = open_to_lock(folder / ".lock")
    with file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            raise BadInput(
                found=f"another build writing to {folder}",
                needed="one at a time",
                do="wait for it to end, or build into another folder",
            ) from error
        yield
