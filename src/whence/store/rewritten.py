"""Files that are written anew, under another name, when documents are added to a store.

So the store is what it was until its manifest names them. The first one has the plain name, such as curvature.safetensors, the next one
is curvature-00002.safetensors.
"""

import re
from collections.abc import Callable, Iterable
from pathlib import Path, PurePath

from whence.store.files import disk_errors, file_sizes
from whence.store.resume import listed_files

__all__ = ["drop_unlisted", "name_now", "write_anew"]

# All of them; readers ask for the first name.
REWRITTEN = ("curvature.safetensors", "fidelity.json", "left_out.json")


def name_now(files: Iterable[str], plain: str) -> str:
    """What a file is called now.

    >>> name_now(["probe.safetensors", "fidelity-00003.json"], "fidelity.json")
    'fidelity-00003.json'

    Args:
        files: Names that the manifest lists.
        plain: Its first name.

    Returns:
        The listed name; the first one if none is listed.
    """
    return next((name for name in files if _number(name, plain)), plain)


def write_anew(folder: Path, plain: str, write: Callable[[Path], str]) -> dict[str, str]:
    """Write a file beside the one that is listed, unless it has the same bytes.

    Args:
        folder: The store.
        plain: The file's first name.
        write: From a path to the SHA-256 of what it wrote there.

    Returns:
        Name and SHA-256, for the manifest.
    """
    files = listed_files(folder) or {}
    name = name_now(files, plain)
    if name not in files:
        return {name: write(folder / name)}
    path = PurePath(plain)
    new = f"{path.stem}-{_number(name, plain) + 1:05d}{path.suffix}"
    sha256 = write(folder / new)
    if sha256 != files[name]:
        return {new: sha256}
    write(folder / name)  # it may have been damaged
    with disk_errors(folder):
        (folder / new).unlink()
    return {name: sha256}


def drop_unlisted(folder: Path, files: Iterable[str]) -> None:
    """Remove what files were called before.

    Args:
        folder: The store.
        files: Names that the manifest lists.
    """
    listed = set(files)
    with disk_errors(folder):
        for name in file_sizes(folder).keys() - listed:
            if any(_number(name, plain) for plain in REWRITTEN):
                (folder / name).unlink()


def _number(name: str, plain: str) -> int:
    """How often a file was written under another name, counted from 1; 0 if it is another file."""
    path = PurePath(plain)
    match = re.fullmatch(rf"{re.escape(path.stem)}(?:-(\d{{5}}))?{re.escape(path.suffix)}", name)
    return 0 if match is None else int(match[1] or 1)
