"""What an earlier build left in a folder: which shards are whole, whether they are of the same rows and data, and what is missing."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whence.data import Dataset
from whence.distributed import Ranks
from whence.errors import StoreChanged, StoreCorrupt, StoreMismatch
from whence.plain_files import check_name
from whence.store.deleted import newest_deleted
from whence.store.examples import read_example
from whence.store.files import damaged, file_sizes, read_content, read_json
from whence.store.format import NOT_COMPARED, Blueprint, Seal, shard_stem
from whence.store.notes import read_notes, write_notes
from whence.store.sealed_files import SealedFiles
from whence.strict_json import fitted, record_of

__all__ = [
    "BEFORE",
    "addition_notes",
    "is_growing",
    "Layout",
    "Pending",
    "check_blueprint",
    "check_same",
    "check_data",
    "intact",
    "layouts",
    "listed_files",
    "read_seal",
    "read_seals",
    "shards_to_make",
]

# The manifest of a store that is built on: what it is until it is whole again.
BEFORE = "manifest.before.json"


@dataclass(frozen=True)
class Pending:
    """A shard still to be made.

    Args:
        number: Its place in the store.
        start: First row, counted in the dataset.
        stop: One past the last.
    """

    number: int
    start: int
    stop: int


@dataclass(frozen=True)
class Layout:
    """Where the shards of one dataset lie, whether they are there or not.

    Args:
        numbers: Of the shards.
        rows: Rows in all.
    """

    numbers: range
    rows: int


def read_seals(folder: Path) -> dict[int, Seal]:
    """Seals of all shards that are whole; without a readable seal and files of the sealed sizes a shard counts as absent."""
    seals = {}
    sizes = file_sizes(folder / "shards")
    for name in sorted(name for name in sizes if name.endswith(".json")):
        seal = read_seal(folder / "shards" / name, sizes)
        if seal is not None:
            seals[seal.number] = seal
    return seals


def read_seal(path: Path, sizes: Mapping[str, int]) -> Seal | None:
    """The seal of a shard that is whole.

    Args:
        path: Of the seal.
        sizes: By name, bytes of the files beside it and of itself.

    Returns:
        None if it cannot be read, or a file has not the sealed size.
    """
    if path.name not in sizes:
        return None
    seal = _seal(path)
    if seal is None:
        return None
    sealed = {f"{path.stem}.safetensors": seal.tensors_bytes, f"{path.stem}.jsonl": seal.examples_bytes}
    return seal if all(sizes.get(name) == size for name, size in sealed.items()) else None


def intact(folder: Path, seals: Mapping[int, Seal], files: Mapping[str, str]) -> tuple[dict[int, Seal], dict[str, str]]:
    """Shards and files beside them that have the sealed bytes. What was read and found so before is not read again, see `notes`.

    Args:
        folder: The store.
        seals: Shards whose files have the sealed sizes.
        files: Name and SHA-256 of files beside the shards.

    Returns:
        Those of both that are.
    """
    of_shards = {
        number: {f"{shard_stem(number)}.safetensors": seal.tensors_sha256, f"{shard_stem(number)}.jsonl": seal.examples_sha256}
        for number, seal in seals.items()
    }
    sealed = SealedFiles(folder, {**files, **{name: sha256 for shard in of_shards.values() for name, sha256 in shard.items()}})
    earlier_notes = read_notes(folder, Ranks())
    good_shards, notes = set(), {}
    for name in sealed.sealed:
        try:
            note = sealed.check(name, earlier_notes.get(name))
        except (StoreCorrupt, StoreChanged):
            continue
        good_shards.add(name)
        notes |= {} if note is None else {name: note}
    if {name: earlier_notes.get(name) for name in notes} != notes:
        write_notes(folder, Ranks(), {**earlier_notes, **notes})
    return (
        {number: seals[number] for number, shard in of_shards.items() if good_shards >= shard.keys()},
        {name: sha256 for name, sha256 in files.items() if name in good_shards},
    )


def listed_files(folder: Path) -> dict[str, str] | None:
    """Name and SHA-256 of the files beside the shards; None without a readable manifest. That from before a build counts, too."""
    return next((dict(manifest["files"]) for manifest in _manifests(folder)), None)


def is_growing(folder: Path) -> bool:
    """Whether documents are being added to a store, or an addition was stopped: it is what it was before until that is finished."""
    return not (folder / "manifest.json").exists() and (folder / BEFORE).exists()


def addition_notes(folder: Path) -> tuple[str, ...]:
    """What an answer says of documents that are not in a store yet."""
    if not is_growing(folder):
        return ()
    return (
        "documents are being added to this store, or an addition was stopped: the answer is from before; "
        "the same `whence build --append` finishes it",
    )


def layouts(folder: Path, rows_per_shard: int) -> dict[str, Layout]:
    """Where the shards of every dataset lie that is in a store, or was before somebody lost or damaged some of them.

    Args:
        folder: The store.
        rows_per_shard: Of every shard but the last of a dataset.

    Returns:
        By fingerprint, as far as manifests and seals say; the seal of a shard that is not whole counts.
    """
    listed = [seal for manifest in _manifests(folder) for seal in manifest["shards"]]
    names = sorted(name for name in file_sizes(folder / "shards") if name.endswith(".json"))
    by_data: dict[str, Layout] = {}
    for seal in (*listed, *(_seal(folder / "shards" / name) for name in names)):
        if seal is not None and seal.first % rows_per_shard == 0 and seal.number >= seal.first // rows_per_shard:
            first = seal.number - seal.first // rows_per_shard
            numbers = range(first, first + -(-seal.data_rows // rows_per_shard))
            by_data.setdefault(seal.data, Layout(numbers, seal.data_rows))
    return by_data


def _manifests(folder: Path) -> Iterator[dict[str, Any]]:
    """Readable manifests, seals in them as such: that of a finished store, or what it was before a build began.

    Yields:
        `files` and `shards`.
    """
    for name in ("manifest.json", BEFORE):
        try:
            content = read_json(folder / name)
            yield {
                "files": {
                    check_name(file): sha256 for file, sha256 in fitted(dict[str, str], content["files"], "files").items()
                },
                "shards": [record_of(Seal, seal) for seal in content["shards"]],
            }
        except (StoreCorrupt, KeyError, TypeError, ValueError, AttributeError):
            continue


def _seal(path: Path) -> Seal | None:
    """A seal, whether its shard is there or not; None if it cannot be read."""
    try:
        seal = record_of(Seal, read_json(path))
        return seal if path.name == Path(f"{shard_stem(seal.number)}.json").name else None
    except (StoreCorrupt, KeyError, TypeError, ValueError):
        return None


def check_blueprint(stored: Blueprint, wanted: Blueprint, folder: Path) -> None:
    """Refuse to go on with rows of another kind.

    Args:
        stored: What the rows in the folder are.
        wanted: What they would be now.
        folder: The store.

    Raises:
        StoreMismatch: If the two differ in more than how they are made.
    """
    old, new = stored.to_json(), wanted.to_json()
    for name in ("side_divisor", "blow_up"):
        check_same(name, getattr(stored, name), getattr(wanted, name), folder)
    # The format follows from other fields, which say more.
    for name in sorted(old, key=lambda field: field == "format"):
        if name not in NOT_COMPARED:
            check_same(name, old[name], new[name], folder)


def check_same(name: str, old: Any, new: Any, folder: Path) -> None:
    """Refuse to go on with rows of another kind, as far as one field of the blueprint says it.

    Args:
        name: Of the field.
        old: Its value in the store.
        new: What it would be now.
        folder: The store.

    Raises:
        StoreMismatch: If the two differ.
    """
    if old != new:
        what = {"model": "another model's weights", "preprocessing": "another tokenizer or loss", "units": "other parameters"}
        raise StoreMismatch(
            found=f"a store in {folder} built with {what.get(name, f'{name}={old}')}",
            needed=f"the same {name} ({_short(new)} now, {_short(old)} there)",
            do="build into another folder, or repeat the build with the options recorded in blueprint.json",
        )


def check_data(
    folder: Path,
    seals: Mapping[int, Seal],
    layouts_by_data: Mapping[str, Layout],
    dataset: Dataset,
    rows_per_shard: int,
    append: bool,
) -> None:
    """Refuse to mix datasets, unless these examples are to be added to those of another that is whole, or are in the store already.

    Args:
        folder: The store.
        seals: Shards that are whole.
        layouts_by_data: Where the shards of each dataset lie.
        dataset: The examples to add.
        rows_per_shard: Of every shard but the last.
        append: Whether a store of other data may get these in addition.

    Raises:
        StoreMismatch: If the store is of other data, or one id would be there twice.
        StoreCorrupt: If a seal or an example is none that a build writes.
    """
    _check_seals(folder, seals, dataset, rows_per_shard)
    if dataset.fingerprint in layouts_by_data or not layouts_by_data:
        return
    if not append and _gap(layouts_by_data, _num_shards(dataset, rows_per_shard)) is None:
        raise StoreMismatch(
            found=f"a store of other data in {folder} ({sum(seal.rows for seal in seals.values()):,} rows)",
            needed="the same dataset to go on with",
            do="pass append=True (--append) to add these examples as new shards, or build into another folder",
        )
    if any(number not in seals for layout in layouts_by_data.values() for number in layout.numbers):
        raise StoreMismatch(
            found=f"an unfinished build of other data in {folder}",
            needed="one dataset after the other",
            do="finish that build first, or delete its shards",
        )
    mine = set(dataset.ids)
    _, deleted = newest_deleted(folder, tuple(seals.values()))
    by_shard = {} if deleted is None else deleted.by_shard()
    for seal in seals.values():
        without = set(by_shard.get(seal.number, ()))
        for row, name in enumerate(_ids(folder, seal)):
            if name in mine and row not in without:
                raise StoreMismatch(
                    found=f"the id {name!r} in both the store and the new data",
                    needed="ids of their own for new examples",
                    do="give the new examples an 'id' field that the store does not have",
                )


def _check_seals(folder: Path, seals: Mapping[int, Seal], dataset: Dataset, rows_per_shard: int) -> None:
    """Refuse seals of the dataset that no build of it writes.

    Raises:
        StoreCorrupt: If there is one.
    """
    for number, seal in seals.items():
        if seal.data != dataset.fingerprint:
            continue
        rows = min(rows_per_shard, len(dataset) - seal.first)
        if (
            seal.first < 0
            or seal.first % rows_per_shard
            or number < seal.first // rows_per_shard
            or seal.rows != rows
            or rows < 1
        ):
            path = (folder / shard_stem(number)).with_suffix(".json")
            raise StoreCorrupt(**damaged(path, f"{seal.rows:,} rows from {seal.first:,} on of {len(dataset):,}"))


def _ids(folder: Path, seal: Seal) -> Iterator[str]:
    """Ids of a shard's examples.

    Yields:
        They, in order.

    Raises:
        StoreCorrupt: If a line is none.
    """
    path = (folder / shard_stem(seal.number)).with_suffix(".jsonl")
    try:
        for line in read_content(path, seal.examples_bytes).splitlines():
            yield read_example(line)["id"]
    except (OSError, ValueError) as error:
        raise StoreCorrupt(**damaged(path, str(error))) from error


def shards_to_make(
    seals: Mapping[int, Seal], layouts_by_data: Mapping[str, Layout], dataset: Dataset, rows_per_shard: int
) -> tuple[Pending, ...]:
    """Shards that are missing, in order.

    Args:
        seals: Those that are whole.
        layouts_by_data: Where the shards of each dataset lie.
        dataset: The examples to add.
        rows_per_shard: Of every shard but the last.

    Returns:
        A number and rows for each.
    """
    starts = range(0, len(dataset), rows_per_shard)
    if dataset.fingerprint in layouts_by_data:
        offset = layouts_by_data[dataset.fingerprint].numbers.start
    else:
        # Where nothing says where a dataset was, it fills a gap of its length.
        gap = _gap(layouts_by_data, len(starts))
        offset = max((layout.numbers.stop for layout in layouts_by_data.values()), default=0) if gap is None else gap
    shards = (Pending(offset + number, start, min(start + rows_per_shard, len(dataset))) for number, start in enumerate(starts))
    return tuple(
        shard
        for shard in shards
        if shard.number not in seals
        or (seals[shard.number].data, seals[shard.number].first) != (dataset.fingerprint, shard.start)
    )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 24 else text[:12] + "..."


def _num_shards(dataset: Dataset, rows_per_shard: int) -> int:
    return -(-len(dataset) // rows_per_shard)


def _gap(layouts_by_data: Mapping[str, Layout], length: int) -> int | None:
    """First number of a run of exactly `length` shards that belong to no dataset, before some that do; None if there is none."""
    numbers = {number for layout in layouts_by_data.values() for number in layout.numbers}
    missing = 0
    for number in range(max(numbers, default=-1) + 1):
        if number not in numbers:
            missing += 1
        elif missing == length:
            return number - missing
        else:
            missing = 0
    return None
