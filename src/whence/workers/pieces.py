"""A scan cut into pieces: what is sent to whoever scans one, how it does so, and what comes back.

Arrays travel as NumPy's, whose bytes are sent with them. Axes: Q queries, N rows of a piece, K hits, G groups of rows, H of them in a piece.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from whence.distributed import Ranks
from whence.errors import StoreMismatch
from whence.progress import meter
from whence.score import both_ends, shard_scores
from whence.store import Store, open_store
from whence.store.remote import is_remote

__all__ = ["Job", "Part", "Piece", "Round", "Scanner", "array_of", "pieces_of", "tensor_of"]

# Of rows: a few hundredths of a second's work, between which a scan says how far it is and may be given up.
_PIECE_BYTES = 256 << 20
# Of one owner at most, so that what they find fits into memory.
_MOST_PIECES = 64


@dataclass(frozen=True)
class Round:
    """What all pieces of a scan have in common.

    Args:
        number: Of the scan.
        folder: The store's, as a path or URL that every worker can open.
        digest: What the store was when it was opened, `Store.digest`.
        owners: Workers among whom its shards are divided.
        queries: Preconditioned queries, per unit of shape (Q, P, R), scaled to the score's unit.
        norms_Q: For cosines the norms of the queries.
        roots: For cosines of whitened rows what whitens them, per unit.
        k: Hits wanted on each side; None for every score.
        weighted: Whether the rows' weights, if there are any, are multiplied in.
    """

    number: int
    folder: str
    digest: str
    owners: int
    queries: Sequence[np.ndarray]
    norms_Q: np.ndarray | None
    roots: Sequence[np.ndarray] | None
    k: int | None
    weighted: bool = True


@dataclass(frozen=True)
class Piece:
    """A run of neighbouring shards.

    Args:
        number: Its place among the pieces of a store.
        owner: Who keeps these shards mapped.
        shards: The shards.
        rows: Their rows.
    """

    number: int
    owner: int
    shards: range
    rows: range

    def __str__(self) -> str:
        return f"shards {self.shards.start} to {self.shards.stop - 1}"


@dataclass(frozen=True)
class Job:
    """A piece to be scanned.

    Args:
        round: What is asked; None if it is what the last job asked.
        piece: Of which rows.
        keep: By query which of the piece's rows may be hits, shape (N,); all for a query that is not in it.
        group_N: The group of each row, for sums; None for no sums.
        num_groups: How many groups there are in the store.
        is_whole: Whether every score is wanted besides hits.
    """

    round: Round | None
    piece: Piece
    keep: Mapping[int, np.ndarray] = field(default_factory=dict)
    group_N: np.ndarray | None = None
    num_groups: int = 0
    is_whole: bool = False


@dataclass(frozen=True)
class Part:
    """What a piece gave: hits, perhaps with sums, or scores, or both.

    Args:
        high: Scores, strongest first, and their rows in the store, shapes (Q, K).
        low: The same of the lowest scores.
        group_H: The groups that occur, if sums are wanted.
        sums_QH2: Sums of their positive and of their negative scores, float64.
        scores_QN: Every score.
    """

    high: tuple[np.ndarray, np.ndarray] | None = None
    low: tuple[np.ndarray, np.ndarray] | None = None
    group_H: np.ndarray | None = None
    sums_QH2: np.ndarray | None = None
    scores_QN: np.ndarray | None = None


def pieces_of(store: Store, owners: int) -> list[Piece]:
    """Divide the shards of a store among owners, neighbours to one, and each one's into pieces.

    Args:
        store: The store.
        owners: Workers.

    Returns:
        In the order of rows; the same for the same store and number of owners.
    """
    row_bytes = store.codec.row_bytes()
    rows_wanted = max(_PIECE_BYTES, row_bytes * len(store) // (owners * _MOST_PIECES)) // row_bytes
    pieces: list[Piece] = []
    ends = [*store.starts, len(store)]
    for owner in range(owners):
        shards = Ranks(owner, owners).part(len(store.seals))
        first = shards.start
        for shard in shards:
            if ends[shard + 1] - ends[first] >= rows_wanted or shard + 1 == shards.stop:
                pieces.append(Piece(len(pieces), owner, range(first, shard + 1), range(ends[first], ends[shard + 1])))
                first = shard + 1
    return pieces


class Scanner:
    """Scans pieces, and keeps the stores that it was asked about open and their shards mapped."""

    def __init__(self):
        self.round: Round | None = None
        self.queries: list[Tensor] = []
        self.norms_Q: Tensor | None = None
        self.roots: list[Tensor] | None = None
        self.stores: dict[str, Store] = {}
        self.checked: set[tuple[str, int]] = set()

    def __call__(self, job: Job) -> Part:
        """Scan one piece."""
        if job.round is not None:
            self.round = job.round
            self.queries = [tensor_of(unit) for unit in job.round.queries]
            self.norms_Q = None if job.round.norms_Q is None else tensor_of(job.round.norms_Q)
            self.roots = None if job.round.roots is None else [tensor_of(root) for root in job.round.roots]
        assert self.round is not None
        store = self._store(self.round, job.piece.owner)
        shards = job.piece.shards
        some = replace(store, seals=store.seals[shards.start : shards.stop])
        scores = shard_scores(some, self.queries, self.norms_Q, roots=self.roots, weighted=self.round.weighted)
        if self.round.k is None:
            return Part(scores_QN=np.concatenate([scores_QN.numpy() for _, scores_QN in scores], 1))
        groups = None if job.group_N is None else (tensor_of(job.group_N), job.num_groups)
        keep = {query: tensor_of(keep_N) for query, keep_N in job.keep.items()}
        with meter("scan", len(some), quiet=True) as progress:
            ends = both_ends(
                scores, self.queries[0], self.round.k, progress=progress, keep=keep, groups=groups, is_whole=job.is_whole
            )
        high, low = ((top.scores_QK.numpy(), top.rows_QK.numpy() + job.piece.rows.start) for top in (ends.high, ends.low))
        scores_QN = None if ends.scores_QN is None else ends.scores_QN.numpy()
        if groups is None or ends.sums_QG2 is None:
            return Part(high, low, scores_QN=scores_QN)
        group_H = torch.bincount(groups[0].long(), minlength=job.num_groups).nonzero()[:, 0]
        return Part(high, low, group_H.numpy(), ends.sums_QG2[:, group_H].numpy(), scores_QN)

    def _store(self, question: Round, owner: int) -> Store:
        """The store that is asked about, the shards of the piece's owner checked.

        Raises:
            StoreMismatch: If it is another by now.
        """
        store = self.stores.get(question.folder)
        if store is None or store.digest != question.digest:
            store = open_store(question.folder, ranks=Ranks(owner, question.owners))
            if store.digest != question.digest:
                raise StoreMismatch(
                    found=f"another store in {question.folder} than the one that was opened to be asked",
                    needed="the same one for as long as it is asked",
                    do="open it again; a service has to be started again",
                )
            # Shards of an object store are memory, not maps.
            self.stores[question.folder] = store = store if is_remote(store.folder) else store.in_memory()
            self.checked.add((store.digest, owner))
        if (store.digest, owner) not in self.checked:
            store.check_unchanged(Ranks(owner, question.owners))
            self.checked.add((store.digest, owner))
        return store


def array_of(tensor: Tensor) -> np.ndarray:
    """A tensor as it travels."""
    return tensor.detach().cpu().numpy()


def tensor_of(array: np.ndarray) -> Tensor:
    """A tensor that has travelled."""
    # What comes out of shared memory cannot be written.
    return torch.from_numpy(array if array.flags.writeable else array.copy())
