"""The manifest: which shards and files make up a finished store. It is read as a stranger's word, and held against what it speaks of."""

from dataclasses import dataclass
from pathlib import Path

from whence.errors import StoreCorrupt
from whence.plain_files import check_name
from whence.store.files import damaged, read_json
from whence.store.format import Blueprint, Seal
from whence.strict_json import record_of

__all__ = ["Manifest", "read_manifest"]

_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` holds.

    Args:
        blueprint: Digest of the blueprint that the shards were made for.
        rows: Rows in all.
        shards: The seals, in order.
        files: SHA-256 of each file beside the shards, by name.
    """

    blueprint: str
    rows: int
    shards: tuple[Seal, ...]
    files: dict[str, str]


def read_manifest(path: Path, blueprint: Blueprint) -> Manifest:
    """The manifest of a store.

    Args:
        path: The manifest, or the one from before an addition.
        blueprint: What its rows are.

    Raises:
        StoreCorrupt: If it is missing or incomplete, speaks of files elsewhere or of shards that cannot be, or is of another blueprint.
    """
    content = read_json(path)
    try:
        manifest = record_of(Manifest, content)
        for name in manifest.files:
            check_name(name)
    except (KeyError, TypeError, ValueError) as error:
        raise StoreCorrupt(**damaged(path, f"it is incomplete: {error}")) from error
    if manifest.blueprint != blueprint.digest():
        raise StoreCorrupt(**damaged(path.with_name("blueprint.json"), "it is not the one that the manifest was written for"))
    why = _impossible(manifest, blueprint)
    if why:
        raise StoreCorrupt(**damaged(path, why))
    return manifest


def _impossible(manifest: Manifest, blueprint: Blueprint) -> str:
    """What cannot be in a manifest of a store with such rows; empty if nothing."""
    if not manifest.shards or [seal.number for seal in manifest.shards] != list(range(len(manifest.shards))):
        return "its shards are not numbered from 0 without gaps"
    if manifest.rows != sum(seal.rows for seal in manifest.shards):
        return f"its shards have not the {manifest.rows:,} rows that it speaks of"
    row_bytes = blueprint.codec().row_bytes()
    for seal in manifest.shards:
        # Every row has an id, so that no shard can have more rows than its files have room for.
        if not 0 < seal.rows <= seal.examples_bytes or seal.rows * row_bytes > seal.tensors_bytes:
            return f"shard {seal.number} cannot hold {seal.rows:,} rows"
        if not 0 <= seal.first <= seal.data_rows - seal.rows:
            return f"shard {seal.number} begins at row {seal.first:,} of {seal.data_rows:,}"
    sums = [
        *manifest.files.values(),
        *(each for seal in manifest.shards for each in (seal.tensors_sha256, seal.examples_sha256)),
    ]
    if any(len(each) != 64 or not _HEX.issuperset(each) for each in sums):
        return "a checksum in it is none"
    return ""
