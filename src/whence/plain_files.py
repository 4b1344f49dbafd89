"""Opening files that somebody else may have put there: a file of bytes or an error, never a link, a pipe or a device.

A store that was downloaded is a folder of a stranger. A link in it leads elsewhere, a pipe waits for ever, a device never ends: all reading
of stores, tables, banks, runs and fits goes through `open_plain`, and what a record says of other files through `check_name`.
"""

import io
import os
import re
import stat
import warnings
from pathlib import Path
from typing import Any

__all__ = [
    "IMAGE_BYTES",
    "IMAGE_PIXELS",
    "JSON_BYTES",
    "check_name",
    "check_real_folder",
    "open_image",
    "open_plain",
    "read_plain",
]

# No record of ours comes near; reading and parsing so much takes a few seconds.
JSON_BYTES = 256 << 20
# A photograph of 100 megapixels takes 300 MB once it is unpacked.
IMAGE_BYTES, IMAGE_PIXELS = 256 << 20, 100_000_000
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def open_plain(path: Path, *, at_most: int | None = None, is_named: bool = False) -> io.BufferedReader:
    """Open a file for reading, if it is one.

    Args:
        path: Where it is. Its last component is never followed if it is a link.
        at_most: Bytes that it may have; None for any number.
        is_named: A person named this very file, so a link is what they meant.

    Returns:
        The file, which is read from the first byte on.

    Raises:
        OSError: If it is not there, cannot be read, is not a file, or is larger.
    """
    # Looking first keeps a device from being opened at all, which some act upon.
    _check_kind((os.stat if is_named else os.lstat)(path).st_mode)
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK | (0 if is_named else os.O_NOFOLLOW)
    file = os.fdopen(os.open(path, flags), "rb")
    try:
        opened = os.fstat(file.fileno())  # of what was opened, which nobody can swap any more
        _check_kind(opened.st_mode)
        if at_most is not None and opened.st_size > at_most:
            raise OSError(f"it has {opened.st_size:,} bytes, more than the {at_most:,} that such a file may have")
    except OSError:
        file.close()
        raise
    return file


def read_plain(path: Path, *, at_most: int = JSON_BYTES, is_named: bool = False) -> bytes:
    """All bytes of a file, opened as `open_plain` does.

    Raises:
        OSError: As there.
    """
    with open_plain(path, at_most=at_most, is_named=is_named) as file:
        content = file.read(at_most + 1)  # it may grow meanwhile
    if len(content) > at_most:
        raise OSError(f"it has more than the {at_most:,} bytes that such a file may have")
    return content


def open_image(path: str | Path) -> Any:
    """The image in a file, all three channels, if it is a file and of a size that a picture has.

    Args:
        path: Of the file; a person or their data named it, so that a link is followed.

    Returns:
        A `PIL.Image.Image` in RGB, in memory.

    Raises:
        ImportError: If Pillow is missing.
        OSError: If it is no file, too large, or no image.
        ValueError: If it has more pixels than a picture, or is damaged.
    """
    from PIL import Image

    with open_plain(Path(path), at_most=IMAGE_BYTES, is_named=True) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below says it
        try:
            with Image.open(file) as image:
                if image.width * image.height > IMAGE_PIXELS:
                    raise ValueError(f"it has {image.width:,} x {image.height:,} pixels, more than {IMAGE_PIXELS:,}")
                return image.convert("RGB")
        except (SyntaxError, Image.DecompressionBombError) as error:  # what Pillow raises for some damaged files
            raise ValueError(str(error)) from error


def check_name(name: object) -> str:
    """The name of a file as a record gives it, if it is a plain one: no folder, no way out of the folder, nothing hidden.

    Raises:
        ValueError: If it is anything else.

    >>> check_name("curvature.safetensors")
    'curvature.safetensors'
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"{str(name)[:80]!r} is not the plain name of a file beside it")
    return name


def check_real_folder(folder: Path) -> None:
    """Refuse a folder inside a store, table or run that is a link or anything else than a folder; one that is not there is fine.

    Raises:
        OSError: If it is one.
    """
    try:
        mode = os.lstat(folder).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(mode):
        raise OSError(f"{folder.name} is {_KINDS.get(stat.S_IFMT(mode), 'a file')}, not a folder")


def _check_kind(mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise OSError(f"it is {_KINDS.get(stat.S_IFMT(mode), 'no file')}, not a file")
