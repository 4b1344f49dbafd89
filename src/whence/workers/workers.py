"""Several processes or actors that scan a store together, each its own shards, for one process that asks.

Axes: Q queries, N rows, K hits, G groups of rows, H of them in a piece.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from whence.errors import BadInput
from whence.score import Ends, Top, united_top
from whence.store import Store
from whence.store.remote import is_remote
from whence.workers.actors import Actors
from whence.workers.assignment import Assignment
from whence.workers.cluster import RayCluster
from whence.workers.pieces import Job, Part, Piece, Round, Scanner, array_of, pieces_of, tensor_of
from whence.workers.processes import Processes

__all__ = ["RowChoice", "Workers"]


@dataclass(frozen=True)
class RowChoice:
    """Which rows may be hits, and in which groups all of them are.

    Args:
        keep: By query which rows may be its hits, boolean, shape (N,); all for a query that is not in it. Others come last, with infinite
            scores.
        groups: The group of each row, shape (N,), and how many groups there are, to sum scores over; of all rows, whatever may be a hit.
        is_whole: Whether every score is wanted, too, which then all travel.
    """

    keep: Mapping[int, np.ndarray] = field(default_factory=dict)
    groups: tuple[np.ndarray, int] | None = None
    is_whole: bool = False


class Workers:
    """Workers that scan stores, ready between questions; each keeps a run of neighbouring shards mapped.

    Use it in a `with` block, or close it. Questions of several threads wait for each other. The answer is that of one process, and to the
    last bit if a worker computes with as many threads as that process would. A worker that ends is followed by another, and what it was
    scanning is scanned again by whoever is free, within the same question: nothing is missed or counted twice.

    Workers on this machine are processes of their own, with this process's threads shared among them. Actors have one thread each.

    Args:
        count: How many.
        ray: None for processes of this machine. To have actors of a Ray cluster, its address: "local" starts one on this machine, "auto"
            takes the one that this machine is part of. All of its machines have to see stores under the same path.

    Raises:
        BadInput: If the count is not positive.
    """

    def __init__(self, count: int, *, ray: str | None = None):
        if count < 1:
            raise BadInput(found=f"{count} workers", needed="1 or more", do="ask for some, or leave workers out")
        self.count = count
        engine = Processes(Scanner, count) if ray is None else Actors(Scanner, count, RayCluster(ray, count))
        self._assignment = Assignment(engine, count)
        self._rounds = 0
        self._is_closed = False
        self._lock = threading.Lock()

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def losses(self) -> int:
        """Workers that ended so far and were replaced."""
        return self._assignment.losses

    def close(self) -> None:
        """End the workers at once, whatever they are doing."""
        if not self._is_closed:
            self._is_closed = True
            self._assignment.close()

    def top_scores(
        self,
        store: Store,
        queries: Sequence[Tensor],
        k: int,
        *,
        norms_Q: Tensor | None,
        roots: Sequence[Tensor] | None = None,
        choice: RowChoice = RowChoice(),
        advance: Callable[[int], object] | None = None,
        is_wanted: Callable[[], bool] | None = None,
    ) -> Ends | None:
        """The k highest and the k lowest scores of every query.

        Args:
            store: The store, which every worker opens for itself.
            queries: Preconditioned queries, per unit of shape (Q, P, R), already scaled to the score's unit.
            k: Hits wanted on each side.
            norms_Q: For cosines the norms of the queries; None for inner products.
            roots: For cosines of whitened rows what whitens them, per unit; None takes the norms that are stored.
            choice: Which rows may be hits, and the groups that scores are summed over.
            advance: Told how many more rows are done.
            is_wanted: Asked now and then; once it says no the scan is given up.

        Returns:
            Hits and sums; None if it was given up.
        """
        group_N, num_groups = choice.groups or (None, 0)

        def job_of(question: Round | None, piece: Piece) -> Job:
            inside = slice(piece.rows.start, piece.rows.stop)
            # A byte a row where groups are few: they are sent with every question.
            group_P = None if group_N is None else group_N[inside].astype(np.min_scalar_type(max(num_groups - 1, 0)))
            keep = {query: keep_N[inside] for query, keep_N in choice.keep.items()}
            return Job(question, piece, keep, group_P, num_groups, choice.is_whole)

        num_queries, pieces = len(queries[0]), pieces_of(store, self.count)
        high = low = Top(queries[0].new_zeros(num_queries, 0), torch.zeros(num_queries, 0, dtype=torch.long))
        parts: dict[int, Part] = {}
        with self._lock:
            for piece, part in self._assignment.scanned(
                self._round(store, queries, norms_Q, roots, k), pieces, job_of, is_wanted
            ):
                assert part.high is not None and part.low is not None
                high = united_top([high, Top(*map(tensor_of, part.high))], k, largest=True)
                low = united_top([low, Top(*map(tensor_of, part.low))], k, largest=False)
                parts[piece.number] = part
                if advance is not None:
                    advance(len(piece.rows))
        if len(parts) < len(pieces):
            return None
        sums_QG2 = None if choice.groups is None else _added(parts, num_queries, num_groups)
        return Ends(high, low, sums_QG2, _joined(parts) if choice.is_whole else None)

    def all_scores(
        self,
        store: Store,
        queries: Sequence[Tensor],
        *,
        norms_Q: Tensor | None,
        roots: Sequence[Tensor] | None = None,
        weighted: bool = True,
        advance: Callable[[int], object] | None = None,
    ) -> Tensor:
        """Every score, shape (Q, N); arguments as in `top_scores`, and `weighted` as in `shard_scores`."""
        scores_QN = queries[0].new_empty(len(queries[0]), len(store))
        with self._lock:
            question = replace(self._round(store, queries, norms_Q, roots, None), weighted=weighted)
            pieces = pieces_of(store, self.count)
            for piece, part in self._assignment.scanned(question, pieces, Job):
                assert part.scores_QN is not None
                scores_QN[:, piece.rows.start : piece.rows.stop] = tensor_of(part.scores_QN)
                if advance is not None:
                    advance(len(piece.rows))
        return scores_QN

    def _round(
        self, store: Store, queries: Sequence[Tensor], norms_Q: Tensor | None, roots: Sequence[Tensor] | None, k: int | None
    ) -> Round:
        if self._is_closed:
            raise BadInput(found="workers that were closed", needed="running ones", do="ask inside the `with` block")
        self._rounds += 1
        return Round(
            number=self._rounds,
            folder=str(store.folder if is_remote(store.folder) else store.folder.absolute()),
            digest=store.digest,
            owners=self.count,
            queries=[array_of(unit) for unit in queries],
            norms_Q=None if norms_Q is None else array_of(norms_Q),
            roots=None if roots is None else [array_of(root) for root in roots],
            k=k,
        )


def _added(parts: Mapping[int, Part], queries: int, groups: int) -> Tensor:
    """Sums of all pieces, in the order of rows, so that they do not depend on who was first."""
    sums_QG2 = torch.zeros(queries, groups, 2, dtype=torch.float64)
    for number in sorted(parts):
        part = parts[number]
        assert part.group_H is not None and part.sums_QH2 is not None
        sums_QG2[:, tensor_of(part.group_H)] += tensor_of(part.sums_QH2)
    return sums_QG2


def _joined(parts: Mapping[int, Part]) -> Tensor:
    """Every score of all pieces, in the order of rows."""
    return torch.cat(
        [tensor_of(scores_QN) for number in sorted(parts) if (scores_QN := parts[number].scores_QN) is not None], 1
    )
