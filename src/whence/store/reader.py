"""Reading a finished store: refusing what is not whole, streaming what is."""

import contextlib
import hashlib
import json
import os
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

from torch import Tensor

from whence.compress import QuantizedCodec, RowCodec
from whence.distributed import Ranks
from whence.errors import BadInput, StoreCorrupt, StoreMismatch, WhenceError
from whence.store.cache import note_path
from whence.store.files import (
    damaged,
    file_sizes,
    read_json,
    read_rows,
    read_tensors,
    reason,
    refuse_linked,
    sha256_of,
    write_json,
)
from whence.store.format import Blueprint, Seal, shard_stem
from whence.store.plain_files import open_plain, read_plain
from whence.store.remote import is_remote, located
from whence.store.resume import read_seals
from whence.store.strict_json import parse_json
from whence.tasks import AbstractTask

__all__ = ["Store", "open_store"]


# Shards on their way from an object store besides the one in use.
_FETCHED_AHEAD = 2


@dataclass(frozen=True)
class Store:
    """A finished store; see `open_store`.

    Args:
        folder: Where it is.
        blueprint: What its rows are.
        seals: Its shards in order.
        files: SHA-256 of the files beside the shards.
        held: By file the tensors that were read before, for whoever asks again and again; None reads them each time. They are views of mapped
            files: what they take is the system's page cache.
    """

    folder: Path
    blueprint: Blueprint
    seals: tuple[Seal, ...]
    files: dict[str, str]
    held: dict[Path, dict[str, Tensor]] | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return sum(seal.rows for seal in self.seals)

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
            at += seal.rows
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
        places = ranks.part(len(self.seals))
        if is_remote(self.folder):
            yield from self._fetched(places, wanted)
            return
        for place in places:
            if place + 1 < places.stop:
                self._read_ahead(self.seals[place + 1])
            yield self.starts[place], self.tensors(self.seals[place], wanted)

    def tensors(self, seal: Seal, names: Sequence[str]) -> dict[str, Tensor]:
        """Some tensors of one shard.

        Raises:
            StoreCorrupt: If the file is not what was sealed.
        """
        return self._read(self._path(seal, ".safetensors"), names)

    def rows(self, rows: Sequence[int]) -> Iterator[dict[str, Tensor]]:
        """Some rows only, shard by shard; nothing else is read.

        Args:
            rows: Ascending.

        Yields:
            What `shards` yields of them, in order.
        """
        wanted = [*self.codec.layout(), *self.blueprint.columns()]
        for start, seal in zip(self.starts, self.seals, strict=True):
            inside = [row - start for row in rows[bisect_left(rows, start) : bisect_left(rows, start + seal.rows)]]
            if inside:
                yield read_rows(self._path(seal, ".safetensors"), wanted, inside)

    def datasets(self) -> list[tuple[str, int]]:
        """Fingerprint and number of rows of each dataset that was built or appended, in row order."""
        return [(data, sum(seal.rows for seal in seals)) for data, seals in groupby(self.seals, lambda seal: seal.data)]

    def file(self, name: str) -> dict[str, Tensor]:
        """All tensors of a file beside the shards.

        Raises:
            StoreCorrupt: If it is missing or unreadable.
        """
        return dict(self._read(self.folder / name, None))

    def example(self, row: int) -> dict[str, Any]:
        """What is known of one example: id, source, text, span, length."""
        return self.examples_of([row])[row]

    def examples_of(self, rows: Iterable[int]) -> dict[int, dict[str, Any]]:
        """What is known of some examples, by row; each shard's file is opened once."""
        found: dict[int, dict[str, Any]] = {}
        for place, inside in groupby(sorted(set(rows)), lambda row: bisect_right(self.starts, row) - 1):
            seal, first = self.seals[place], self.starts[place]
            offsets = self.tensors(seal, ["offsets"])["offsets"]
            with self._path(seal, ".jsonl").open("rb") as file:
                for row in inside:
                    start, stop = offsets[row - first : row - first + 2].tolist()
                    file.seek(start)
                    found[row] = json.loads(file.read(stop - start))
        return found

    def row(self, row: int) -> dict[str, Tensor]:
        """The tensors of one row, with a leading axis of one."""
        seal, inside = self._locate(row)
        tensors = self.tensors(seal, [*self.codec.layout(), *self.blueprint.columns()])
        return {name: tensor[inside : inside + 1] for name, tensor in tensors.items()}

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
            with self._path(seal, ".jsonl").open("rb") as file:
                yield from map(json.loads, file)

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
        found = {}
        for path, sha256 in self._sealed(range(len(self.seals))):
            try:
                if sha256_of(path) != sha256:
                    found[path] = "its checksum is not the sealed one"
            except FileNotFoundError:
                found[path] = "it is missing"
            except OSError as error:
                found[path] = reason(error)
        return found

    def check_unchanged(self, ranks: Ranks = Ranks()) -> None:
        """Refuse altered files. Each is read once; later calls compare size and time of change with notes in the user's cache.

        Args:
            ranks: Processes that read the store together: each checks the shards that it reads, and what is shared.

        Raises:
            StoreCorrupt: If a file is not what was sealed.
        """
        if is_remote(self.folder):  # would read everything twice; objects change as a whole, and their sizes are looked at
            return
        note = note_path(self.folder, "" if ranks.count == 1 else f"{ranks.rank}-of-{ranks.count}")
        known = _noted(note)
        fresh = {}
        for path, sha256 in self._sealed(ranks.part(len(self.seals))):
            try:
                stat = path.lstat()
            except OSError as error:
                raise StoreCorrupt(**damaged(path, "it is missing")) from error
            mark = [stat.st_size, stat.st_mtime_ns, sha256]
            if known.get(path.name) != mark and _digest(path) != sha256:
                raise StoreCorrupt(**damaged(path, "its checksum is not the sealed one"))
            fresh[path.name] = mark
        if fresh != known and note is not None:
            with contextlib.suppress(WhenceError):  # without room for notes all is checked every time
                write_json(note, fresh)

    def _sealed(self, places: range) -> Iterator[tuple[Path, str]]:
        for seal in self.seals[places.start : places.stop]:
            yield self._path(seal, ".safetensors"), seal.tensors_sha256
            yield self._path(seal, ".jsonl"), seal.examples_sha256
        for name, sha256 in self.files.items():
            yield self.folder / name, sha256

    def _locate(self, row: int) -> tuple[Seal, int]:
        """The shard of a row, and its place in it."""
        place = bisect_right(self.starts, row) - 1
        return self.seals[place], row - self.starts[place]

    def _read(self, path: Path, names: Sequence[str] | None) -> dict[str, Tensor]:
        if self.held is None:
            return read_tensors(path, names)
        known = self.held.setdefault(path, {})
        if names is None:
            # Files beside the shards are only ever read whole.
            known.update({} if known else read_tensors(path))
            return known
        missing = [name for name in names if name not in known]
        known.update(read_tensors(path, missing) if missing else {})
        return {name: known[name] for name in names}

    def _path(self, seal: Seal, suffix: str) -> Path:
        return (self.folder / shard_stem(seal.number)).with_suffix(suffix)

    def _fetched(self, places: range, names: Sequence[str]) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Shards from an object store, two on the way while one is looked at.

        Yields:
            As `shards` does.
        """
        with ThreadPoolExecutor(_FETCHED_AHEAD) as pool:
            coming: deque[tuple[int, Future[dict[str, Tensor]]]] = deque()
            for place in places:
                coming.append((self.starts[place], pool.submit(self.tensors, self.seals[place], names)))
                if len(coming) > _FETCHED_AHEAD:
                    start, shard = coming.popleft()
                    yield start, shard.result()
            while coming:
                start, shard = coming.popleft()
                yield start, shard.result()

    def _read_ahead(self, seal: Seal) -> None:
        if not hasattr(os, "posix_fadvise"):
            return
        with contextlib.suppress(OSError), open(self._path(seal, ".safetensors"), "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def _digest(path: Path) -> str:
    """SHA-256 of a file of the store.

    Raises:
        StoreCorrupt: If it cannot be read, or is a link or anything else than a file.
    """
    try:
        return sha256_of(path)
    except OSError as error:
        raise StoreCorrupt(**damaged(path, reason(error))) from error


def _why_absent(path: Path) -> str:
    try:
        path.open("rb").close() if is_remote(path) else open_plain(path).close()
    except FileNotFoundError:
        pass
    except OSError as error:
        return reason(error)
    return "it is missing"


def _noted(note: Path | None) -> dict[str, Any]:
    """What an earlier check noted; nothing if that cannot be read."""
    if note is None:
        return {}
    try:
        found = parse_json(read_plain(note))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def open_store(folder: str | Path, *, check: bool = True, ranks: Ranks = Ranks()) -> Store:
    """Open a finished store.

    Args:
        folder: Its folder, or a URL; see docs/remote.md.
        check: Whether missing, shortened and altered files are looked for; see `Store.check_unchanged`.
        ranks: Processes that read it together; each looks at its own shards.

    Returns:
        The store.

    Raises:
        BadInput: If there is no store.
        StoreCorrupt: If it is unfinished or damaged.
    """
    folder = located(folder)
    if not (folder / "blueprint.json").exists() and (folder / "factors").is_dir():
        raise StoreCorrupt(
            found=f"an unfinished store at {folder} (its curvature is being fitted)",
            needed="a finished one",
            do="run the same `whence build` again: it goes on where it stopped",
        )
    if not (folder / "blueprint.json").exists():
        raise BadInput(found=f"no store at {folder}", needed="a folder made by `whence build`", do="check the path")
    blueprint = Blueprint.read(folder)
    if not (folder / "manifest.json").exists():
        raise StoreCorrupt(
            found=f"an unfinished store at {folder} ({len(read_seals(folder))} shards so far)",
            needed="a finished build",
            do="run the same `whence build` again: it goes on where it stopped",
        )
    if not is_remote(folder):
        refuse_linked(folder / "shards")
    manifest = read_json(folder / "manifest.json")
    try:
        store = Store(folder, blueprint, tuple(Seal(**seal) for seal in manifest["shards"]), dict(manifest["files"]))
        written_for = manifest["blueprint"]
    except (KeyError, TypeError) as error:
        raise StoreCorrupt(**damaged(folder / "manifest.json", f"it is incomplete: {error}")) from error
    if written_for != blueprint.digest():
        raise StoreCorrupt(**damaged(folder / "blueprint.json", "it is not the one that the manifest was written for"))
    if not check:
        return store
    sizes = file_sizes(folder / "shards")
    for seal in store.seals:
        for suffix, size in ((".safetensors", seal.tensors_bytes), (".jsonl", seal.examples_bytes)):
            path = (folder / shard_stem(seal.number)).with_suffix(suffix)
            if path.name not in sizes:
                raise StoreCorrupt(**damaged(path, _why_absent(path)))
            if sizes[path.name] != size:
                raise StoreCorrupt(**damaged(path, f"{sizes[path.name]:,} of {size:,} bytes are there"))
    store.check_unchanged(ranks)
    return store
