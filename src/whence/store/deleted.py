"""Rows that were deleted from a store: listed beside the shards, whose bytes stay as they are.

The list has a name of its own every time it grows, and counts once the manifest names it: a process that is killed has deleted all that was
asked for or nothing. A store with a list has a format version of its own, so that readers that know of none refuse it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from whence.errors import StoreCorrupt
from whence.store.examples import read_example
from whence.store.files import damaged, file_sizes, read_content, read_json, read_record, sha256_of, write_record
from whence.store.format import DELETED_FORMAT_VERSION, Seal, shard_stem

__all__ = [
    "Deleted",
    "check_deleted",
    "is_deleted_list",
    "listed_deleted",
    "newest_deleted",
    "rows_left",
    "unlisted_deleted",
    "write_deleted",
]

_NAME = re.compile(r"deleted-\d{5,}\.json")


@dataclass(frozen=True)
class Deleted:
    """Which rows of a store were deleted.

    Args:
        rows: By number of a shard, as text, those of its rows, counted from 0 within it, ascending.
        ids: Their ids: by rising number of the shard, and in the order of its rows.
    """

    rows: Mapping[str, tuple[int, ...]]
    ids: tuple[str, ...]

    def by_shard(self) -> dict[int, tuple[int, ...]]:
        """The rows by number of the shard, ascending."""
        return {number: self.rows[str(number)] for number in sorted(map(int, self.rows))}


def is_deleted_list(name: str) -> bool:
    """Whether a file beside the shards is a list of deleted rows."""
    return _NAME.fullmatch(name) is not None


def rows_left(count: int, deleted: Sequence[int]) -> list[int]:
    """Rows of a shard that were not deleted.

    >>> rows_left(5, [0, 3])
    [1, 2, 4]
    """
    without = set(deleted)
    return [row for row in range(count) if row not in without]


def listed_deleted(folder: Path, seals: Sequence[Seal], files: Mapping[str, str]) -> Deleted | None:
    """What was deleted from a finished store.

    Args:
        folder: The store.
        seals: Its shards.
        files: Name and SHA-256 of the files beside them, as the manifest lists them.

    Returns:
        None if nothing was.

    Raises:
        StoreCorrupt: If the list is missing or altered, or is of other shards.
    """
    names = [name for name in files if is_deleted_list(name)]
    if not names:
        if _says_deleted(folder) and not _lists_in(folder):
            raise StoreCorrupt(
                found=f"a store in {folder} from which rows were deleted, without the list of them",
                needed=f"the file deleted-N.json, since format {DELETED_FORMAT_VERSION} says that there is one",
                do="restore the folder from a copy, or build another store without those documents",
            )
        return None
    path = folder / names[0]
    try:
        is_sealed = len(names) == 1 and sha256_of(path) == files[names[0]]
    except FileNotFoundError as error:
        raise StoreCorrupt(**_damaged(path, "it is missing")) from error
    if not is_sealed:
        why = "its checksum is not the sealed one" if len(names) == 1 else "the manifest names two lists of deleted rows"
        raise StoreCorrupt(**_damaged(path, why))
    return _read(path, seals)


def newest_deleted(folder: Path, seals: Sequence[Seal]) -> tuple[dict[str, str], Deleted | None]:
    """What was deleted from a store whose manifest is to be written: a build carries it on, listed before or not.

    Args:
        folder: The store.
        seals: Its shards.

    Returns:
        Name and SHA-256 of the list for the manifest, and the list; nothing if there is none.

    Raises:
        StoreCorrupt: If it is altered, or is of other examples.
    """
    names = _lists_in(folder)
    if not names:
        listed_deleted(folder, seals, {})  # which refuses a store that has lost it
        return {}, None
    path = folder / names[-1]
    deleted = _read(path, seals)
    if why := check_deleted(folder, seals, deleted):
        raise StoreCorrupt(**_damaged(path, why))
    return {path.name: sha256_of(path)}, deleted


def check_deleted(folder: Path, seals: Sequence[Seal], deleted: Deleted) -> str:
    """Hold the ids of deleted rows against the shards.

    Args:
        folder: The store.
        seals: Its shards.
        deleted: What was deleted.

    Returns:
        What is wrong; empty if nothing is.
    """
    by_number = {seal.number: seal for seal in seals}
    ids = iter(deleted.ids)
    for number, rows in deleted.by_shard().items():
        path = (folder / shard_stem(number)).with_suffix(".jsonl")
        try:
            lines = read_content(path, by_number[number].examples_bytes).splitlines()
            if any(read_example(lines[row])["id"] != next(ids) for row in rows):
                return f"it names other ids than the rows of shard {number}"
        except (IndexError, OSError, ValueError) as error:
            return f"{path.name} cannot be read: {error}"
    return ""


def write_deleted(folder: Path, deleted: Deleted, files: Mapping[str, str]) -> dict[str, str]:
    """Write a list under another name than that which the manifest names.

    Args:
        folder: The store.
        deleted: What was deleted.
        files: What the manifest names beside the shards.

    Returns:
        Its name and SHA-256, for the manifest.
    """
    number = max(
        (int(name.removeprefix("deleted-").removesuffix(".json")) for name in filter(is_deleted_list, files)), default=0
    )
    name = f"deleted-{number + 1:05d}.json"
    return {name: write_record(folder / name, asdict(deleted))}


def unlisted_deleted(folder: Path, files: Mapping[str, str]) -> list[str]:
    """Lists of deleted rows in a folder that its manifest does not name: those of a stopped deletion, or older ones."""
    return [name for name in _lists_in(folder) if name not in files]


def _lists_in(folder: Path) -> list[str]:
    """Names of the lists in a folder, oldest first."""
    return sorted(filter(is_deleted_list, file_sizes(folder)), key=lambda name: (len(name), name))


def _says_deleted(folder: Path) -> bool:
    return read_json(folder / "blueprint.json").get("format") == DELETED_FORMAT_VERSION


def _read(path: Path, seals: Sequence[Seal]) -> Deleted:
    """A list, if it can be one of these shards.

    Raises:
        StoreCorrupt: If it cannot.
    """
    deleted = read_record(Deleted, path)
    sizes = {str(seal.number): seal.rows for seal in seals}
    for number, rows in deleted.rows.items():
        is_ascending = all(a < b for a, b in zip(rows, rows[1:], strict=False))
        if number not in sizes or not rows or not is_ascending or not 0 <= rows[0] <= rows[-1] < sizes[number]:
            raise StoreCorrupt(**_damaged(path, f"it names rows that shard {number[:20]} has not"))
    count = sum(map(len, deleted.rows.values()))
    if count != len(deleted.ids) or count >= sum(sizes.values()):
        raise StoreCorrupt(**_damaged(path, f"it names {count:,} rows of {sum(sizes.values()):,} and {len(deleted.ids):,} ids"))
    return deleted


def _damaged(path: Path, why: str) -> dict[str, str]:
    """What to say of a list: without it, what must not be read would be read."""
    return {
        **damaged(path, why),
        "do": "restore it from a copy, or build another store without the documents that were deleted",
    }
