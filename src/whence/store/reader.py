"""Reading a finished store, shard by shard or row by row."""

import dataclasses
import hashlib
import json
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from whence.compress import QuantizedCodec, RowCodec
from whence.distributed import Ranks
from whence.errors import StoreCorrupt, StoreMismatch
from whence.store.deleted import Deleted, rows_left
from whence.store.disk import DiskBytes, folder_bytes
from whence.store.examples import read_example, split_lines
from whence.store.files import damaged, read_tensors, reason, sha256_of
from whence.store.format import Blueprint, Seal
from whence.store.notes import read_notes, write_notes
from whence.store.remote import is_remote
from whence.store.sealed_files import SealedFiles
from whence.store.some_tensors import InMemory, ReadWhenLookedAt
from whence.store.tensor_bytes import fresh_memory
from whence.tasks import AbstractTask

__all__ = ["Store"]


# Shards on their way besides the one in use: from a disk, and from an object store.
_READ_AHEAD, _FETCHED_AHEAD = 1, 2
# Of a file of examples, read at a time.
_BLOCK_BYTES = 4 << 20


@dataclass(frozen=True)
class Store:
    """A finished store as it was when it was opened; see `open_store`.

    Args:
        folder: Where it is.
        blueprint: What its rows are.
        seals: Its shards in order.
        files: SHA-256 of the files beside the shards.
        deleted: By number of a shard its rows that were deleted, ascending: they are left out everywhere.
        emptied: Shards of which no row is left; they are not among the others.
        opened: Its files as they were when it was opened; made when they are first read if it is None. An object store has none.
        memory: What stays in memory of what was read; None for nothing, see `in_memory`.
    """

    folder: Path
    blueprint: Blueprint
    seals: tuple[Seal, ...]
    files: dict[str, str]
    deleted: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    emptied: tuple[Seal, ...] = ()
    opened: SealedFiles | None = field(default=None, repr=False, compare=False)
    memory: InMemory | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return sum(map(self.rows_of, self.seals))

    @classmethod
    def of(
        cls, folder: Path, blueprint: Blueprint, seals: Sequence[Seal], files: dict[str, str], deleted: Deleted | None = None
    ) -> "Store":
        """A store of all shards that are there, without the rows that were deleted."""
        by_shard = {} if deleted is None else deleted.by_shard()
        emptied = tuple(seal for seal in seals if len(by_shard.get(seal.number, ())) == seal.rows)
        return cls(folder, blueprint, tuple(seal for seal in seals if seal not in emptied), files, by_shard, emptied)

    @property
    def sealed(self) -> tuple[Seal, ...]:
        """All shards by number, those too of which no row is left."""
        return tuple(sorted((*self.seals, *self.emptied), key=lambda seal: seal.number))

    def rows_of(self, seal: Seal) -> int:
        """Rows of a shard that are left."""
        return seal.rows - len(self.deleted.get(seal.number, ()))

    @property
    def num_deleted(self) -> int:
        """Rows that were deleted."""
        return sum(map(len, self.deleted.values()))

    @cached_property
    def codec(self) -> RowCodec | QuantizedCodec:
        """How rows lie in shards."""
        return self.blueprint.codec()

    @cached_property
    def starts(self) -> list[int]:
        """Number of the first row of each shard."""
        starts, at = [], 0
        for seal in self.seals:
            starts.append(at)
            at += self.rows_of(seal)
        return starts

    @cached_property
    def digest(self) -> str:
        """Digest of all that was sealed: what the rows are, every shard, the files beside them."""
        content = [self.blueprint.digest(), [asdict(seal) for seal in self.seals], self.files]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def shards(self, names: Sequence[str] | None = None, ranks: Ranks = Ranks()) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Stream the shards, one in memory at a time, the next one read ahead.

        Args:
            names: Tensors wanted; None for those that hold rows, norms and weights.
            ranks: Processes that read the store together: only this one's shards, which follow each other.

        Yields:
            The number of the shard's first row and its tensors, each with a leading axis of rows.
        """
        wanted = list(names) if names is not None else [*self.codec.layout(), *self.blueprint.columns()]
        numbers = ranks.part(len(self.seals))
        if len(numbers) < 2 or all(self._is_kept(self.seals[number], wanted) for number in numbers):
            for number in numbers:
                yield self.starts[number], self._left(self.seals[number], wanted)
            return
        ahead = _FETCHED_AHEAD if is_remote(self.folder) else _READ_AHEAD
        with ThreadPoolExecutor(ahead, "whence-read") as pool:
            coming: deque[tuple[int, Future[dict[str, Tensor]]]] = deque()
            for number in numbers:
                coming.append((self.starts[number], pool.submit(self._left, self.seals[number], wanted)))
                if len(coming) > ahead:
                    start, shard = coming.popleft()
                    yield start, shard.result()
                    del shard  # what the caller drops is used for the next one
            while coming:
                start, shard = coming.popleft()
                yield start, shard.result()

    def tensors(self, seal: Seal, names: Sequence[str]) -> dict[str, Tensor]:
        """Some tensors of one shard, of all its rows as they were sealed.

        Raises:
            StoreCorrupt: If the file is not what was sealed.
            StoreChanged: If it has changed since the store was opened.
        """
        return self._fitting(seal, self._read(seal.tensors_file, names, seal.tensors_bytes), seal.rows)

    def rows(self, rows: Sequence[int]) -> Iterator[dict[str, Tensor]]:
        """Some rows only, shard by shard; nothing else is read.

        Args:
            rows: Ascending.

        Yields:
            What `shards` yields of them, in order.
        """
        wanted = [*self.codec.layout(), *self.blueprint.columns()]
        for start, seal in zip(self.starts, self.seals, strict=True):
            chosen = rows[bisect_left(rows, start) : bisect_left(rows, start + self.rows_of(seal))]
            inside = self._sealed_rows(seal, [row - start for row in chosen])
            if inside and (is_remote(self.folder) or self._is_kept(seal, wanted)):
                yield {name: tensor[inside] for name, tensor in self.tensors(seal, wanted).items()}
            elif inside:
                yield self._fitting(seal, self._files.rows(seal.tensors_file, wanted, inside), len(inside))

    def datasets(self) -> list[tuple[str, int]]:
        """Fingerprint and number of rows of each dataset that was built or appended, in row order."""
        return [(data, sum(map(self.rows_of, seals))) for data, seals in groupby(self.seals, lambda seal: seal.data)]

    def file(self, name: str) -> Mapping[str, Tensor]:
        """The tensors of a file beside the shards; those of a file on a disk are read one by one, when they are looked at.

        Raises:
            StoreCorrupt: If it is missing or unreadable.
            StoreChanged: If it has changed since the store was opened.
        """
        if is_remote(self.folder):
            return self._read(name, None, 0)
        spans = self._files.spans(name)
        return ReadWhenLookedAt(spans, lambda tensor: self._read(name, [tensor], spans[tensor].size)[tensor])

    def shapes_of(self, name: str) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and type of the tensors of a file beside the shards, on a disk without reading them.

        Raises:
            StoreCorrupt: If it is missing or unreadable.
            StoreChanged: If it has changed since the store was opened.
        """
        if is_remote(self.folder):
            return {tensor: (tuple(value.shape), value.dtype) for tensor, value in self.file(name).items()}
        return {tensor: (span.shape, span.dtype) for tensor, span in self._files.spans(name).items()}

    def example(self, row: int) -> dict[str, Any]:
        """What is known of one example: id, source, text, span, length."""
        return self.examples_of([row])[row]

    def examples_of(self, rows: Iterable[int]) -> dict[int, dict[str, Any]]:
        """What is known of some examples, by row.

        Raises:
            StoreCorrupt: If it is not where the offsets say.
        """
        by_row: dict[int, dict[str, Any]] = {}
        for number, inside in groupby(sorted(set(rows)), lambda row: bisect_right(self.starts, row) - 1):
            seal, first = self.seals[number], self.starts[number]
            offsets = self.tensors(seal, ["offsets"])["offsets"]
            chosen = list(inside)
            for row, sealed_row in zip(chosen, self._sealed_rows(seal, [row - first for row in chosen]), strict=True):
                start, stop = offsets[sealed_row : sealed_row + 2].tolist()
                if not 0 <= start < stop <= seal.examples_bytes:
                    raise StoreCorrupt(**damaged(self.folder / seal.tensors_file, "offsets that no examples have"))
                by_row[row] = self._example(seal, self._content(seal, start, stop))
        return by_row

    def row(self, row: int) -> dict[str, Tensor]:
        """The tensors of one row, with a leading axis of one."""
        return next(self.rows([row]))

    def right_factors(self, row: int) -> dict[int, Tensor]:
        """Right factors of one row, shape (C, R), by factored unit; empty for dense rows."""
        factored = [index for index, rank in enumerate(self.codec.ranks) if rank is not None]
        if not factored:
            return {}
        tensors = self.row(row)
        return {index: self.codec.right_factors(tensors, index)[0] for index in factored}

    def examples(self) -> Iterator[dict[str, Any]]:
        """What is known of every example, in row order.

        Yields:
            Mappings with id, length and, where known, source, text, span, prompt and image.
        """
        for seal in self.seals:
            without = set(self.deleted.get(seal.number, ()))
            starts = range(0, seal.examples_bytes, _BLOCK_BYTES)
            lines = split_lines(self._content(seal, at, min(at + _BLOCK_BYTES, seal.examples_bytes)) for at in starts)
            yield from (self._example(seal, line) for row, line in enumerate(lines) if row not in without)

    def ids(self) -> tuple[str, ...]:
        """Ids of all examples in row order."""
        return tuple(example["id"] for example in self.examples())

    def accepts(self, task: AbstractTask) -> None:
        """Refuse a task whose scores would mix two models.

        Raises:
            StoreMismatch: If weights or tokenizer are not those that the rows were made with.
        """
        for what, mine, theirs in (
            ("weights", self.blueprint.model, task.weights),
            ("tokenizer or loss", self.blueprint.preprocessing, task.preprocessing),
        ):
            if mine != theirs:
                raise StoreMismatch(
                    found=f"a store of {what} {mine[:8] or 'none'} and a task with {what} {theirs[:8] or 'none'}",
                    needed="the same on both sides, or the scores would mix two models",
                    do=f"load what {self.folder / 'blueprint.json'} records, or build a store for this model",
                )

    def bad_files(self) -> dict[Path, str]:
        """Files that are not what was sealed, and why."""
        faults = {}
        for name, sha256 in self._sealed(self.sealed).items():
            try:
                if sha256_of(self.folder / name) != sha256:
                    faults[self.folder / name] = "its checksum is not the sealed one"
            except FileNotFoundError:
                faults[self.folder / name] = "it is missing"
            except OSError as error:
                faults[self.folder / name] = reason(error)
        return faults

    def check_unchanged(self, ranks: Ranks = Ranks()) -> None:
        """Refuse altered files. Each is read once; later calls compare inode, size and times of change with notes in the user's cache.

        Args:
            ranks: Processes that read the store together: each checks the shards that it reads, and what is shared.

        Raises:
            StoreCorrupt: If a file is not what was sealed.
        """
        if is_remote(self.folder):  # would read everything twice; objects change as a whole, and their sizes are looked at
            return
        earlier_notes = read_notes(self.folder, ranks)
        shards = ranks.part(len(self.seals))
        names = self._sealed(self.seals[shards.start : shards.stop])
        checked = {name: self._files.check(name, earlier_notes.get(name)) for name in names}
        fresh = {name: note for name, note in checked.items() if note is not None}
        if not earlier_notes or fresh != earlier_notes:
            write_notes(self.folder, ranks, fresh)

    def faults(self) -> dict[str, str]:
        """Files that were looked at and can no longer be read as they were when the store was opened, and why."""
        return {} if is_remote(self.folder) else self._files.faults()

    def held_open(self) -> "Store":
        """The same store, whose files stay those that they are now, whatever is put in their place."""
        return self if is_remote(self.folder) else dataclasses.replace(self, opened=self._files)

    def in_memory(self) -> "Store":
        """The same store for whoever asks again and again: what is read stays in memory, as long as a quarter of what is free now stays free.

        What is kept no longer depends on the files.
        """
        return dataclasses.replace(self, memory=InMemory.with_reserve())

    def shared_bytes(self) -> int | None:
        """Size of the files that all rows share, on disk; None in an object store."""
        return None if is_remote(self.folder) else sum((self.folder / name).stat().st_size for name in self.files)

    def disk_bytes(self) -> DiskBytes:
        """What it takes on disk, file by file; in an object store what rows share is as much as it should be."""
        rows, texts = (sum(getattr(seal, name) for seal in self.sealed) for name in ("tensors_bytes", "examples_bytes"))
        other = (
            self.blueprint.curvature_bytes(len(self)) if is_remote(self.folder) else folder_bytes(self.folder) - rows - texts
        )
        return DiskBytes(row_bytes=self.codec.row_bytes(), rows=rows, texts=texts, shared=other)

    @cached_property
    def _files(self) -> SealedFiles:
        return self.opened or SealedFiles(self.folder, self._sealed(self.sealed), shared=tuple(self.files))

    def _sealed(self, seals: Sequence[Seal]) -> dict[str, str]:
        """SHA-256 by name of the files of some shards, and of those beside them."""
        checksums = {}
        for seal in seals:
            checksums |= {seal.tensors_file: seal.tensors_sha256, seal.examples_file: seal.examples_sha256}
        return {**checksums, **self.files}

    def _read(self, name: str, names: Sequence[str] | None, size: int) -> dict[str, Tensor]:
        """Tensors of a file of about so many bytes."""
        cached = {} if self.memory is None else self.memory.tensors.get(name, {})
        if names is None and cached:
            return dict(cached)
        missing = None if names is None else [tensor for tensor in names if tensor not in cached]
        if names is not None and not missing:
            return {tensor: cached[tensor] for tensor in names}
        is_kept = self.memory is not None and self.memory.has_room(size)
        if is_remote(self.folder):
            tensors = read_tensors(self.folder / name, missing)
        else:
            tensors = self._files.tensors(name, missing, fresh_memory if is_kept else None)
        if self.memory is not None and is_kept:
            self.memory.tensors.setdefault(name, {}).update(tensors)
        tensors = {**cached, **tensors}
        return tensors if names is None else {tensor: tensors[tensor] for tensor in names}

    @cached_property
    def _layout(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return {**self.blueprint.tensors(), "offsets": ((), torch.int64)}

    def _fitting(self, seal: Seal, tensors: dict[str, Tensor], rows: int) -> dict[str, Tensor]:
        """Tensors of a shard, if they are what the blueprint says.

        Raises:
            StoreCorrupt: If they have another shape or type: whoever uses them would fail in a way of their own.
        """
        for name, tensor in tensors.items():
            shape, dtype = self._layout[name]
            wanted = (rows + (name == "offsets"), *shape)
            if tuple(tensor.shape) != wanted or tensor.dtype != dtype:
                why = f"{name} has the shape {tuple(tensor.shape)}, not {wanted}"
                if tensor.dtype != dtype:
                    why = f"{name} is of {tensor.dtype}, not {dtype}"
                raise StoreCorrupt(**damaged(self.folder / seal.tensors_file, why))
        return tensors

    def _sealed_rows(self, seal: Seal, rows: Sequence[int]) -> Sequence[int]:
        """Places in a shard of some of the rows that are left in it."""
        if seal.number not in self.deleted:
            return rows
        left = rows_left(seal.rows, self.deleted[seal.number])
        return [left[row] for row in rows]

    def _left(self, seal: Seal, names: Sequence[str]) -> dict[str, Tensor]:
        """Some tensors of one shard, without its deleted rows."""
        tensors = self.tensors(seal, names)
        if seal.number not in self.deleted:
            return tensors
        left = torch.tensor(rows_left(seal.rows, self.deleted[seal.number]))
        return {name: tensor[left] for name, tensor in tensors.items()}

    def _is_kept(self, seal: Seal, names: Sequence[str]) -> bool:
        return self.memory is not None and self.memory.tensors.get(seal.tensors_file, {}).keys() >= set(names)

    def _content(self, seal: Seal, start: int, stop: int) -> bytes:
        """Bytes of a shard's examples."""
        if is_remote(self.folder):
            path: Any = self.folder / seal.examples_file
            return path.fs.cat_file(path.path, start=start, end=stop)
        return self._files.content(seal.examples_file, start, stop)

    def _example(self, seal: Seal, line: bytes) -> dict[str, Any]:
        try:
            return read_example(line)
        except ValueError as error:
            raise StoreCorrupt(**damaged(self.folder / seal.examples_file, f"a line is no example: {error}")) from error
