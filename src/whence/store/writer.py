"""Writing a store shard by shard, so that a killed build goes on where it stopped."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from whence.data import Dataset, Example
from whence.errors import DiskFull, StoreCorrupt, StoreMismatch
from whence.store.files import disk_errors, file_sizes, locked, read_json, write_bytes, write_json, write_tensors
from whence.store.format import NOT_COMPARED, Blueprint, Seal, shard_stem
from whence.store.leases import Leases
from whence.store.remote import is_remote

__all__ = ["Pending", "Writer", "enough_disk", "open_writer", "write_store"]


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
class Writer:
    """One build in progress; use `write_store`.

    Args:
        folder: The store.
        blueprint: What its rows are.
        seals: Shards that are whole, from this build and earlier ones.
        pending: Shards to make, in order.
        dataset: The examples being added.
        leases: Which of them this process may make.
    """

    folder: Path
    blueprint: Blueprint
    seals: dict[int, Seal]
    pending: tuple[Pending, ...]
    dataset: Dataset
    leases: Leases = Leases()

    def claims(self) -> Iterator[Pending]:
        """Shards to make, each given to one process only, and given again if that one is lost.

        A process begins in a place of its own and goes round; at the end it waits for what others still have, and takes it if they do not
        finish it.

        Yields:
            A shard, which is this process's until the next one is asked for.

        Raises:
            StoreMismatch: If a process with other data is adding to the store at the same time.
        """
        first = int(self.leases.place * len(self.pending))
        for wait in (False, True):
            for shard in (*self.pending[first:], *self.pending[:first]):
                if shard.number in self.seals:
                    continue
                with self.leases.shard(shard.number, wait=wait) as is_mine:
                    seal = self._sealed(shard) if is_mine else None
                    if seal is not None:
                        if (seal.data, seal.first) != (self.dataset.fingerprint, shard.start):
                            raise StoreMismatch(
                                found=f"a shard {shard.number} of other data in {self.folder}, made since this build began",
                                needed="one dataset after the other",
                                do="wait until the other build is finished, then run this one again with append=True (--append)",
                            )
                        self.seals[shard.number] = seal
                    elif is_mine:
                        yield shard

    def _sealed(self, shard: Pending) -> Seal | None:
        """What another process has made of a shard in the meantime."""
        stem = self.folder / shard_stem(shard.number)
        paths = [stem.with_suffix(suffix) for suffix in (".json", ".safetensors", ".jsonl")]
        return _read_seal(paths[0], {path.name: path.stat().st_size for path in paths if path.exists()})

    def write(self, shard: Pending, tensors: Mapping[str, Tensor]) -> None:
        """Make one shard durable: numbers, examples, then the seal."""
        examples = self.dataset.examples[shard.start : shard.stop]
        lines = [json.dumps(_example_json(example), ensure_ascii=False).encode() + b"\n" for example in examples]
        ends = torch.tensor([0] + [len(line) for line in lines]).cumsum(0)
        stem = self.folder / shard_stem(shard.number)
        tensors_path, examples_path = stem.with_suffix(".safetensors"), stem.with_suffix(".jsonl")
        tensors_sha256 = write_tensors(tensors_path, {**tensors, "offsets": ends})
        examples_sha256 = write_bytes(examples_path, lines)
        seal = Seal(
            number=shard.number,
            rows=len(examples),
            data=self.dataset.fingerprint,
            data_rows=len(self.dataset),
            first=shard.start,
            tensors_sha256=tensors_sha256,
            tensors_bytes=tensors_path.stat().st_size,
            examples_sha256=examples_sha256,
            examples_bytes=examples_path.stat().st_size,
        )
        write_json(stem.with_suffix(".json"), asdict(seal))
        self.seals[shard.number] = seal

    def sorted_seals(self) -> tuple[Seal, ...]:
        """Seals of all shards, in order."""
        return tuple(self.seals[number] for number in sorted(self.seals))

    def is_finished(self) -> bool:
        """Whether nothing is missing: no shard, no manifest, no file that the manifest lists."""
        listed = listed_files(self.folder)
        is_whole = all(shard.number in self.seals for shard in self.pending)
        return is_whole and listed is not None and all((self.folder / name).exists() for name in listed)

    def finish(self, extra_files: Mapping[str, str]) -> None:
        """Write the manifest, which makes the store usable.

        Args:
            extra_files: Name and SHA-256 of files beside the shards, such as the curvature.
        """
        seals = self.sorted_seals()
        manifest = {
            "blueprint": self.blueprint.digest(),
            "rows": sum(seal.rows for seal in seals),
            "shards": [asdict(seal) for seal in seals],
            "files": dict(extra_files),
        }
        write_json(self.folder / "manifest.json", manifest)


@contextmanager
def write_store(folder: Path, blueprint: Blueprint, dataset: Dataset, *, append: bool) -> Iterator[Writer]:
    """Open a folder for building, new or half built, under a lock.

    Args:
        folder: The store.
        blueprint: What its rows are; must equal that of an existing store.
        dataset: The examples to add.
        append: Whether a store of other data may get these in addition.

    Yields:
        The writer, with what is still to do.
    """
    with locked(folder):
        yield open_writer(folder, blueprint, dataset, append=append, leases=Leases())


def open_writer(folder: Path, blueprint: Blueprint, dataset: Dataset, *, append: bool, leases: Leases) -> Writer:
    """See what is there and what is to do; one process at a time, inside `leases.alone()`.

    Args:
        folder: The store.
        blueprint: What its rows are; must equal that of an existing store.
        dataset: The examples to add.
        append: Whether a store of other data may get these in addition.
        leases: Of the folder.

    Returns:
        The writer, with what is still to do.
    """
    if (folder / "blueprint.json").exists():
        stored = Blueprint.read(folder)
        _same_blueprint(stored, blueprint, folder)
        blueprint = stored
    seals = read_seals(folder)
    _same_data(folder, seals, dataset, blueprint.rows_per_shard, append)
    pending = _pending(seals, dataset, blueprint.rows_per_shard)
    rows = sum(shard.stop - shard.start for shard in pending)
    enough_disk(folder, rows, blueprint.codec().row_bytes(), blueprint.curvature_bytes())
    if not (folder / "blueprint.json").exists():
        # Only now: a build that does not fit leaves the folder free for one with a smaller rank.
        write_json(folder / "blueprint.json", blueprint.to_json())
    if pending:
        # What is about to change is not a finished store until it is finished again.
        with disk_errors(folder):
            (folder / "manifest.json").unlink(missing_ok=True)
    return Writer(folder, blueprint, seals, pending, dataset, leases)


def read_seals(folder: Path) -> dict[int, Seal]:
    """Seals of all shards that are whole; without a readable seal and files of the sealed sizes a shard counts as absent."""
    seals = {}
    sizes = file_sizes(folder / "shards")
    for name in sorted(name for name in sizes if name.endswith(".json")):
        seal = _read_seal(folder / "shards" / name, sizes)
        if seal is not None:
            seals[seal.number] = seal
    return seals


def listed_files(folder: Path) -> dict[str, str] | None:
    """Name and SHA-256 of the files beside the shards; None without a readable manifest."""
    try:
        return dict(read_json(folder / "manifest.json")["files"])
    except (StoreCorrupt, KeyError, TypeError):
        return None


def _read_seal(path: Path, sizes: Mapping[str, int]) -> Seal | None:
    """A seal whose files have the sealed sizes; None if it has not, or there is none."""
    if path.name not in sizes:
        return None
    try:
        seal = Seal(**read_json(path))
    except (StoreCorrupt, TypeError):
        return None
    sealed = {f"{path.stem}.safetensors": seal.tensors_bytes, f"{path.stem}.jsonl": seal.examples_bytes}
    return seal if all(sizes.get(name) == size for name, size in sealed.items()) else None


def _same_blueprint(stored: Blueprint, wanted: Blueprint, folder: Path) -> None:
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


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 24 else text[:12] + "..."


def _same_data(folder: Path, seals: Mapping[int, Seal], dataset: Dataset, rows_per_shard: int, append: bool) -> None:
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
            for line in (folder / shard_stem(seal.number)).with_suffix(".jsonl").read_bytes().splitlines():
                if json.loads(line)["id"] in mine:
                    raise StoreMismatch(
                        found=f"the id {json.loads(line)['id']!r} in both the store and the new data",
                        needed="ids of their own for new examples",
                        do="give the new examples an 'id' field that the store does not have",
                    )


def _num_shards(dataset: Dataset, rows_per_shard: int) -> int:
    return -(-len(dataset) // rows_per_shard)


def _gap(seals: Mapping[int, Seal], length: int) -> int | None:
    """First number of a run of exactly `length` missing shards before some that are there; None if there is none."""
    missing = 0
    for number in range(max(seals, default=-1) + 1):
        if number not in seals:
            missing += 1
        elif missing == length:
            return number - missing
        else:
            missing = 0
    return None


def _pending(seals: Mapping[int, Seal], dataset: Dataset, rows_per_shard: int) -> tuple[Pending, ...]:
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


def enough_disk(folder: Path, rows: int, row_bytes: int, shared_bytes: int) -> None:
    """Refuse a store that the disk does not hold; of an object store the size is not known.

    Args:
        folder: The store.
        rows: To be written.
        row_bytes: Of each.
        shared_bytes: Of what all rows share.

    Raises:
        DiskFull: If there is less room.
    """
    if is_remote(folder):
        return
    needed, free = rows * row_bytes + shared_bytes, shutil.disk_usage(folder).free
    if needed > free:
        raise DiskFull(
            found=f"{_told(free)} free at {folder}",
            needed=f"{_told(needed)} for {rows:,} rows",
            do="free some space, choose another folder, or a smaller rank",
        )


def _told(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB" if size >= 10 << 20 else f"{size / 2**10:,.0f} KiB"


def _example_json(example: Example) -> dict[str, object]:
    found: dict[str, object] = {"id": example.id, "length": example.length}
    if example.source:
        found["source"] = example.source
    if example.text:
        found["text"] = example.text
    if example.span is not None:
        found["span"] = list(example.span)
    if example.prompt:
        found["prompt"] = example.prompt
    if example.scored:
        found["scored"] = [list(pair) for pair in example.scored]
    if example.image:
        found["image"] = example.image
    return found
