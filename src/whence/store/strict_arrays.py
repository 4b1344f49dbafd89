"""Reading NumPy's `.npy` files that somebody else wrote: numbers only, and as many as the file has bytes for."""

import ast
import math
import os
import re
from pathlib import Path

import numpy as np

from whence.plain_files import open_plain

__all__ = ["read_npy"]

_MAGIC = b"\x93NUMPY"
# NumPy's own limit; ours have 128 bytes.
_MOST_HEADER_BYTES = 10_000
_MOST_AXES, _LONGEST_AXIS = 16, 1 << 40
# Booleans, whole and real numbers of any byte order. No objects (which are pickles), no texts, no records.
_NUMBERS = re.compile(r"[<>|=][biuf](?:1|2|4|8)")
_LENGTHS = {1: 2, 2: 4, 3: 4}


def read_npy(path: Path, *, is_named: bool = False) -> np.ndarray:
    """The array in a `.npy` file.

    Args:
        path: The file.
        is_named: As in `open_plain`.

    Returns:
        The array, in the byte order of this machine, in memory of its own.

    Raises:
        OSError: If the file is not there, or no file.
        ValueError: If it is not in that format, holds something other than numbers, or does not have exactly the bytes that its header
            speaks of. Nothing is allocated before that is known.
    """
    with open_plain(path, is_named=is_named) as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        if len(start) < 8 or not start.startswith(_MAGIC) or start[6] not in _LENGTHS:
            raise ValueError("it is not in NumPy's format")
        digits = _LENGTHS[start[6]]
        length = int.from_bytes(file.read(digits), "little")
        first = 8 + digits + length
        if length > _MOST_HEADER_BYTES or first > size:
            raise ValueError("its header is not there")
        dtype, shape, by_columns = _header(file.read(length))
        if math.prod(shape) * dtype.itemsize != size - first:
            raise ValueError(f"{size - first:,} bytes of numbers, not those of {dtype} of shape {shape}")
        numbers = np.empty(math.prod(shape), dtype)
        if file.readinto(numbers.view(np.uint8).data) != numbers.nbytes:
            raise ValueError("it ends too early")
    array = numbers.reshape(shape, order="F" if by_columns else "C")
    array = array.astype(dtype.newbyteorder("="), copy=False)
    if dtype.kind == "b" and bool((array.view(np.uint8) > 1).any()):
        raise ValueError("truth values that are neither 0 nor 1")
    return array


def _header(text: bytes) -> tuple[np.dtype, tuple[int, ...], bool]:
    """Type, shape, and whether the array lies column by column.

    Raises:
        ValueError: If it says something else.
    """
    try:
        header = ast.literal_eval(text.decode("latin-1").strip())
        kind, shape, by_columns = header["descr"], header["shape"], header["fortran_order"]
    except (SyntaxError, TypeError, KeyError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError("its header cannot be read") from error
    if len(header) != 3 or not isinstance(kind, str) or not _NUMBERS.fullmatch(kind) or type(by_columns) is not bool:
        raise ValueError(f"it holds {str(kind)[:40]}, not plain numbers")
    whole = isinstance(shape, tuple) and len(shape) <= _MOST_AXES
    if not whole or any(type(axis) is not int or not 0 <= axis <= _LONGEST_AXIS for axis in shape):
        raise ValueError(f"its shape is {str(shape)[:40]}")
    try:
        return np.dtype(kind), shape, by_columns
    except TypeError as error:
        raise ValueError(f"it holds {kind}, not plain numbers") from error
