"""Is a store what it claims to be? Every check that can be made without a model."""

import hashlib
from array import array
from bisect import bisect_right

import numpy as np
import torch

from whence.errors import StoreCorrupt
from whence.store.commitment import committed, is_commitment
from whence.store.deleted import check_deleted, is_deleted_list, listed_deleted, unlisted_deleted
from whence.store.documents import documents_of
from whence.store.examples import read_example
from whence.store.files import read_content, read_json
from whence.store.format import DELETED_FORMAT_VERSION, shard_stem
from whence.store.reader import Store
from whence.store.resume import is_growing, read_seals

__all__ = ["verify_store"]


def verify_store(store: Store) -> list[str]:
    """Faults of a store, each as one line; empty if there are none.

    Checks every checksum, that the manifest lists the shards that are there, that shards hold as many rows as sealed, that the examples
    are where the offsets say, that ids are unique, that every stored number is finite, and that the rows that were deleted are those of the
    ids that were to be deleted.
    """
    faults = [f"{path}: {why}" for path, why in store.bad_files().items()]
    if faults:
        return faults
    faults = _deletion_faults(store)
    listed, there = {seal.number: seal for seal in store.sealed}, read_seals(store.folder)
    if is_growing(store.folder):  # shards of the addition, which no manifest lists yet
        there = {number: seal for number, seal in there.items() if number in listed}
    if listed != there:
        faults.append(f"{store.folder / 'manifest.json'}: it does not list the shards that are there")
    # Eight bytes an id: the ids of a hundred million examples would not fit into memory.
    marks = array("Q")
    for seal in store.sealed:
        stem = store.folder / shard_stem(seal.number)
        try:
            tensors = store.tensors(seal, [*store.codec.layout(), *store.blueprint.columns(), "offsets"])
            lines = read_content(stem.with_suffix(".jsonl"), seal.examples_bytes).splitlines(keepends=True)
            without = set(store.deleted.get(seal.number, ()))
            # A deleted row's id may come again.
            marks.extend(
                _mark(name) for row, name in enumerate(read_example(line)["id"] for line in lines) if row not in without
            )
        except StoreCorrupt as error:
            faults.append(error.found)
            continue
        except (OSError, ValueError) as error:
            faults.append(f"{stem}: a line is no example: {error}")
            continue
        for name, tensor in tensors.items():
            if not bool(torch.isfinite(tensor).all()):
                row = int((~torch.isfinite(tensor)).reshape(len(tensor), -1).any(1).nonzero()[0])
                faults.append(f"{stem}: row {row} of {name} is not finite")
        ends = torch.tensor([0] + [len(line) for line in lines]).cumsum(0)
        if not torch.equal(ends, tensors["offsets"]):
            faults.append(f"{stem}: the offsets do not match the examples")
    marks_N = np.sort(np.frombuffer(marks, dtype=np.uint64))
    suspects = set(marks_N[1:][marks_N[1:] == marks_N[:-1]].tolist())
    if suspects and not faults:
        faults += _twice(store, suspects)
    return faults or _commitment_faults(store)


def _commitment_faults(store: Store) -> list[str]:
    """A fault if the manifest commits to other documents than those that are there."""
    recorded = committed(store)
    if recorded is None or recorded == documents_of(store.examples):
        return []
    return [f"{store.folder / next(filter(is_commitment, store.files))}: its root is not that of the {len(store):,} documents"]


def _deletion_faults(store: Store) -> list[str]:
    """Faults of the list of deleted rows, and lists that do not count."""
    deleted = listed_deleted(store.folder, store.sealed, store.files)
    faults = []
    if deleted is not None:
        name = next(filter(is_deleted_list, store.files))
        why = check_deleted(store.folder, store.sealed, deleted)
        faults += [f"{store.folder / name}: {why}"] if why else []
        if read_json(store.folder / "blueprint.json")["format"] != DELETED_FORMAT_VERSION:
            faults.append(
                f"{store.folder / 'blueprint.json'}: its format is not {DELETED_FORMAT_VERSION}, though rows were deleted: earlier "
                "versions of whence would show them"
            )
    return faults + [
        f"{store.folder / name}: the manifest does not name this list of deleted rows; run the same `whence delete` again"
        for name in unlisted_deleted(store.folder, store.files)
    ]


def _mark(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def _twice(store: Store, suspects: set[int]) -> list[str]:
    """Faults of ids that occur twice, among those whose mark does."""
    ids_seen: set[str] = set()
    faults = []
    for row, example in enumerate(store.examples()):
        name = example["id"]
        if _mark(name) in suspects:
            if name in ids_seen:
                number = bisect_right(store.starts, row) - 1
                faults.append(f"{store.folder / shard_stem(store.seals[number].number)}: the id {name!r} occurs twice")
            ids_seen.add(name)
    return faults
