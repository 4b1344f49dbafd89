"""Stores in object storage, through fsspec: the same files under a URL such as s3://bucket/store.

An object is there as a whole or not at all, so nothing is written beside and renamed. There are no locks: one process writes. Reading asks
for the bytes that are wanted, and no object is read just to see that it has not changed; `whence verify` does that.
"""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from whence.errors import BadInput

__all__ = ["fetch_tensors", "is_remote", "located", "put", "remote_errors"]

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
    found = _URL.fullmatch(str(folder))
    if found is None or is_remote(folder):
        return cast(Path, folder) if is_remote(folder) else Path(folder)
    scheme, rest = found.groups()
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
        if isinstance(error, FileNotFoundError | SafetensorError):
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
    """Some or all tensors of a safetensors object, by three requests: its header, and the bytes from the first to the last that is wanted.

    Raises:
        SafetensorError: If it is not one.
        OSError: If it is not there.
    """
    with remote_errors(path):
        head = path.fs.cat_file(path.path, start=0, end=8)
        length = int.from_bytes(head, "little")
        text = path.fs.cat_file(path.path, start=8, end=8 + length)
        try:
            header = json.loads(text)
            wanted = {name: header[name] for name in (header if names is None else names) if name != "__metadata__"}
        except (ValueError, KeyError, TypeError) as error:
            raise SafetensorError(f"no header with the tensors that are needed ({error})") from error
        first = min((item["data_offsets"][0] for item in wanted.values()), default=0)
        last = max((item["data_offsets"][1] for item in wanted.values()), default=0)
        data = path.fs.cat_file(path.path, start=8 + length + first, end=8 + length + last) if last > first else b""
    # As a file of its own, of what was fetched.
    part, at = {}, 0
    pieces = []
    for name, item in sorted(wanted.items(), key=lambda pair: pair[1]["data_offsets"][0]):
        start, stop = item["data_offsets"]
        part[name] = {**item, "data_offsets": [at, at + stop - start]}
        pieces.append(data[start - first : stop - first])
        at += stop - start
    text = json.dumps(part).encode()
    found = load(len(text).to_bytes(8, "little") + text + b"".join(pieces))
    return {name: found[name] for name in wanted}
