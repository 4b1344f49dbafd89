"""Who scans which piece of a store, and what happens when a worker ends before it has answered."""

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from whence.errors import WhenceError, WorkerLost
from whence.workers.engine import READY, Engine, LostWorker, Worker
from whence.workers.pieces import Job, Part, Piece, Round

__all__ = ["Assignment"]

_logger = logging.getLogger("whence.workers")
# Workers that may end over one piece, or at their start, before that is no accident.
_MOST_LOSSES = 3
# Between two looks at whether the answer is still wanted.
_LOOK_SECONDS = 0.05


@dataclass(eq=False)
class _Slot:
    """The place of one worker: shards belong to the slot, whichever process fills it."""

    number: int
    worker: Worker | None = None
    is_ready: bool = False
    knows: int = -1  # the last round that it was told
    doing: tuple[int, Piece] | None = None  # of which round, and what


class Assignment:
    """As many workers as there are slots; one that ends is followed by another.

    A worker has one piece at a time, its own first, then those of slots whose worker is not there. So it is known which piece a worker took
    along, and that one is handed out again: every piece counts once.

    Args:
        engine: Starts workers.
        count: How many.
    """

    def __init__(self, engine: Engine, count: int):
        self.engine = engine
        self.losses = 0
        self.failed_starts = 0
        self.slots = [_Slot(number) for number in range(count)]
        for slot in self.slots:
            self._start(slot)

    def close(self) -> None:
        """End all workers at once."""
        for slot in self.slots:
            if slot.worker is not None:
                slot.worker.end()
        self.engine.close()

    def scanned(
        self,
        question: Round,
        pieces: Sequence[Piece],
        job_of: Callable[[Round | None, Piece], Job],
        is_wanted: Callable[[], bool] | None = None,
    ) -> Iterator[tuple[Piece, Part]]:
        """Have pieces scanned.

        Args:
            question: What is asked of them.
            pieces: Of one store.
            job_of: What is sent for a piece, with the round for a worker that does not know it.
            is_wanted: Asked now and then; None if they are wanted whatever comes.

        Yields:
            Every piece once, with what was found there, in any order; not all of them once they are not wanted.

        Raises:
            WhenceError: What a worker found wrong with the store or the queries.
            WorkerLost: If workers end over the same piece again and again, or none can be started.
        """
        waiting = [deque(piece for piece in pieces if piece.owner == slot.number) for slot in self.slots]
        left, losses = len(pieces), Counter[int]()
        self.failed_starts = 0
        for slot in self.slots:
            if slot.worker is None:
                self._start(slot)
        patience = 0.0  # the first look is for workers that ended since the last question
        while left:
            for piece, answer in self._answers(question, patience):
                if isinstance(answer, WhenceError):
                    raise answer
                if isinstance(answer, LostWorker):
                    losses[piece.number] += 1
                    waiting[piece.owner].appendleft(piece)
                    if losses[piece.number] == _MOST_LOSSES:
                        raise WorkerLost(
                            found=f"{_MOST_LOSSES} workers that ended over {piece} of {question.folder} (the last: {answer.why})",
                            needed="one that gets through",
                            do="see what they printed, look whether memory runs out (fewer workers or queries), and try `whence verify`",
                        )
                else:
                    left -= 1
                    yield piece, answer
            patience = _LOOK_SECONDS
            if is_wanted is not None and not is_wanted():
                return
            for slot in self.slots:
                if slot.is_ready and slot.doing is None and (piece := self._next(slot, waiting)) is not None:
                    self._send(slot, question, piece, job_of)

    def _answers(self, question: Round, seconds: float) -> list[tuple[Piece, Any]]:
        """What workers say about pieces of this round. All of it is taken note of first, since what is made of one may be an error.

        Raises:
            WorkerLost: If there are no workers any more.
        """
        by_worker = {id(slot.worker): slot for slot in self.slots if slot.worker is not None}
        if not by_worker:
            raise WorkerLost(
                found=f"{self.failed_starts} workers that ended before they were ready",
                needed="one at least",
                do="see what they printed, and look whether memory runs out",
            )
        answers = []
        for worker, answer in self.engine.answers([slot.worker for slot in by_worker.values()], seconds):
            slot = by_worker[id(worker)]
            # It may still have been at a question that was given up.
            piece = slot.doing[1] if slot.doing is not None and slot.doing[0] == question.number else None
            if isinstance(answer, LostWorker):
                self._replace(slot, answer)
            elif answer == READY:
                slot.is_ready, self.failed_starts = True, 0
            slot.doing = None
            if piece is not None:
                answers.append((piece, answer))
        return answers

    def _next(self, slot: _Slot, waiting: Sequence[deque[Piece]]) -> Piece | None:
        away = (other.number for other in self.slots if not other.is_ready)
        for number in (slot.number, *away):
            if waiting[number]:
                return waiting[number].popleft()
        return None

    def _send(self, slot: _Slot, question: Round, piece: Piece, job_of: Callable[[Round | None, Piece], Job]) -> None:
        assert slot.worker is not None
        sent = None if slot.knows == question.number else question
        slot.doing, slot.knows = (question.number, piece), question.number
        slot.worker.send(job_of(sent, piece))

    def _start(self, slot: _Slot) -> None:
        slot.is_ready, slot.knows, slot.doing = False, -1, None
        slot.worker = self.engine.start()

    def _replace(self, slot: _Slot, failure: LostWorker) -> None:
        what = "before it was ready" if not slot.is_ready else "while idle" if slot.doing is None else f"over {slot.doing[1]}"
        _logger.warning("worker %d ended %s (%s); another takes its place", slot.number, what, failure.why)
        self.losses += 1
        self.failed_starts += not slot.is_ready
        assert slot.worker is not None
        slot.worker.end()
        slot.worker, slot.is_ready = None, False
        if self.failed_starts < _MOST_LOSSES:
            self._start(slot)
