"""Who scans which piece of a store, and what happens when a worker ends before it has answered."""

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from whence.errors import WhenceError, WorkerLost
from whence.workers.engine import READY, Engine, Lost, Worker
from whence.workers.pieces import Job, Part, Piece, Round

__all__ = ["Seats"]

_logger = logging.getLogger("whence.workers")
# Workers that may end over one piece, or at their start, before that is no accident.
_MOST_LOSSES = 3
# Between two looks at whether the answer is still wanted.
_LOOK_SECONDS = 0.05


@dataclass(eq=False)
class _Seat:
    """The place of one worker: shards belong to the seat, whoever sits there."""

    number: int
    worker: Worker | None = None
    is_ready: bool = False
    knows: int = -1  # the last round that it was told
    doing: tuple[int, Piece] | None = None  # of which round, and what


class Seats:
    """As many workers as there are seats; one that ends is followed by another.

    A worker has one piece at a time, its own first, then those of seats whose worker is not there. So it is known which piece a worker took
    along, and that one is handed out again: every piece counts once.

    Args:
        engine: Starts workers.
        count: How many.
    """

    def __init__(self, engine: Engine, count: int):
        self.engine = engine
        self.losses = 0
        self.failed_starts = 0
        self.seats = [_Seat(number) for number in range(count)]
        for seat in self.seats:
            self._start(seat)

    def close(self) -> None:
        """End all workers at once."""
        for seat in self.seats:
            if seat.worker is not None:
                seat.worker.end()
        self.engine.close()

    def scanned(
        self,
        asked: Round,
        pieces: Sequence[Piece],
        job_of: Callable[[Round | None, Piece], Job],
        is_wanted: Callable[[], bool] | None = None,
    ) -> Iterator[tuple[Piece, Part]]:
        """Have pieces scanned.

        Args:
            asked: What is asked of them.
            pieces: Of one store.
            job_of: What is sent for a piece, with the round for a worker that does not know it.
            is_wanted: Asked now and then; None if they are wanted whatever comes.

        Yields:
            Every piece once, with what was found there, in any order; not all of them once they are not wanted.

        Raises:
            WhenceError: What a worker found wrong with the store or the queries.
            WorkerLost: If workers end over the same piece again and again, or none can be started.
        """
        waiting = [deque(piece for piece in pieces if piece.owner == seat.number) for seat in self.seats]
        left, losses = len(pieces), Counter[int]()
        self.failed_starts = 0
        for seat in self.seats:
            if seat.worker is None:
                self._start(seat)
        patience = 0.0  # the first look is for workers that ended since the last question
        while left:
            for piece, answer in self._answers(asked, patience):
                if isinstance(answer, WhenceError):
                    raise answer
                if isinstance(answer, Lost):
                    losses[piece.number] += 1
                    waiting[piece.owner].appendleft(piece)
                    if losses[piece.number] == _MOST_LOSSES:
                        raise WorkerLost(
                            found=f"{_MOST_LOSSES} workers that ended over {piece} of {asked.folder} (the last: {answer.why})",
                            needed="one that gets through",
                            do="see what they printed, look whether memory runs out (fewer workers or queries), and try `whence verify`",
                        )
                else:
                    left -= 1
                    yield piece, answer
            patience = _LOOK_SECONDS
            if is_wanted is not None and not is_wanted():
                return
            for seat in self.seats:
                if seat.is_ready and seat.doing is None and (piece := self._next(seat, waiting)) is not None:
                    self._send(seat, asked, piece, job_of)

    def _answers(self, asked: Round, seconds: float) -> list[tuple[Piece, Any]]:
        """What workers say about pieces of this round. All of it is taken note of first, since what is made of one may be an error.

        Raises:
            WorkerLost: If there are no workers any more.
        """
        by_worker = {id(seat.worker): seat for seat in self.seats if seat.worker is not None}
        if not by_worker:
            raise WorkerLost(
                found=f"{self.failed_starts} workers that ended before they were ready",
                needed="one at least",
                do="see what they printed, and look whether memory runs out",
            )
        found = []
        for worker, answer in self.engine.answers([seat.worker for seat in by_worker.values()], seconds):
            seat = by_worker[id(worker)]
            # It may still have been at a question that was given up.
            piece = seat.doing[1] if seat.doing is not None and seat.doing[0] == asked.number else None
            if isinstance(answer, Lost):
                self._replace(seat, answer)
            elif answer == READY:
                seat.is_ready, self.failed_starts = True, 0
            seat.doing = None
            if piece is not None:
                found.append((piece, answer))
        return found

    def _next(self, seat: _Seat, waiting: Sequence[deque[Piece]]) -> Piece | None:
        away = (other.number for other in self.seats if not other.is_ready)
        for number in (seat.number, *away):
            if waiting[number]:
                return waiting[number].popleft()
        return None

    def _send(self, seat: _Seat, asked: Round, piece: Piece, job_of: Callable[[Round | None, Piece], Job]) -> None:
        assert seat.worker is not None
        told = None if seat.knows == asked.number else asked
        seat.doing, seat.knows = (asked.number, piece), asked.number
        seat.worker.send(job_of(told, piece))

    def _start(self, seat: _Seat) -> None:
        seat.is_ready, seat.knows, seat.doing = False, -1, None
        seat.worker = self.engine.start()

    def _replace(self, seat: _Seat, lost: Lost) -> None:
        what = "before it was ready" if not seat.is_ready else "while idle" if seat.doing is None else f"over {seat.doing[1]}"
        _logger.warning("worker %d ended %s (%s); another takes its place", seat.number, what, lost.why)
        self.losses += 1
        self.failed_starts += not seat.is_ready
        assert seat.worker is not None
        seat.worker.end()
        seat.worker, seat.is_ready = None, False
        if self.failed_starts < _MOST_LOSSES:
            self._start(seat)
