"""Rows of one kind that wait in a file, written and read place by place: what a killed process had written is there for the next one."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from whence.durable import disk_errors
from whence.errors import StoreCorrupt
from whence.store.files import damaged, open_to_lock

__all__ = ["RowFile"]


class RowFile:
    """A file of rows, zeros where none was written yet. Nothing is mapped: a file that is cut by somebody is refused.

    Args:
        path: The file, made if it is not there; never through a link.
        length: Rows in all.
        like: A row, shape (1, ...), for its type and shape.

    Raises:
        BadInput: If something else than a file is there.
        StoreCorrupt: If the file there is of another length.
    """

    def __init__(self, path: Path, length: int, like: Tensor):
        self.path, self.length, self.like = path, length, like[0]
        self.row_bytes = self.like.numel() * self.like.element_size()
        with disk_errors(path):
            self.file = open_to_lock(path)
            size = os.fstat(self.file.fileno()).st_size
            if not size:
                os.truncate(self.file.fileno(), length * self.row_bytes)
        if size not in (0, length * self.row_bytes):
            self.file.close()
            raise StoreCorrupt(**damaged(path, f"it has {size:,} bytes, not those of {length:,} rows"))

    def write(self, numbers: Sequence[int], rows: Tensor) -> None:
        """Rows (K, ...) to their places.

        Raises:
            DiskFull: If there is no room.
        """
        content = rows.to(self.like.dtype).contiguous().view(torch.uint8).reshape(len(numbers), -1).numpy()
        with disk_errors(self.path):
            for number, row in zip(numbers, content, strict=True):
                os.pwrite(self.file.fileno(), row.data, number * self.row_bytes)

    def read(self, numbers: Sequence[int]) -> Tensor:
        """The rows at some places, shape (K, ...).

        Raises:
            StoreCorrupt: If the file has been cut.
        """
        memory = bytearray(self.row_bytes * len(numbers))
        view = memoryview(memory)
        for number, row in enumerate(numbers):
            part = view[number * self.row_bytes : (number + 1) * self.row_bytes]
            if part.nbytes and os.preadv(self.file.fileno(), [part], row * self.row_bytes) != part.nbytes:
                raise StoreCorrupt(**damaged(self.path, "it ends too early"))
        if not memory:
            return torch.empty((len(numbers), *self.like.shape), dtype=self.like.dtype)
        return torch.frombuffer(memory, dtype=self.like.dtype).view(len(numbers), *self.like.shape)

    def close(self) -> None:
        """Close the file, which stays."""
        self.file.close()
