"""Ranks of a job as actors of a Ray cluster: the driver, which starts them, shows how far they are and replaces who is lost."""

import logging
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

from whence.distributed import Ranks
from whence.errors import BadInput, RankLost, WhenceError, WorkerLost
from whence.progress import Meter, meter, say
from whence.settings import OnRay
from whence.store import starter
from whence.workers.actors import Actors, ActorWorker
from whence.workers.cluster import RayCluster
from whence.workers.engine import READY, LostWorker
from whence.workers.rank_process import News, RankOrder, RankProcess

__all__ = ["SharedJob", "run_on_ray"]

_logger = logging.getLogger("whence.workers")
# Of the same ranks, one after the other, with nothing finished between.
_MOST_LOSSES = 3
_LOOK_SECONDS, _NEWS_SECONDS, _PATIENCE_SECONDS = 0.25, 0.5, 30.0
# For an actor that is there, to say where it is, and how far.
_MEETING_SECONDS, _HEAR_SECONDS = 60.0, 2.0
_OF_RANK = re.compile(r" \(rank \d+ of (\d+)\)$")


@dataclass(frozen=True, kw_only=True)
class SharedJob:
    """A job that ranks do together.

    Args:
        run: A rank's part, named so that other machines can import it.
        folder: What it writes, which all ranks have to see.
        talks: Whether ranks need each other all the time; if not, each takes what no other has, and the job is done when one of them is.
        parts_done: How much of it is finished for good, which changes whenever that is more.
        home: The folder that paths are read from; None where all of them are absolute.
        device: Where the model runs; None for the processor.
    """

    run: Callable[[Ranks], Any]
    folder: Path
    talks: bool
    parts_done: Callable[[], object]
    home: Path | None = None
    device: str | None = None


def run_on_ray(job: SharedJob, on: OnRay, *, quiet: bool = False) -> Any:
    """Have a job done by actors.

    Args:
        job: The job.
        on: Which actors.
        quiet: No progress on stderr.

    Returns:
        What it gives the first rank, or where ranks do not talk the one that was done first.

    Raises:
        BadInput: If there is no such cluster, it has fewer processors, or its machines do not see the folder.
        WhenceError: What a rank found wrong.
        WorkerLost: If ranks end again and again.
    """
    gpus = (1.0 if (job.device or "").startswith("cuda") else 0.0) if on.gpus is None else on.gpus
    # A cluster that is started here gets a processor for all of them; else it has what it has.
    processors = None if on.actors is None else on.actors * on.cpus
    cluster = RayCluster(on.address, processors)
    with closing(cluster), starter(job.folder):
        count = on.actors or cluster.rooms(on.cpus, gpus)
        if count == 0:
            raise BadInput(
                found=f"a Ray cluster without room for an actor of {on.cpus} processors{f' and {gpus:g} GPUs' if gpus else ''}",
                needed="room for one",
                do="add machines to the cluster, or ask for smaller actors",
            )
        make = partial(RankProcess, job.run, job.folder, job.home, on.cpus, gpus)
        engine = Actors(make, count, cluster, cpus=on.cpus, gpus=gpus, has_aside=True)
        if not quiet:
            say(f"{count} actors on Ray")
        with ExitStack() as stack:
            crew = _Crew(engine, job, _Shown(stack, quiet), partial(cluster.rooms, on.cpus, gpus))
            try:
                return crew.result(count)
            finally:
                crew.end()


@dataclass(eq=False)
class _Group:
    """Ranks that begin together and, where one is lost, begin again together: all where they talk, one where they do not.

    Args:
        ranks: Their numbers.
        workers: Who they are, in this order.
        ready: Workers that can begin.
        has_begun: Whether they have.
        since: When they were started.
        losses: How often some were lost with nothing finished between.
        parts_done: What was finished at the last loss.
    """

    ranks: list[int]
    workers: list[ActorWorker] = field(default_factory=list)
    ready: list[ActorWorker] = field(default_factory=list)
    has_begun: bool = False
    since: float = 0.0
    losses: int = 0
    parts_done: object = None


