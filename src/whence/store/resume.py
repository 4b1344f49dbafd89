"""What an earlier build left in a folder: which shards are whole, whether they are of the same rows and data, and what is missing."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from whence.data import Dataset
from whence.errors import StoreCorrupt, StoreMismatch
from whence.store.examples import read_example
from whence.store.files import damaged, file_sizes, read_content, read_json
from whence.store.format import NOT_COMPARED, Blueprint, Seal, shard_stem
from whence.store.plain_files import check_name
from whence.store.strict_json import fitted, record_of

__all__ = ["Pending", "check_blueprint", "check_data", "listed_files", "read_seal", "read_seals", "shards_to_make"]


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
    try:
        seal = record_of(Seal, read_json(path))
    except (StoreCorrupt, KeyError, TypeError):
        return None
    if shard_stem(seal.number) != f"shards/{path.stem}":
        return None
    sealed = {f"{path.stem}.safetensors": seal.tensors_bytes, f"{path.stem}.jsonl": seal.examples_bytes}
    return seal if all(sizes.get(name) == size for name, size in sealed.items()) else None


def listed_files(folder: Path) -> dict[str, str] | None:
    """Name and SHA-256 of the files beside the shards; None without a readable manifest."""
    try:
        listed = fitted(dict[str, str], read_json(folder / "manifest.json")["files"], "files")
        return {check_name(name): sha256 for name, sha256 in listed.items()}
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
    # The format follows from other fields, which say more.
    for name in sorted(old, key=lambda field: field == "format"):
        if name in NOT_COMPARED or old[name] == new[name]:
            continue
        what = {"model": "another model's weights", "preprocessing": "another tokenizer or loss", "units": "other parameters"}
        raise StoreMismatch(
            found=f"a store in {folder} built with {what.get(name, f'{name}={old[name]}')}",
            needed=f"the same {name} ({_short(new[name])} now, {_short(old[name])} there)",
            do="build into another folder, or repeat the build with the options recorded in blueprint.json",
        )


def check_data(folder: Path, seals: Mapping[int, Seal], dataset: Dataset, rows_per_shard: int, append: bool) -> None:
    """Refuse to mix datasets, unless these examples are to be added to those of another that is whole.

    Args:
        folder: The store.
        seals: Shards that are whole.
        dataset: The examples to add.
        rows_per_shard: Of every shard but the last.
        append: Whether a store of other data may get these in addition.

    Raises:
        StoreMismatch: If the store is of other data, or one id would be there twice.
        StoreCorrupt: If a seal or an example is none that a build writes.
    """
    _check_seals(folder, seals, dataset, rows_per_shard)
    others = {seal.data for seal in seals.values()} - {dataset.fingerprint}
    known = any(seal.data == dataset.fingerprint for seal in seals.values())
    if others and not append and not known and _gap(seals, _num_shards(dataset, rows_per_shard)) is None:
        raise StoreMismatch(
            found=f"a store of other data in {folder} ({sum(seal.rows for seal in seals.values()):,} rows)",
            needed="the same dataset to go on with",
            do="pass append=True (--append) to add these examples as new shards, or build into another folder",
        )
    for data in others:
        theirs = [seal for seal in seals.values() if seal.data == data]
        if sum(seal.rows for seal in theirs) < theirs[0].data_rows:
            raise StoreMismatch(
                found=f"an unfinished build of other data in {folder}",
                needed="one dataset after the other",
                do="finish that build first, or delete its shards",
            )
    if others:
        mine = set(dataset.ids)
        for seal in seals.values():
            if seal.data == dataset.fingerprint:
                continue
            for name in _ids(folder, seal):
                if name in mine:
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


def shards_to_make(seals: Mapping[int, Seal], dataset: Dataset, rows_per_shard: int) -> tuple[Pending, ...]:
    """Shards that are missing, in order.

    Args:
        seals: Those that are whole.
        dataset: The examples to add.
        rows_per_shard: Of every shard but the last.

    Returns:
        A number and rows for each.
    """
    mine = {seal.first: seal for seal in seals.values() if seal.data == dataset.fingerprint}
    starts = range(0, len(dataset), rows_per_shard)
    taken = {seal.number for seal in seals.values() if seal.data != dataset.fingerprint}
    # A dataset's shards are consecutive, so a resumed build numbers them as an unbroken one; where none is left they fill the gap.
    gap = _gap(seals, len(starts))
    after = max(taken, default=-1) + 1 if gap is None else gap
    offset = min((seal.number - seal.first // rows_per_shard for seal in mine.values()), default=after)
    return tuple(
        Pending(offset + place, start, min(start + rows_per_shard, len(dataset)))
        for place, start in enumerate(starts)
        if start not in mine
    )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 24 else text[:12] + "..."


def _num_shards(dataset: Dataset, rows_per_shard: int) -> int:
    return -(-len(dataset) // rows_per_shard)


def _gap(seals: Mapping[int, Seal], length: int) -> int | None:
    """First number of a run of exactly `length` missing shards before some that are there; None if there is none."""
    after = 0
    for number in sorted(seals):
        if number - after == length > 0:
            return after
        after = number + 1
    return None
