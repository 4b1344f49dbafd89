"""The line of waiting questions, and the one thread that owns the models."""

import contextlib
import dataclasses
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from whence._version import __version__
from whence.errors import BadInput, UnknownOption, Unsupported, WhenceError
from whence.ledger import Credit, Head, credit_of
from whence.serve.answer import Masks, answered
from whence.serve.health import Health
from whence.serve.hosted_store import HostedStore
from whence.serve.log import QueryLog
from whence.serve.metrics import Metrics
from whence.serve.question import Question
from whence.serve.redaction import Redaction
from whence.serve.render import shown
from whence.serve.responses import Refused, internal_error
from whence.serve.versions import Versions, version_of

__all__ = ["Cancelled", "Change", "Full", "Job", "QuestionQueue", "TooLate"]

# The next scan waits for company for so long after the last one, as a share of what that took.
_PATIENCE = 0.25
_SALT_BYTES = 16
_logger = logging.getLogger("whence.serve")


class Full(Exception):
    """No room to wait in.

    Args:
        retry_after: Seconds after which there may be.
    """

    def __init__(self, retry_after: int):
        super().__init__("the service is busy")
        self.retry_after = retry_after


class Cancelled(Exception):
    """Nobody waits for the answer any more."""


class TooLate(Exception):
    """The answer took longer than a request may."""


@dataclasses.dataclass(eq=False)
class Job:
    """One question on its way.

    Args:
        id: Of the answer.
        hosted: Who is asked.
        question: What is asked; once the model has written a completion, with that.
        deadline: When it is given up, by `time.monotonic`.
        client: Who asks, where that is known.
        listener: Told how far it is, from another thread; None if nobody wants to know.
        future: The answer as it goes out.
    """

    id: str
    hosted: HostedStore
    question: Question
    deadline: float
    client: str = ""
    listener: Callable[[dict[str, Any]], None] | None = None
    future: "Future[dict[str, Any]]" = dataclasses.field(default_factory=Future)
    is_cancelled: bool = False

    @property
    def is_written(self) -> bool:
        """Whether there is nothing for the model to write first."""
        return self.question.completion is not None or self.question.item is not None

    @property
    def is_wanted(self) -> bool:
        """Whether somebody still waits for it."""
        return not self.is_cancelled and time.monotonic() < self.deadline

    def report(self, phase: str, done: int, total: int) -> None:
        """Tell the listener how far it is."""
        if self.listener is not None:
            self.listener({"phase": phase, "done": done, "total": total})

    def give_up(self) -> None:
        """End it: cancelled, or too late."""
        if not self.future.done():
            self.future.set_exception(Cancelled() if self.is_cancelled else TooLate())


@dataclasses.dataclass(eq=False)
class Change:
    """A change of a store's documents on its way.

    Args:
        name: Of the store.
        make: From the store to its next version, and the rows of the former one that were deleted.
        future: The next version.
    """

    name: str
    make: Callable[[HostedStore], tuple[HostedStore, Sequence[int]]]
    future: "Future[HostedStore]" = dataclasses.field(default_factory=Future)


