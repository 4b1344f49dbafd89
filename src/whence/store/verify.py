"""Is a store what it claims to be? Every check that can be made without a model."""

import json
from pathlib import Path

import torch

from whence.store.format import shard_stem
from whence.store.reader import Store
from whence.store.writer import read_seals

__all__ = ["verify_store"]


def verify_store(store: Store) -> list[str]:
    """Faults of a store, each as one line; empty if there are none.

    Checks every checksum, that the manifest lists the shards that are there, that shards hold as many rows as sealed, that the examples
    are where the offsets say, that ids are unique and that every stored number is finite.
    """
    faults = [
        f"{path}: its checksum is not the sealed one" if Path(path).exists() else f"{path}: it is missing"
        for path in store.bad_files()
    ]
    if faults:
        return faults
    if {seal.number: seal for seal in store.seals} != read_seals(store.folder):
        faults.append(f"{store.folder / 'manifest.json'}: it does not list the shards that are there")
    seen: set[str] = set()
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
        for line in lines:
            name = json.loads(line)["id"]
            if name in seen:
                faults.append(f"{stem}: the id {name!r} occurs twice")
            seen.add(name)
    return faults
