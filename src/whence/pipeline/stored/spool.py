"""Prepared examples kept on a disk instead of in memory, for data that is read once from beginning to end.

A chunk of examples is a safetensors file of their fields laid end to end and a JSON file of everything else; `spool.json` is written last.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from whence.data import Dataset, Example, Skipped
from whence.errors import BadInput, StoreCorrupt
from whence.progress import say
from whence.store import check_writable, locked, read_json, read_record, read_tensors, sha256_of, write_json, write_tensors
from whence.tasks import AbstractTask, records_in

__all__ = ["Spooled", "spool"]

_CHUNK = 1024
# Files in memory at a time: the one in use, and those that a pass over a sample or a shard touches again.
_FILES_IN_MEMORY = 4
# Chunks between two lines that say how far it is.
_CHUNKS_PER_MESSAGE = 100
_PLAIN_FIELDS = ("id", "length", "source", "text", "prompt", "span", "scored")


@dataclass(frozen=True)
class _Record:
    """What `spool.json` holds."""

    identity: dict[str, Any]
    count: int
    checksums: tuple[tuple[str, str], ...]
    fingerprint: str
    skipped: tuple[tuple[str, str], ...] = ()

    def __post_init__(self):
        if self.count < 1 or len(self.checksums) != -(-self.count // _CHUNK):
            raise ValueError(f"{self.count:,} examples in {len(self.checksums):,} files")


@dataclass(frozen=True)
class Spooled(Sequence[Example]):
    """Examples in files, a few of which are in memory at a time; made by `spool`.

    Args:
        folder: Where they are.
        length: How many.
        checksums: SHA-256 of the two files of every chunk.
    """

    folder: Path
    length: int
    checksums: tuple[tuple[str, str], ...]
    _in_memory: OrderedDict[int, list[Example]] = field(default_factory=OrderedDict, compare=False, repr=False)

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(self.length))]
        if not -self.length <= index < self.length:
            raise IndexError(index)
        row = index % self.length
        return self._chunk(row // _CHUNK)[row % _CHUNK]

    def _chunk(self, number: int) -> list[Example]:
        if number not in self._in_memory:
            stem = self.folder / f"{number:05d}"
            try:
                self._in_memory[number] = self._read(stem, *self.checksums[number])
            except (StoreCorrupt, OSError, LookupError, ValueError, TypeError, RuntimeError) as error:
                raise StoreCorrupt(
                    found=f"a damaged file {stem}.safetensors or {stem.name}.json of prepared examples", needed="the bytes that were written",
                    do=f"delete the folder {self.folder} and run the same command again",
                ) from error  # fmt: skip
            if len(self._in_memory) > _FILES_IN_MEMORY:
                self._in_memory.popitem(last=False)
        self._in_memory.move_to_end(number)
        return self._in_memory[number]

    def _read(self, stem: Path, tensors: str, lines: str) -> list[Example]:
        """The examples of a chunk, of whose files these are the sums.

        Raises:
            ValueError: If they are not.
        """
        path = stem.with_suffix(".json")
        if sha256_of(path) != lines:
            raise ValueError(f"{path.name} has another checksum")
        return _unpacked(read_json(path), read_tensors(stem.with_suffix(".safetensors"), sha256=tensors))


def spool(task: AbstractTask, records: Iterable[Any], folder: str | Path, *, source: str = "", quiet: bool = False) -> Dataset:
    """Prepare records one after the other and keep them on a disk; memory grows with their number by their ids only.

    The dataset is the one that `task.prepare(records)` would make, with the same ids and fingerprint, so a build with the one goes on
    with the other. A folder that is finished is used again if it is of the same task and `source`; records are not read then.

    Args:
        task: Says what a record is.
        records: Texts or mappings, in any number; read once.
        folder: Where the examples are kept; on a local disk, since they are read often. Delete it when the store is built.
        source: What the records are, such as the names, sizes and times of their files; recorded and compared.
        quiet: No progress on stderr.

    Returns:
        The dataset.

    Raises:
        BadInput: If the folder is of something else.
    """
    folder = Path(folder)
    check_writable(folder)
    # How texts are cut is not part of the preprocessing, which is the tokenizer.
    options = {name: getattr(task, name, None) for name in ("long", "max_length")}
    options |= {"skip_bad": True} if task.skip_bad else {}
    identity = {"preprocessing": task.preprocessing, "kind": task.kind, "source": source, **options}
    with locked(folder, wait=True):
        done = folder / "spool.json"
        if done.exists():
            record = asdict(read_record(_Record, done))
            if record["identity"] != identity:
                raise BadInput(
                    found=f"examples prepared from other data, by another tokenizer or cut otherwise in {folder}",
                    needed="those of this data",
                    do="delete the folder, or keep the examples in another",
                )
        else:
            record = {"identity": identity, **_written(task, records, folder, quiet)}
            write_json(done, record)
    skipped = tuple(Skipped(name, reason) for name, reason in record.get("skipped", ()))
    dataset = Dataset(
        Spooled(folder, record["count"], tuple((tensors, lines) for tensors, lines in record["checksums"])), skipped
    )
    dataset.__dict__["fingerprint"] = record["fingerprint"]  # of which another pass would make the same
    return dataset


def _written(task: AbstractTask, records: Iterable[Any], folder: Path, quiet: bool) -> dict[str, Any]:
    """What `spool.json` says of the examples, which are written.

    Raises:
        BadInput: If there are no records.
    """
    digest, checksums, count = hashlib.sha256(), [], 0
    skipped: list[Skipped] = []
    examples = _prepared(task, records, skipped)
    while chunk := list(islice(examples, _CHUNK)):
        for example in chunk:
            digest.update(example.digest)
        stem = folder / f"{len(checksums):05d}"
        lines, tensors = _packed(chunk)
        checksums.append(
            (write_tensors(stem.with_suffix(".safetensors"), tensors), write_json(stem.with_suffix(".json"), lines))
        )
        count += len(chunk)
        if not quiet and len(checksums) % _CHUNKS_PER_MESSAGE == 0:  # how many there will be is not known
            say(f"prepared: {count:,} examples")
    if not count:
        raise BadInput(found="no records", needed="at least one", do="check the path and the field names")
    skipped_entry = {"skipped": [[record.id, record.reason] for record in skipped]} if skipped else {}
    return {"count": count, "checksums": checksums, "fingerprint": digest.hexdigest(), **skipped_entry}


def _prepared(task: AbstractTask, records: Iterable[Any], skipped: list[Skipped]) -> Iterator[Example]:
    """Examples with the ids that all records at once would get.

    Args:
        task: Says what a record is.
        records: The records.
        skipped: Gets those that cannot be used, if the task is to leave them out.

    Yields:
        They, in order.

    Raises:
        BadInput: If a record is neither text nor a mapping, or cannot be used.
    """
    for number, record in enumerate(records_in(records)):
        if isinstance(record, str):
            record = {"text": record}
        if not isinstance(record, Mapping):
            raise BadInput(
                found=f"record {number} of type {type(record).__name__} to be kept on a disk",
                needed="texts or mappings, which have a place for an id",
                do="make it a mapping, or keep the data in memory",
            )
        record = record if record.get("id") is not None else {**record, "id": str(number)}
        try:
            yield from task.prepare([record]).examples
        except BadInput as error:
            # To the task, which gets one at a time, each is the first.
            found_text = error.found.replace("record 0 ", f"record {number} ", 1)
            if not task.skip_bad:
                raise BadInput(
                    found=found_text, needed=error.needed, do=f"{error.do}; or pass skip_bad=True (--skip-bad)"
                ) from error
            skipped.append(Skipped(str(record["id"]), found_text))


def _packed(examples: Sequence[Example]) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """What JSON holds of the examples, and their arrays laid end to end by name."""
    entries: list[dict[str, Any]] = []
    flat: dict[str, list[Tensor]] = {}
    for example in examples:
        entry: dict[str, Any] = {name: getattr(example, name) for name in _PLAIN_FIELDS}
        entry["plain"], entry["shapes"] = {}, {}
        arrays = dict(example.fields)
        if example.token_spans is not None:
            arrays["token spans"] = example.token_spans
        for name, value in arrays.items():
            if value is None or isinstance(value, str | int | float | bool):
                entry["plain"][name] = value
                continue
            tensor = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
            kind = str(tensor.dtype).removeprefix("torch.")
            entry["shapes"][name] = [kind, *tensor.shape]
            flat.setdefault(f"{name}:{kind}", []).append(tensor.cpu().flatten())
        entries.append(entry)
    return entries, {name: torch.cat(parts) for name, parts in flat.items()}


def _unpacked(entries: list[dict[str, Any]], tensors: dict[str, Tensor]) -> list[Example]:
    at = dict.fromkeys(tensors, 0)
    examples = []
    for entry in entries:
        fields: dict[str, Any] = dict(entry["plain"])
        for name, (kind, *shape) in entry["shapes"].items():
            key, size = f"{name}:{kind}", int(np.prod(shape, dtype=np.int64))
            fields[name] = tensors[key][at[key] : at[key] + size].view(shape)
            at[key] += size
        spans = fields.pop("token spans", None)
        described = {name: entry[name] for name in _PLAIN_FIELDS}
        described["span"] = None if described["span"] is None else tuple(described["span"])
        described["scored"] = tuple((a, b) for a, b in described["scored"])
        examples.append(Example(fields=fields, token_spans=None if spans is None else spans.numpy(), **described))
    return examples