class QuestionQueue:
    """Questions wait here; those for one store that wait together share a scan.

    While one scan runs, the next one's questions gather. Where several shared the last one, the next waits for as many, but only for a
    part of the time that a scan takes: whoever was just answered may ask again, and who misses a scan waits for a whole one. A question
    that comes alone is not held back. Changes of documents are made between two scans, before questions that wait.

    Args:
        stores: Stores by name.
        log: Where answers are kept before they go out.
        metrics: What is counted.
        max_waiting: Most questions that may wait.
        batch: Most questions of one scan.
        redacted: What is told instead of training text, which stays here; None to show it.
        health: Told which stores could be read.
        credits: Whether the log keeps what a payout needs.
    """

    def __init__(
        self,
        stores: Mapping[str, HostedStore],
        log: QueryLog,
        metrics: Metrics,
        *,
        max_waiting: int,
        batch: int,
        redacted: Redaction | None = None,
        health: Health | None = None,
        credits: bool = False,
    ):
        self.credits = credits
        self.log, self.metrics, self.redacted = log, metrics, redacted
        self.health = health or Health()
        self.max_waiting, self.batch = max_waiting, batch
        self.stores = dict(stores)
        self.versions = {name: Versions(hosted.digest) for name, hosted in stores.items()}
        self.masks = {name: self._masks(hosted) for name, hosted in stores.items()}
        self.waiting: deque[Job] = deque()
        self.changes: deque[Change] = deque()
        self.changed = threading.Condition()
        self.is_closing = False
        self.keeper = ThreadPoolExecutor(1, "whence-log")
        self.seconds_each = 0.1
        # Questions that were here when the last scan ended, and until when the next one waits for as many.
        self.company, self.patient_until = 0, 0.0
        for hosted in stores.values() if credits else ():
            self._note(hosted)
        self.thread = threading.Thread(target=self._work, name="whence-line", daemon=True)
        self.thread.start()

    def put(self, job: Job) -> None:
        """Have a question answered.

        Raises:
            Full: If too many wait, or the service stops.
        """
        with self.changed:
            if self.is_closing or len(self.waiting) >= self.max_waiting:
                raise Full(min(60, max(1, round(len(self.waiting) * self.seconds_each))))
            self.waiting.append(job)
            self.metrics.waiting.set(len(self.waiting))
            self.changed.notify()

    def put_change(self, change: Change) -> None:
        """Have a store's documents changed.

        Raises:
            Full: If too many changes wait, or the service stops.
        """
        with self.changed:
            if self.is_closing or len(self.changes) >= self.max_waiting:
                raise Full(min(60, max(1, len(self.changes))))
            self.changes.append(change)
            self.changed.notify()

    def close(self, seconds: float) -> None:
        """Answer what waits, take nothing more, and stop.

        Args:
            seconds: How long to wait for that.
        """
        with self.changed:
            self.is_closing = True
            self.changed.notify()
        self.thread.join(seconds)
        self.keeper.shutdown(wait=False)

    def _work(self) -> None:
        while True:
            with self.changed:
                while not self.waiting and not self.changes and not self.is_closing:
                    self.changed.wait()
                if not self.waiting and not self.changes:
                    return
                change, jobs = (self.changes.popleft() if self.changes else None), []
                if change is None:
                    self._gather()
                    jobs = self._next()
                    self.metrics.waiting.set(len(self.waiting))
            if change is not None:
                self._make(change)
                continue
            started = time.monotonic()
            for job in jobs:  # a job that came before a change is answered after it
                job.hosted = self.stores[job.hosted.name]
            self._run(jobs)
            ended = time.monotonic()
            self.seconds_each += 0.2 * ((ended - started) / len(jobs) - self.seconds_each)
            self.company = min(self.batch, jobs[0].hosted.at_once, len(jobs) + len(self.waiting))
            self.patient_until = ended + _PATIENCE * (ended - started)

    def _make(self, change: Change) -> None:
        try:
            with self.health.reading(change.name, (BadInput, UnknownOption, Unsupported)):
                hosted, deleted = change.make(self.stores[change.name])
        except Exception as error:  # noqa: BLE001
            if not isinstance(error, WhenceError | Refused):
                _logger.error("a change of the documents of %s failed", change.name, exc_info=error)
                error = internal_error()
            change.future.set_exception(error)
            return
        former = self.stores[change.name]
        if hosted is not former:
            if self.credits:
                self._note(hosted, former, deleted)
            self.versions[change.name].add(hosted.digest, deleted)
            self.stores[change.name], self.masks[change.name] = hosted, self._masks(hosted)
        change.future.set_result(hosted)

    def _masks(self, hosted: HostedStore) -> Masks:
        return Masks(hosted, hides_sources=self.redacted is not None and self.redacted.hides_sources)

    def _note(self, hosted: HostedStore, former: HostedStore | None = None, deleted: Sequence[int] = ()) -> None:
        """Have the log know a version's examples; where it cannot, stderr says so, and a payout will refuse its answers."""
        with contextlib.suppress(Refused):
            if not self.log.note_version(version_of(hosted, former, deleted)):
                self.log.note_version(version_of(hosted))

    def _gather(self) -> None:
        """Wait for those who were just answered."""
        while len(self.waiting) < self.company and not self.is_closing and (left := self.patient_until - time.monotonic()) > 0:
            self.changed.wait(left)

    def _next(self) -> list[Job]:
        """The first that waits, and those behind it that it can share a scan with."""
        first = self.waiting.popleft()
        jobs, others = [first], []
        most = min(self.batch, first.hosted.at_once)
        for job in self.waiting:
            is_alike = job.hosted.name == first.hosted.name and job.is_written == first.is_written
            (jobs if is_alike and len(jobs) < most else others).append(job)
        self.waiting = deque(others)
        return jobs

    def _run(self, jobs: Sequence[Job]) -> None:
        ready = []
        try:
            self.log.try_again()
        except Refused as error:
            for job in jobs:
                _fail(job, error)
            return
        for job in jobs:
            if not job.is_wanted:
                job.give_up()
                continue
            try:
                ready.append((job, self._prepared(job)))
            except Exception as error:  # noqa: BLE001
                _fail(job, error)
        if not ready:
            return
        self.metrics.batch.observe(len(ready))
        try:
            answers = self._answers(ready)
        except Exception as error:  # noqa: BLE001
            # Whoever caused it must not take the others along; a store or a log that fails, fails all.
            if len(ready) > 1 and not isinstance(error, Refused):
                for job, _ in ready:
                    self._run([job])
                return
            for job, _ in ready:
                _fail(job, error)
            return
        for job, answer in answers:
            if not job.future.done():
                job.future.set_result(answer)
        for job, _ in ready:
            if not job.future.done():
                job.give_up()

    def _answers(self, ready: Sequence[tuple[Job, Any]]) -> list[tuple[Job, dict[str, Any]]]:
        """Answers as they go out, all of them in the log; none for jobs that nobody waits for any more."""
        hosted = ready[0][0].hosted
        with self.health.reading(hosted.name):
            hosted.check_not_deleted()
            jobs, examples = [job for job, _ in ready], [example for _, example in ready]
            answers = answered(hosted, jobs, examples, self.masks[hosted.name], self.credits)
            wanted = [(job, answer) for job, answer in zip(jobs, answers, strict=True) if answer is not None]
            entries = [self._log_entry(job, answer) for job, answer in wanted]
            # The disk takes its time: what goes out is made ready meanwhile, and goes out once all of it is kept. Not before, since two
            # threads that both compute hold each other up.
            is_written = threading.Event()
            keeping = self.keeper.submit(self._keep, wanted, entries, is_written)
            # Receipts come to the disk while answers go out and the next ones are made: the log has what they are made of.
            self.keeper.submit(self._sync)
            is_written.wait()
            texts = shown(hosted, entries, redacted=self.redacted)
        heads = keeping.result()
        for text in texts:
            text |= {"receipt": dataclasses.asdict(heads[text["id"]])} if text["id"] in heads else {}
        return [(job, text) for (job, _), text in zip(wanted, texts, strict=True)]

    def _prepared(self, job: Job) -> Any:
        def on_token(count: int) -> None:
            if not job.is_wanted:
                raise Cancelled if job.is_cancelled else TooLate
            job.report("writing", count, job.question.max_tokens)

        wrote = None
        if not job.is_written:
            wrote = job.hosted.write(job.question, on_token)
            job.question = dataclasses.replace(job.question, completion=wrote)
            if job.listener is not None:
                job.listener({"phase": "written", "completion": wrote})
        # A filter that lets nothing through is this asker's mistake.
        with self.health.reading(job.hosted.name, (BadInput, UnknownOption, Unsupported)):
            self.masks[job.hosted.name].of(job.question)
            return job.hosted.example(job.question)

    def _log_entry(self, job: Job, answer: Mapping[str, Any]) -> dict[str, Any]:
        shown = {name: value for name, value in answer.items() if name not in ("scores", "score_unit")}
        entry = {"id": job.id, "time": time.time(), "digest": job.hosted.digest, "client": job.client, **shown}
        if self.log.chain is not None:
            # A receipt is also of the model and the version, and nobody finds what was asked by trying its digest.
            entry |= {"weights": job.hosted.weights, "version": __version__, "salt": secrets.token_hex(_SALT_BYTES)}
        return entry

    def _keep(
        self, wanted: Sequence[tuple[Job, dict[str, Any]]], entries: Sequence[dict[str, Any]], is_written: threading.Event
    ) -> dict[str, Head]:
        """Put answers into the log, with their credits if these are kept; the heads of their receipts by id, if there are any."""
        try:
            if self.credits:
                lines = [_credit_of(answer, entry).line() for (_, answer), entry in zip(wanted, entries, strict=True)]
                entries = [{**entry, "credit": line} for entry, line in zip(entries, lines, strict=True)]
            return self.log.add(entries, on_written=is_written.set)
        finally:
            is_written.set()

    def _sync(self) -> None:
        with contextlib.suppress(Refused):  # it is told to the next who asks, and by /health
            self.log.sync()


def _credit_of(answer: Mapping[str, Any], entry: Mapping[str, Any]) -> Credit:
    facts = {
        "id": entry["id"], "time": entry["time"], "store": entry["digest"], "method": entry["method"], "unit": answer["score_unit"],
        "token": entry.get("token"), "tokens": sum(token["is_scored"] for token in entry.get("tokens", ())),
    }  # fmt: skip
    return credit_of(answer["scores"], facts)


def _fail(job: Job, error: Exception) -> None:
    if not isinstance(error, WhenceError | Refused | Cancelled | TooLate):
        _logger.error("answer %s failed", job.id, exc_info=error)
        error = internal_error()  # what went wrong is told here, and once
    if not job.future.done():
        job.future.set_exception(error)
