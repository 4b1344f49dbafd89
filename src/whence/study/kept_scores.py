"""Scores of a whole corpus for many queries, shard after shard in corpus order, kept on disk.

Axes: Q queries, N documents, S documents of a shard.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from whence.curvature.stages import MODEL, check_identity
from whence.errors import StoreCorrupt
from whence.progress import Meter, meter, say
from whence.report import Hit
from whence.store import check_writable, damaged, fitted, locked, open_plain, read_json, write_json, write_tensors
from whence.store.files import tensor_shapes
from whence.store.tensor_bytes import rows_of

__all__ = ["Corpus", "StoredScores", "keep_scores"]

# Beside what the scores depend on, in scores.json.
_SUMS = "sha256"


@dataclass(frozen=True)
class Corpus:
    """Documents in order, ready to be scored for some queries.

    Args:
        sizes: Documents of each shard.
        score: From the number of a shard and a meter to its scores (Q, S) and its documents' norms (S,), or None for methods that divide by
            norms themselves.
        documents: Id, source and, where known, more of every document, in order.
        document: What is known of one, with a score.
        norm: What the norm of a document is, in words; empty if there is none.
        unit: What one unit of score means.
        method: Name and settings.
        notes: What a reader has to know.
        identity: What the scores depend on, as JSON.
    """

    sizes: tuple[int, ...]
    score: Callable[[int, Meter], tuple[Tensor, Tensor | None]]
    documents: Callable[[], Iterator[Mapping[str, Any]]]
    document: Callable[[int, float], Hit]
    norm: str
    unit: str
    method: str
    notes: tuple[str, ...]
    identity: Mapping[str, Any]

    def __len__(self) -> int:
        return sum(self.sizes)


@dataclass(frozen=True)
class StoredScores:
    """Scores on disk, read one query at a time.

    Args:
        folder: Where they are.
        sizes: Documents of each shard.
        num_queries: Queries.
        nats_Q: What a query's scores are divided by.
        has_norms: Whether the documents' norms are there.
        sums: SHA-256 of every file.
    """

    folder: Path
    sizes: tuple[int, ...]
    num_queries: int
    nats_Q: Tensor
    has_norms: bool
    sums: Mapping[str, str]
    _seen: set[str] = field(default_factory=set, repr=False, compare=False)

    @property
    def num_documents(self) -> int:
        """Documents in all."""
        return sum(self.sizes)

    @cached_property
    def norms_N(self) -> Tensor:
        """Of all documents."""
        return torch.cat([self._read(number, "norms", range(size)) for number, size in enumerate(self.sizes)])

    def raw(self, query: int) -> Tensor:
        """Scores of all documents for one query, shape (N,), as they were made."""
        return torch.cat([self._read(number, "scores", range(query, query + 1))[0] for number in range(len(self.sizes))])

    def values(self, query: int, *, by_norm: bool) -> Tensor:
        """Scores of all documents for one query per nat, and maybe over the document's norm; float64, shape (N,)."""
        values_N = self.raw(query).double() / float(self.nats_Q[query])
        if by_norm:
            values_N /= self.norms_N.double().clamp_min(torch.finfo(torch.float32).tiny)
        return values_N

    def _read(self, number: int, name: str, rows: range) -> Tensor:
        path = _path(self.folder, number)
        try:
            with open_plain(path) as file:
                if path.name not in self._seen:
                    if hashlib.file_digest(file, "sha256").hexdigest() != self.sums[path.name]:
                        raise ValueError("its checksum is another")
                    self._check(tensor_shapes(path), number)
                    self._seen.add(path.name)
                return rows_of(file, name, rows)
        except (OSError, ValueError, StoreCorrupt) as error:
            why = error.found if isinstance(error, StoreCorrupt) else damaged(path, str(error))["found"]
            raise StoreCorrupt(
                found=why, needed="the scores that were written", do="delete it and run the study again"
            ) from error

    def _check(self, shapes: Mapping[str, tuple[tuple[int, ...], torch.dtype]], number: int) -> None:
        """Refuse a file whose header is not that of a shard.

        Raises:
            ValueError: If it is not.
        """
        size = self.sizes[number]
        wanted = {"scores": (self.num_queries, size), **({"norms": (size,)} if self.has_norms else {})}
        if {name: shape for name, (shape, _) in shapes.items()} != wanted or not all(
            dtype.is_floating_point for _, dtype in shapes.values()
        ):
            raise ValueError(f"it is not of {self.num_queries:,} queries and {size:,} documents")


def keep_scores(corpus: Corpus, folder: Path, nats_Q: Tensor, *, quiet: bool) -> StoredScores:
    """Score the corpus shard by shard into a folder; shards that are there are not scored again.

    Args:
        corpus: What is scored.
        folder: Where the scores go: 4 bytes for each query and document (8 for models in double precision).
        nats_Q: What each query's scores are divided by when they are read.
        quiet: No progress on stderr.

    Returns:
        The scores.

    Raises:
        StoreMismatch: If the folder holds scores of something else.
    """
    check_writable(folder)
    with locked(folder):
        record, identity = folder / "scores.json", json.loads(json.dumps(dict(corpus.identity)))
        sums: dict[str, str] = {}
        if os.path.lexists(record):
            recorded, sums = _read_record(record)
            check_identity(recorded, identity, "scores", folder)
            if MODEL not in recorded and not quiet:
                say(
                    f"note: {folder} was made before it was recorded what the model computes: only weights and settings were compared"
                )
            identity = recorded
        write_json(record, {**identity, _SUMS: sums})
        paths = [_path(folder, number) for number in range(len(corpus.sizes))]
        missing = [number for number, path in enumerate(paths) if path.name not in sums or not os.path.lexists(path)]
        done = len(corpus) - sum(corpus.sizes[number] for number in missing)
        if done and not quiet:
            say(f"{done:,} of {len(corpus):,} documents were scored before")
        with meter("scan", len(corpus), done=done, quiet=quiet) as progress:
            for number in missing:
                scores_QS, norms_S = corpus.score(number, progress)
                tensors = {"scores": scores_QS} if norms_S is None else {"scores": scores_QS, "norms": norms_S}
                sums[paths[number].name] = write_tensors(paths[number], tensors)
                write_json(record, {**identity, _SUMS: sums})
    return StoredScores(folder, corpus.sizes, len(nats_Q), nats_Q, bool(corpus.norm), sums)


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.safetensors"


def _read_record(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """What the scores there depend on, and their checksums; an earlier version kept none, so that all is scored again.

    Raises:
        StoreCorrupt: If it cannot be read.
    """
    try:
        content = dict(read_json(path))
        return content, fitted(dict[str, str], content.pop(_SUMS, {}), _SUMS)
    except (TypeError, ValueError) as error:
        raise StoreCorrupt(**damaged(path, str(error))) from error
