"""Stores in object storage, through fsspec: the same files under a URL such as s3://bucket/store.

An object is there as a whole or not at all, so nothing is written beside and renamed. There are no locks: one process writes. Reading asks
for the bytes that are wanted, and no object is read just to see that it has not changed; `whence verify` does that.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from whence.errors import BadInput
from whence.store.tensor_bytes import fresh_memory, spans_of, tensor_at

__all__ = ["fetch_tensors", "is_remote", "located", "put", "remote_errors"]

# Bytes asked for at first, which hold most headers.
_HEADER_GUESS = 64 << 10
# A path that went through pathlib has lost one of the two slashes; drive letters have one character.
_URL = re.compile(r"([a-z][a-z0-9+.-]+):/+(.*)")


def located(folder: str | Path) -> Path:
    """A folder of a store by path or URL.

    Args:
        folder: A path, or a URL of a scheme that fsspec knows, such as s3://bucket/store. Keys and endpoints come from where its file system
            looks for them (for S3 the AWS variables and files, or FSSPEC_S3_ENDPOINT_URL).

    Returns:
        A path; for a URL one that behaves as paths do.

    Raises:
        BadInput: If the packages for it are not installed, or it cannot be reached.
    """
    match = _URL.fullmatch(str(folder))
    if match is None or is_remote(folder):
        return cast(Path, folder) if is_remote(folder) else Path(folder)
    scheme, rest = match.groups()
    if scheme == "file":
        return Path("/" + rest)
    url = f"{scheme}://{rest.rstrip('/')}"
    try:
        from upath import UPath

        # What was listed before may be out of date: others write there, too.
        path = UPath(url, use_listings_cache=False)
        path.fs  # noqa: B018  # loads the package of the scheme
    except (ImportError, ValueError) as error:
        raise BadInput(
            found=f"{url}, for which a package is missing ({error})",
            needed="fsspec, universal_pathlib and the file system of the scheme",
            do="pip install 'whence-tda[remote]', and for other schemes than s3 the package that fsspec names",
        ) from error
    with remote_errors(url):
        path.exists()
    return cast(Path, path)


def is_remote(path: Any) -> bool:
    """Whether a path is one that `located` made of a URL."""
    return hasattr(path, "fs")


@contextmanager
def remote_errors(url: Any) -> Iterator[None]:
    """Turn what an object store can refuse into one error; what is merely not there stays a FileNotFoundError.

    Yields:
        Nothing.

    Raises:
        BadInput: If it refuses, or is not reached.
    """
    try:
        yield
    except Exception as error:  # every file system has errors of its own
        if isinstance(error, FileNotFoundError | ValueError):
            raise
        raise BadInput(
            found=f"{url}, which cannot be used ({(str(error).strip().splitlines() or [type(error).__name__])[0][:160]})",
            needed="an object store within reach, and the right to use it",
            do="check the address, the keys and the endpoint, and run the same command again: finished shards are kept",
        ) from error


def put(path: Any, content: bytes) -> None:
    """Write an object in one call: it is there when all of it is.

    Raises:
        BadInput: If there is no such bucket.
    """
    try:
        with remote_errors(path):
            path.fs.pipe_file(path.path, content)
    except FileNotFoundError as error:
        raise BadInput(
            found=f"{path}, which cannot be written (there is no such bucket)",
            needed="a bucket that exists",
            do="make it first",
        ) from error


def fetch_tensors(path: Any, names: Sequence[str] | None) -> dict[str, Tensor]:
    """Some or all tensors of a safetensors object, by a few requests: its header, and the bytes from the first to the last that is wanted.

    Raises:
        ValueError: If it is not one, or lacks one of them.
        OSError: If it is not there.
    """
    with remote_errors(path):
        size = int(path.fs.info(path.path)["size"])
        header_bytes = path.fs.cat_file(path.path, start=0, end=min(size, _HEADER_GUESS))

        def read(start: int, stop: int) -> bytes:
            return (
                header_bytes[start:stop]
                if stop <= len(header_bytes)
                else path.fs.cat_file(path.path, start=start, end=min(stop, size))
            )

        spans = spans_of(read, size)
        missing = [name for name in names or () if name not in spans]
        if missing:
            raise ValueError(f"it has no tensor {missing[0][:80]!r}")
        spans_wanted = {name: spans[name] for name in (spans if names is None else names)}
        first = min((span.start for span in spans_wanted.values()), default=0)
        last = max((span.stop for span in spans_wanted.values()), default=0)
        data = path.fs.cat_file(path.path, start=first, end=last) if last > first else b""
    if len(data) != last - first:
        raise ValueError("it ends too early")
    tensors = {}
    for name, span in spans_wanted.items():
        memory = fresh_memory(span.size)
        memory[: span.size] = data[span.start - first : span.stop - first]
        tensors[name] = tensor_at(memory, 0, span)
    return tensors
