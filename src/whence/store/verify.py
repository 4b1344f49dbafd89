"""Is a store what it claims to be? Every check that can be made without a model."""

import hashlib
import json
from array import array
from bisect import bisect_right

import numpy as np
import torch

from whence.store.format import shard_stem
from whence.store.reader import Store
from whence.store.resume import read_seals

__all__ = ["verify_store"]


def verify_store(store: Store) -> list[str]:
    """Faults of a store, each as one line; empty if there are none.

    Checks every checksum, that the manifest lists the shards that are there, that shards hold as many rows as sealed, that the examples
    are where the offsets say, that ids are unique and that every stored number is finite.
    """
    faults = [f"{path}: {why}" for path, why in store.bad_files().items()]
    if faults:
        return faults
    if {seal.number: seal for seal in store.seals} != read_seals(store.folder):
        faults.append(f"{store.folder / 'manifest.json'}: it does not list the shards that are there")
    # Eight bytes an id: the ids of a hundred million examples would not fit into memory.
    marks = array("Q")
    layout = store.codec.layout()
    for seal in store.seals:
        stem = store.folder / shard_stem(seal.number)
        tensors = store.tensors(seal, [*layout, *store.blueprint.columns(), "offsets"])
        for name, shape in {**layout, **dict.fromkeys(store.blueprint.columns(), ())}.items():
            if tuple(tensors[name].shape) != (seal.rows, *shape):
                faults.append(f"{stem}: {name} has the shape {tuple(tensors[name].shape)}, not {(seal.rows, *shape)}")
            elif not bool(torch.isfinite(tensors[name]).all()):
                row = int((~torch.isfinite(tensors[name])).reshape(seal.rows, -1).any(1).nonzero()[0])
                faults.append(f"{stem}: row {row} of {name} is not finite")
        lines = stem.with_suffix(".jsonl").read_bytes().splitlines(keepends=True)
        ends = torch.tensor([0] + [len(line) for line in lines]).cumsum(0)
        if not torch.equal(ends, tensors["offsets"]):
            faults.append(f"{stem}: the offsets do not match the examples")
        marks.extend(_mark(json.loads(line)["id"]) for line in lines)
    marks_N = np.sort(np.frombuffer(marks, dtype=np.uint64))
    suspects = set(marks_N[1:][marks_N[1:] == marks_N[:-1]].tolist())
    return faults + (_twice(store, suspects) if suspects else [])


def _mark(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def _twice(store: Store, suspects: set[int]) -> list[str]:
    """Faults of ids that occur twice, among those whose mark does."""
    seen: set[str] = set()
    faults = []
    for row, example in enumerate(store.examples()):
        name = example["id"]
        if _mark(name) in suspects:
            if name in seen:
                place = bisect_right(store.starts, row) - 1
                faults.append(f"{store.folder / shard_stem(store.seals[place].number)}: the id {name!r} occurs twice")
            seen.add(name)
    return faults
