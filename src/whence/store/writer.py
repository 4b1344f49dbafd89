"""Writing a store shard by shard, so that a killed build goes on where it stopped."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from whence.data import Dataset
from whence.errors import StoreCorrupt, StoreMismatch
from whence.store.commitment import is_commitment, remove_commitments, write_commitment
from whence.store.deleted import is_deleted_list, listed_deleted, newest_deleted
from whence.store.disk import enough_disk
from whence.store.examples import example_line
from whence.store.files import disk_errors, locked, read_content, write_bytes, write_json, write_tensors
from whence.store.format import Blueprint, Seal, shard_stem
from whence.store.leases import Leases
from whence.store.reader import Store
from whence.store.remote import is_remote
from whence.store.resume import (
    BEFORE,
    Layout,
    Pending,
    check_blueprint,
    check_data,
    intact,
    layouts,
    listed_files,
    read_seal,
    read_seals,
    shards_to_make,
)
from whence.store.rewritten import drop_unlisted

__all__ = ["Writer", "open_writer", "write_store"]


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
        layouts_by_data: Where the shards of each dataset lie.
        damaged: Numbers of shards and names of files beside them that were there and had other bytes than the sealed ones.
    """

    folder: Path
    blueprint: Blueprint
    seals: dict[int, Seal]
    pending: tuple[Pending, ...]
    dataset: Dataset
    leases: Leases = Leases()
    layouts_by_data: Mapping[str, Layout] = field(default_factory=dict)
    damaged: tuple[int | str, ...] = ()

    def claims(self) -> Iterator[Pending]:
        """Shards to make, each given to one process only, and given again if that one is lost.

        A process begins in a place of its own and goes round; at the end it waits for what others still have, and takes it if they do not
        finish it.

        Yields:
            A shard, which is this process's until the next one is asked for.

        Raises:
            StoreMismatch: If a process with other data is adding to the store at the same time.
        """
        first = int(self.leases.start_share * len(self.pending))
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
        return read_seal(paths[0], {path.name: path.stat().st_size for path in paths if path.exists()})

    def write(self, shard: Pending, tensors: Mapping[str, Tensor], labels: Sequence[Mapping[str, str]] = ()) -> None:
        """Make one shard durable: numbers, examples (with their labels, where they have some), then the seal."""
        examples = self.dataset.examples[shard.start : shard.stop]
        lines = [example_line(*pair) for pair in zip(examples, labels or [None] * len(examples), strict=True)]
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
        """Whether nothing is missing: no shard of this data, no manifest, no file that the manifest lists."""
        listed = listed_files(self.folder) if (self.folder / "manifest.json").exists() else None
        is_whole = all(shard.number in self.seals for shard in self.pending)
        return is_whole and listed is not None and all((self.folder / name).exists() for name in listed)

    def check_others(self) -> None:
        """Stop where shards of other data are missing: what was made is kept, and they are made from that data.

        Raises:
            StoreCorrupt: If there are some.
        """
        folders = {
            number
            for data, layout in self.layouts_by_data.items()
            if data != self.dataset.fingerprint
            for number in layout.numbers
        }
        missing = sorted(folders - self.seals.keys())
        if missing:
            names = f"{', '.join(map(str, missing[:8]))}{' and more' if len(missing) > 8 else ''}"
            raise StoreCorrupt(
                found=f"{len(missing)} shards of other data that are missing or damaged in {self.folder} (number {names})",
                needed="all that were added to this store",
                do=f"run `whence build` with that data, too (append=True, --append), which makes only what is missing; to go on without it "
                f"delete its shards, manifest.json and {BEFORE}",
            )

    def rows(self) -> Store:
        """The shards as a store that has nothing else yet, without the rows that were deleted."""
        seals = self.sorted_seals()
        return Store.of(self.folder, self.blueprint, seals, {}, newest_deleted(self.folder, seals)[1])

    def finish(self, extra_files: Mapping[str, str]) -> None:
        """Write the manifest, which makes the store usable. What was deleted before stays so.

        Args:
            extra_files: Name and SHA-256 of files beside the shards, such as the curvature.
        """
        seals = self.sorted_seals()
        deleted_list, _ = newest_deleted(self.folder, seals)
        commitment = write_commitment(self.rows())
        others = {name: sha256 for name, sha256 in extra_files.items() if not is_commitment(name)}
        manifest = {
            "blueprint": self.blueprint.digest(),
            "rows": sum(seal.rows for seal in seals),
            "shards": [asdict(seal) for seal in seals],
            "files": {**others, **deleted_list, **commitment},
        }
        write_json(self.folder / "manifest.json", manifest)
        drop_unlisted(self.folder, manifest["files"])
        self.forget()

    def forget(self) -> None:
        """Remove what said how the store was before this build."""
        with disk_errors(self.folder):
            (self.folder / BEFORE).unlink(missing_ok=True)
        remove_commitments(self.folder, listed_files(self.folder) or {})


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
        check_blueprint(stored, blueprint, folder)
        blueprint = stored
    intact_seals, listed = read_seals(folder), listed_files(folder) or {}
    layouts_by_data = layouts(folder, blueprint.rows_per_shard)
    # Of several processes each would read everything.
    is_checked = leases.file is None and not is_remote(folder)
    seals, files = intact(folder, intact_seals, listed) if is_checked else (intact_seals, listed)
    for name in listed.keys() - files.keys():
        if is_deleted_list(name):  # nothing makes it again
            listed_deleted(folder, tuple(seals.values()), {name: listed[name]})
    check_data(folder, seals, layouts_by_data, dataset, blueprint.rows_per_shard, append)
    pending = shards_to_make(seals, layouts_by_data, dataset, blueprint.rows_per_shard)
    rows = sum(shard.stop - shard.start for shard in pending)
    enough_disk(folder, rows, blueprint.codec().row_bytes(), blueprint.curvature_bytes(len(dataset)))
    if not (folder / "blueprint.json").exists():
        # Only now: a build that does not fit leaves the folder free for one with a smaller rank.
        write_json(folder / "blueprint.json", blueprint.to_json())
    is_sound = files.keys() == listed.keys()
    if (pending or not is_sound) and (folder / "manifest.json").exists():
        # Until it is finished again the store is what it was before, if that is still whole.
        with disk_errors(folder):
            if listed:
                write_bytes(folder / BEFORE, [read_content(folder / "manifest.json")])
            (folder / "manifest.json").unlink(missing_ok=True)
    spoilt = tuple(name for name in listed if name not in files and (folder / name).exists())
    damaged = (*(shard.number for shard in pending if shard.number in intact_seals), *spoilt)
    with disk_errors(folder):
        for what in damaged:  # which then counts as absent
            (folder / (what if isinstance(what, str) else f"{shard_stem(what)}.json")).unlink()
    return Writer(folder, blueprint, seals, pending, dataset, leases, layouts_by_data, damaged)