class _Crew:
    """All ranks of a job.

    Args:
        engine: Starts actors.
        job: The job.
        shown: Where a person sees how far it is.
        rooms: How many actors the cluster holds now.
    """

    def __init__(self, engine: Actors, job: SharedJob, shown: "_Shown", rooms: Callable[[], int]):
        self.engine = engine
        self.job = job
        self.shown = shown
        self.rooms = rooms
        self.count = 0
        self.groups: list[_Group] = []
        self.looked = 0.0

    def result(self, count: int) -> Any:
        """What the job gives.

        Args:
            count: Of ranks.

        Raises:
            WhenceError: What a rank found wrong.
            WorkerLost: If ranks end again and again.
        """
        self.count = count
        numbers = list(range(count))
        self.groups = [_Group(numbers)] if self.job.talks else [_Group([number]) for number in numbers]
        for group in self.groups:
            self._start(group)
        while True:
            for worker, answer in self.engine.answers(
                [worker for group in self.groups for worker in group.workers], _LOOK_SECONDS
            ):
                group = next((group for group in self.groups if worker in group.workers), None)
                if group is None:  # of a group that has begun again meanwhile
                    continue
                if isinstance(answer, LostWorker | RankLost):
                    self._again(group, worker, answer)
                elif isinstance(answer, WhenceError):
                    raise answer
                elif not group.has_begun and answer == READY:
                    group.ready.append(worker)
                elif worker is group.workers[0]:
                    self._hear(self._running())
                    return answer
            now = monotonic()
            if now - self.looked >= _NEWS_SECONDS:
                self.looked = now
                self._look(now)

    def end(self) -> None:
        """End all actors at once."""
        for group in self.groups:
            for worker in group.workers:
                worker.end()

    def _look(self, now: float) -> None:
        for group in self.groups:
            if not group.has_begun:
                self._begin(group)
        running = self._running()
        self._hear(running)
        if not running and now - min(group.since for group in self.groups) > _PATIENCE_SECONDS:
            self.shown.wait()

    def _running(self) -> list[ActorWorker]:
        return [worker for group in self.groups if group.has_begun for worker in group.workers]

    def _hear(self, workers: Sequence[ActorWorker]) -> None:
        news_of = self.engine.aside(workers, "news", _HEAR_SECONDS)
        self.shown.hear(news_of, len(self.groups[0].ranks) if self.job.talks else 1)

    def _begin(self, group: _Group) -> None:
        """Have ranks begin when all of them can; those that the cluster has no room for any more are left out."""
        waiting = [worker for worker in group.workers if worker not in group.ready]
        if waiting:
            spare = max(len(group.workers) - max(self.rooms(), 1), 0) if self.job.talks else 0
            for worker in waiting[len(waiting) - min(spare, len(waiting)) :]:
                worker.end()
                group.workers.remove(worker)
            group.ranks = group.ranks[: len(group.workers)]
            return
        meeting = None
        if self.job.talks and len(group.workers) > 1:
            meeting = self.engine.aside(group.workers[:1], "meeting", _MEETING_SECONDS).get(group.workers[0])
            if meeting is None:
                self._again(group, group.workers[0], LostWorker("it does not answer"))
                return
        group.has_begun = True
        count = len(group.ranks) if self.job.talks else self.count
        for rank, worker in zip(group.ranks, group.workers, strict=True):
            worker.send(RankOrder(rank, count, meeting))

    def _start(self, group: _Group) -> None:
        group.workers, group.ready, group.has_begun = [self.engine.start() for _ in group.ranks], [], False
        group.since = monotonic()

    def _again(self, group: _Group, worker: ActorWorker, failure: LostWorker | RankLost) -> None:
        """Start ranks again of which one was lost.

        Raises:
            BadInput: If an actor does not find what it runs.
            WorkerLost: If that happens again and again.
        """
        rank, why = group.ranks[group.workers.index(worker)], failure.why if isinstance(failure, LostWorker) else failure.found
        if not group.has_begun and why.startswith(("ModuleNotFoundError", "ImportError")):
            raise BadInput(
                found=f"an actor that cannot import what it runs ({why})",
                needed="the same version of whence, with what it needs, on all machines",
                do="install it there",
            )
        parts_done = self.job.parts_done()
        group.losses = group.losses + 1 if parts_done == group.parts_done else 1
        group.parts_done = parts_done
        if group.losses == _MOST_LOSSES:
            raise WorkerLost(
                found=f"{_MOST_LOSSES} actors that ended one after the other with nothing finished between (the last: {why})",
                needed="one that gets through",
                do="see what they printed (`ray logs`) and whether memory runs out; the same command goes on with what is finished",
            )
        others = "all begin again after the last whole stage" if self.job.talks else "others go on with what it had"
        _logger.warning("rank %d is lost (%s); another actor takes its place, and %s", rank, why, others)
        for other in group.workers:
            other.end()
            if self.job.talks:  # what they did since the last whole stage is done again
                self.shown.forget(other)
        self._start(group)


class _Shown:
    """What ranks say, once, and how far they are together.

    Args:
        stack: Leaves the meter that is shown when the job ends.
        quiet: Show nothing.
    """

    def __init__(self, stack: ExitStack, quiet: bool):
        self.stack = stack
        self.quiet = quiet
        self.lines: set[str] = set()
        self.title = ""
        self.meter: Meter | None = None
        self.titles: set[str] = set()
        self.done: dict[tuple[str, ActorWorker], int] = {}

    def hear(self, news_of: dict[ActorWorker, News], ranks: int) -> None:
        """Take note of what ranks say.

        Args:
            news_of: By worker.
            ranks: That share the steps of a meter, where its title does not say so.
        """
        # What one does alone comes before what all then do.
        for worker, news in sorted(news_of.items(), key=lambda item: all(map(_OF_RANK.search, item[1].meters))):
            if not self.quiet:
                self._say(news.lines)
            for whole, (done, total) in news.meters.items():
                shared = _OF_RANK.search(whole)
                title = _OF_RANK.sub("", whole)
                self.done[title, worker] = done
                if title not in self.titles:
                    self.titles.add(title)
                    self._turn_to(title, total * (int(shared[1]) if shared else ranks))
        if self.meter is not None:
            done = min(sum(steps for (title, _), steps in self.done.items() if title == self.title), self.meter.total)
            if done > self.meter.done:
                self.meter.advance(done - self.meter.done)

    def forget(self, worker: ActorWorker) -> None:
        """Count nothing of what a worker did."""
        self.done = {key: steps for key, steps in self.done.items() if key[1] is not worker}

    def wait(self) -> None:
        """Say that nobody works yet."""
        self._say(() if self.quiet else ("waiting for processors of the Ray cluster, which has none free",))

    def _say(self, lines: Sequence[str]) -> None:
        for line in lines:
            if line not in self.lines:  # of a rank that begins again
                self.lines.add(line)
                say(line)

    def _turn_to(self, title: str, total: int) -> None:
        self.stack.close()
        self.title = title
        self.meter = self.stack.enter_context(meter(title, total, quiet=self.quiet))
