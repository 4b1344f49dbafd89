"""Deleting rows of a store by their ids: at once for every reader, while their bytes stay in the files."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from pathlib import Path

from whence.errors import BadInput, StoreMismatch
from whence.store.commitment import is_commitment, remove_commitments, write_commitment
from whence.store.deleted import Deleted, is_deleted_list, listed_deleted, rows_left, unlisted_deleted, write_deleted
from whence.store.files import disk_errors, locked, read_json, write_json
from whence.store.format import DELETED_FORMAT_VERSION
from whence.store.opening import open_store
from whence.store.reader import Store
from whence.store.remote import is_remote, located
from whence.store.resume import is_growing, listed_files

__all__ = ["delete_rows", "deleted_notes", "deleted_since", "row_now", "with_deleted"]

# Ids that an error names.
_NAMED = 8


def delete_rows(folder: str | Path, ids: Iterable[str]) -> Store:
    """Delete training examples from a store: no reader shows, scores or counts them from now on.

    Their rows and texts stay in the files, and curvature and code are still those that were learned with them. A process that is killed has
    deleted all of them or none, and may be run again. Scores of the others are what they were, times the examples before over those that are
    left. `whence.pipeline.refit` learns and writes all of it anew.

    Args:
        folder: Of a finished store, or a URL. Of an object store, which has no locks, by one process at a time.
        ids: Of the examples; those that are deleted already may be among them.

    Returns:
        The store without them.

    Raises:
        BadInput: If an id is not in the store, none is given, one is given without a list around it, or no row would be left.
        StoreMismatch: If documents are being added to the store, or an addition was stopped.

    >>> import tempfile, torch, whence
    >>> task = whence.Classification(torch.nn.Linear(2, 2))
    >>> train = [{"id": f"r{number}", "inputs": torch.randn(2), "label": 0} for number in range(4)]
    >>> config, quiet = whence.BuildConfig(method="grad-dot"), whence.Runtime(quiet=True)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = whence.build(task, train, folder, config=config, runtime=quiet)
    ...     whence.store.delete_rows(folder, ["r1"]).ids()
    ('r0', 'r2', 'r3')
    """
    if isinstance(ids, str):
        raise BadInput(found=f"the ids {ids!r}, one text", needed="a list of ids", do=f"pass [{ids!r}]")
    folder, wanted = located(folder), set(ids)
    if not wanted:
        raise BadInput(found="no id", needed="ids of the examples to delete", do="name them")
    open_store(folder)  # refuses what is no whole store before a lock is left in it
    with locked(folder):
        store = open_store(folder, check=False)  # nobody changes it now
        if is_growing(folder):
            raise StoreMismatch(
                found=f"an unfinished addition to {folder}",
                needed="one change after the other",
                do="run the same `whence build --append` again, which finishes it",
            )
        new = [row for row, example in enumerate(store.examples()) if example["id"] in wanted]
        earlier = listed_deleted(folder, store.sealed, store.files) or Deleted({}, ())
        unknown = sorted(wanted - set(earlier.ids) - {example["id"] for example in store.examples_of(new).values()})
        if unknown:
            names = f"{', '.join(map(repr, unknown[:_NAMED]))}{' and more' if len(unknown) > _NAMED else ''}"
            raise BadInput(
                found=f"{len(unknown):,} ids that no row of {folder} has: {names}",
                needed="ids of examples in the store",
                do="correct or leave them out; nothing was deleted",
            )
        if len(new) == len(store):
            raise BadInput(
                found=f"all {len(store):,} rows of {folder} to delete",
                needed="a row that is left",
                do="remove the folder, if nothing of it is to stay",
            )
        if new:
            _write(store, earlier, new)
        with disk_errors(folder):
            for name in unlisted_deleted(folder, listed_files(folder) or {}):
                (folder / name).unlink()
        remove_commitments(folder, listed_files(folder) or {})
    return open_store(folder)


def deleted_notes(store: Store) -> tuple[str, ...]:
    """What an answer says of rows that were deleted."""
    if not store.num_deleted:
        return ()
    return (
        f"{store.num_deleted:,} deleted documents are left out; curvature and code are those that were learned with them until "
        "`whence refit` learns them again",
    )


def deleted_since(store: Store) -> bool:
    """Whether rows were deleted from a folder since it was opened; False for a remote one, where nothing is deleted."""
    if is_remote(store.folder):
        return False
    newer = unlisted_deleted(store.folder, store.files)
    return bool(newer) and any(name in newer for name in listed_files(store.folder) or {})


def row_now(store: Store, built: int) -> int | None:
    """The number that a row has now; it had another one when it was built if rows before it were deleted.

    Args:
        store: The store.
        built: Its number among all rows that were built.

    Returns:
        None if it was deleted.
    """
    start = num_before = 0
    for seal in store.sealed:
        deleted, row = store.deleted.get(seal.number, ()), built - start
        if row < seal.rows:
            return None if row in deleted else built - num_before - bisect_left(deleted, row)
        start, num_before = start + seal.rows, num_before + len(deleted)
    return None


def with_deleted(store: Store) -> Store:
    """A store with the rows that were deleted from it, to tell what it was built from."""
    return Store.of(store.folder, store.blueprint, store.sealed, store.files)


def _sealed_row(store: Store, row: int) -> tuple[int, int]:
    """Number of a row's shard, and its place among the rows that were sealed there."""
    at = bisect_right(store.starts, row) - 1
    seal = store.seals[at]
    return seal.number, rows_left(seal.rows, store.deleted.get(seal.number, ()))[row - store.starts[at]]


def _write(store: Store, earlier: Deleted, new: list[int]) -> None:
    """Add rows to the list of those that are deleted: the list first, then the format that keeps earlier readers out, then the manifest."""
    folder = store.folder
    examples = store.examples_of(new)
    id_of = dict(zip(((number, row) for number, rows in earlier.by_shard().items() for row in rows), earlier.ids, strict=True))
    id_of |= {_sealed_row(store, row): examples[row]["id"] for row in new}
    rows: dict[str, list[int]] = {}
    for number, row in sorted(id_of):
        rows.setdefault(str(number), []).append(row)
    deleted = Deleted({number: tuple(some) for number, some in rows.items()}, tuple(id_of[where] for where in sorted(id_of)))
    listed = write_deleted(folder, deleted, store.files)
    blueprint = read_json(folder / "blueprint.json")
    if blueprint["format"] != DELETED_FORMAT_VERSION:
        write_json(folder / "blueprint.json", {**blueprint, "format": DELETED_FORMAT_VERSION})
    manifest = read_json(folder / "manifest.json")
    others = {
        name: sha256 for name, sha256 in manifest["files"].items() if not is_deleted_list(name) and not is_commitment(name)
    }
    commitment = write_commitment(Store.of(folder, store.blueprint, store.sealed, {}, deleted))
    write_json(folder / "manifest.json", {**manifest, "files": {**others, **listed, **commitment}})
