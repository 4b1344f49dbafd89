"""Scores of a whole corpus for many queries, shard after shard in corpus order, kept on disk.

Axes: Q queries, N documents, S documents of a shard.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from whence.errors import StoreCorrupt, StoreMismatch
from whence.progress import Meter, meter, say
from whence.report import Hit
from whence.store import check_writable, damaged, locked, write_json, write_tensors

__all__ = ["Corpus", "Kept", "keep_scores"]


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
class Kept:
    """Scores on disk, read one query at a time.

    Args:
        folder: Where they are.
        sizes: Documents of each shard.
        num_queries: Queries.
        nats_Q: What a query's scores are divided by.
        has_norms: Whether the documents' norms are there.
    """

    folder: Path
    sizes: tuple[int, ...]
    num_queries: int
    nats_Q: Tensor
    has_norms: bool

    @property
    def num_documents(self) -> int:
        """Documents in all."""
        return sum(self.sizes)

    @cached_property
    def norms_N(self) -> Tensor:
        """Of all documents."""
        return torch.cat([self._read(number, lambda file: file.get_tensor("norms")) for number in range(len(self.sizes))])

    def raw(self, query: int) -> Tensor:
        """Scores of all documents for one query, shape (N,), as they were made."""
        parts = [
            self._read(number, lambda file: file.get_slice("scores")[query : query + 1])[0] for number in range(len(self.sizes))
        ]
        return torch.cat(parts)

    def values(self, query: int, *, by_norm: bool) -> Tensor:
        """Scores of all documents for one query per nat, and maybe over the document's norm; float64, shape (N,)."""
        values_N = self.raw(query).double() / float(self.nats_Q[query])
        if by_norm:
            values_N /= self.norms_N.double().clamp_min(torch.finfo(torch.float32).tiny)
        return values_N

    def _read(self, number: int, part: Callable[[Any], Tensor]) -> Tensor:
        path = _path(self.folder, number)
        try:
            with safe_open(path, framework="pt") as file:
                return part(file)
        except (SafetensorError, OSError) as error:
            known = damaged(path, str(error))
            raise StoreCorrupt(
                found=known["found"], needed="the scores that were written", do="delete it and run the study again"
            ) from error


def keep_scores(corpus: Corpus, folder: Path, nats_Q: Tensor, *, quiet: bool) -> Kept:
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
        if record.exists():
            known = json.loads(record.read_text("utf-8"))
            different = sorted(key for key in known.keys() | identity.keys() if known.get(key) != identity.get(key))
            if different:
                raise StoreMismatch(
                    found=f"scores with another {', another '.join(different)} in {folder}",
                    needed="a study of the same model, corpus, queries and settings",
                    do="choose another folder, or ask as it was asked",
                )
        write_json(record, identity)
        missing = [number for number in range(len(corpus.sizes)) if not _path(folder, number).exists()]
        done = len(corpus) - sum(corpus.sizes[number] for number in missing)
        if done and not quiet:
            say(f"{done:,} of {len(corpus):,} documents were scored before")
        with meter("scan", len(corpus), done=done, quiet=quiet) as progress:
            for number in missing:
                scores_QS, norms_S = corpus.score(number, progress)
                tensors = {"scores": scores_QS} if norms_S is None else {"scores": scores_QS, "norms": norms_S}
                write_tensors(_path(folder, number), tensors)
    return Kept(folder, corpus.sizes, len(nats_Q), nats_Q, bool(corpus.norm))


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.safetensors"
