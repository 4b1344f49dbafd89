"""Rows on disk: format, writer, reader."""

from whence.store.files import write_tensors
from whence.store.format import FORMAT_VERSION, Blueprint, Seal, StoredUnit, dtype_named
from whence.store.reader import Store, open_store
from whence.store.verify import verify_store
from whence.store.writer import Pending, Writer, write_store

__all__ = [
    "FORMAT_VERSION",
    "Blueprint",
    "Pending",
    "Seal",
    "Store",
    "StoredUnit",
    "Writer",
    "dtype_named",
    "open_store",
    "verify_store",
    "write_store",
    "write_tensors",
]
