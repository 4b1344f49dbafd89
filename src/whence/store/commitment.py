"""The file in which a store keeps what it commits to. The manifest names it, so that both are sealed together.

It is named after the root: what is deleted changes the manifest in one step, and what a killed process wrote for another root does not count.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from whence.store.documents import Documents, documents_of
from whence.store.files import disk_errors, file_sizes, read_record, write_record
from whence.store.reader import Store

__all__ = ["committed", "is_commitment", "remove_commitments", "write_commitment"]

_NAME = re.compile(r"documents-[0-9a-f]{16}\.json")


def is_commitment(name: str) -> bool:
    """Whether a file beside the shards is one."""
    return _NAME.fullmatch(name) is not None


def committed(store: Store) -> Documents | None:
    """What a store commits to; None in one of an earlier version."""
    name = next(filter(is_commitment, store.files), None)
    return None if name is None else read_record(Documents, store.folder / name)


def write_commitment(store: Store) -> dict[str, str]:
    """Write what a store commits to.

    Args:
        store: All shards, less what was deleted.

    Returns:
        Name and SHA-256 of the file, for the manifest.
    """
    documents = documents_of(store.examples)
    name = f"documents-{documents.root[:16]}.json"
    return {name: write_record(store.folder / name, asdict(documents))}


def remove_commitments(folder: Path, files: Mapping[str, str]) -> None:
    """Remove those that the manifest does not name.

    Args:
        folder: The store.
        files: What its manifest names.
    """
    with disk_errors(folder):
        for name in file_sizes(folder):
            if is_commitment(name) and name not in files:
                (folder / name).unlink()
