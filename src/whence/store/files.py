"""Files that are either whole or absent: written beside, synced, renamed."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from whence.errors import BadInput, DiskFull, StoreCorrupt
from whence.store.plain_files import JSON_BYTES, check_real_folder, open_plain, read_plain
from whence.store.remote import fetch_tensors, is_remote, put, remote_errors
from whence.store.strict_json import parse_json

__all__ = [
    "check_writable",
    "damaged",
    "disk_errors",
    "file_sizes",
    "locked",
    "open_to_lock",
    "read_json",
    "read_tensors",
    "sha256_of",
    "write_bytes",
    "write_json",
    "write_tensors",
]

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
        raise BadInput(**_unwritable(path, error.strerror or str(error))) from error


def _unwritable(path: Path, why: str) -> dict[str, str]:
    return {
        "found": f"{path}, which cannot be written ({why})",
        "needed": "a folder that can be created and written",
        "do": "choose another output folder or change its permissions",
    }


def check_writable(folder: Path) -> None:
    """Refuse an output folder that cannot be made or written, before anything long runs.

    Raises:
        BadInput: If it cannot.
    """
    if is_remote(folder):  # a right to write shows when something is written
        return
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = f"no right to write in {there}" if there.is_dir() else f"{there} is a file"
        raise BadInput(**_unwritable(folder, why))


def write_bytes(path: Path, chunks: Iterable[bytes | memoryview]) -> str:
    """Write a file atomically and durably.

    Args:
        path: Where it will be; nothing is there until all is written.
        chunks: Its content.

    Returns:
        SHA-256 of the content.

    Raises:
        OSError: Turned into a `WhenceError` by `disk_errors`.
    """
    digest = hashlib.sha256()
    if is_remote(path):
        content = b"".join(chunks)
        put(path, content)
        return hashlib.sha256(content).hexdigest()
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
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    return digest.hexdigest()


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


def write_json(path: Path, content: Any) -> str:
    """Write a JSON file atomically; returns its SHA-256."""
    return write_bytes(path, [json.dumps(content, indent=1, sort_keys=True).encode() + b"\n"])


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


def read_tensors(path: Path, names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Some or all tensors of a safetensors file.

    Raises:
        StoreCorrupt: If it is missing or not what was written.
    """
    try:
        if is_remote(path):
            return fetch_tensors(path, names)
        with open_tensors(path) as file:
            return {name: file.get_tensor(name) for name in (file.keys() if names is None else names)}
    except (SafetensorError, OSError) as error:
        raise StoreCorrupt(**damaged(path, reason(error))) from error


@contextlib.contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """Open a safetensors file that is a file; tensors read from it stay when it is closed.

    Yields:
        What `safetensors.safe_open` does.

    Raises:
        OSError: If it is not there, or no file.
        SafetensorError: If it is damaged.
    """
    with open_plain(path) as file, safe_open(f"/dev/fd/{file.fileno()}", framework="pt") as tensors:
        yield tensors


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
        StoreCorrupt: If it is missing, not a file, or no such JSON.
    """
    try:
        return parse_json(read_content(path), any_number=any_number)
    except (OSError, ValueError) as error:
        raise StoreCorrupt(
            found=f"{path.name} missing or unreadable in {path.parent} ({reason(error)})",
            needed="a complete store",
            do="run the same `whence build` again, or restore the folder from a copy",
        ) from error


def read_content(path: Path, at_most: int = JSON_BYTES) -> bytes:
    """All bytes of a file beside others, here or in an object store.

    Raises:
        OSError: If it is not there, is no file, or has more bytes than that.
    """
    if not is_remote(path):
        return read_plain(path, at_most=at_most)
    with remote_errors(path):
        content = path.fs.cat_file(path.path, start=0, end=at_most + 1)  # type: ignore[attr-defined]
    if len(content) > at_most:
        raise OSError(f"it has more than the {at_most:,} bytes that such a file may have")
    return content


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
                listed = folder.fs.ls(folder.path, detail=True)  # type: ignore[attr-defined]
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
