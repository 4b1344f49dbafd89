"""Which records a store was built without, because they could not be used: kept beside its rows, and told in every answer."""

from pathlib import Path

from whence.data import Dataset, Skipped, skipped_note
from whence.errors import StoreCorrupt
from whence.store.files import damaged, read_json, write_json
from whence.store.reader import Store
from whence.store.resume import listed_files
from whence.store.rewritten import name_now, write_anew
from whence.strict_json import fitted

__all__ = ["left_out_notes", "write_left_out"]

_NAME = "left_out.json"


def write_left_out(folder: Path, dataset: Dataset) -> dict[str, str]:
    """Add the records that were left out of a dataset to those of the datasets that are in the store already.

    Args:
        folder: The store.
        dataset: What was built.

    Returns:
        Name and SHA-256 of the file that holds them, for the manifest; nothing if there are none.
    """
    path = folder / name_now(listed_files(folder) or {}, _NAME)
    by_dataset = _read(path) if path.exists() else {}
    if dataset.skipped:
        by_dataset = {**by_dataset, dataset.fingerprint: [[record.id, record.reason] for record in dataset.skipped]}
    return write_anew(folder, _NAME, lambda path: write_json(path, by_dataset)) if by_dataset else {}


def left_out_notes(store: Store) -> tuple[str, ...]:
    """What an answer says of the records that a store was built without."""
    name = name_now(store.files, _NAME)
    if name not in store.files:
        return ()
    by_dataset = _read(store.folder / name)
    records = [Skipped(name, reason) for data, _ in store.datasets() for name, reason in by_dataset.get(data, ())]
    return skipped_note("training records", records)


def _read(path: Path) -> dict[str, tuple[tuple[str, str], ...]]:
    """Ids and reasons, by fingerprint of the dataset.

    Raises:
        StoreCorrupt: If it holds something else.
    """
    try:
        return fitted(dict[str, tuple[tuple[str, str], ...]], read_json(path), "it")
    except TypeError as error:
        raise StoreCorrupt(**damaged(path, str(error))) from error
