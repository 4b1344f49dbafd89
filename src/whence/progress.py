"""Progress on stderr, stage by stage and with the time left. Quiet when nobody watches."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from whence.errors import printable
from whence.terminal import said_elsewhere, say

__all__ = ["Meter", "Stage", "Stages", "about", "is_shown_elsewhere", "meter", "say", "shown_elsewhere", "staged"]

# In a log file a line comes after so long, the next after twice as long, up to a quarter of an hour.
_PLAIN_SECONDS, _MOST_SECONDS = 60.0, 900.0


@dataclass(frozen=True)
class Stage:
    """A part of a long job.

    Args:
        label: What is being done, for people.
        meters: Titles of the meters that belong to it: the first of them that starts begins the stage.
    """

    label: str
    meters: tuple[str, ...] = ()

    def has(self, title: str) -> bool:
        """Whether a meter belongs to it; "factors-0-3" and "scan (rank 0 of 2)" are of "factors" and "scan"."""
        return any(title == name or title.startswith((f"{name}-", f"{name} ")) for name in self.meters)


@dataclass
class Meter:
    """Counts the steps of one job.

    Args:
        title: What is being done.
        total: Number of steps.
        bar: Where it is drawn; None prints a line now and then instead (a log file, a pipe).
        count: Given title, steps done and total instead, where another process shows them.
    """

    title: str
    total: int
    bar: Progress | None
    task_id: TaskID = TaskID(0)
    done: int = 0
    started: float = 0.0
    spoken: float = 0.0
    first: int = 0
    pause: float = _PLAIN_SECONDS
    count: Callable[[str, int, int], object] | None = None

    def advance(self, steps: int = 1) -> None:
        """Count `steps` more as done."""
        self.done += steps
        if self.count is not None:
            self.count(self.title, self.done, self.total)
            return
        if self.bar is not None:
            self.bar.advance(self.task_id, steps)
            return
        now = monotonic()
        if now - self.spoken >= self.pause and self.done < self.total:
            self.spoken, self.pause = now, min(2 * self.pause, _MOST_SECONDS)
            left = (now - self.started) / max(self.done - self.first, 1) * (self.total - self.done)
            say(f"{self.title}: {self.done:,} of {self.total:,}, {about(left)} left")


@dataclass
class Stages:
    """The stages of a job that runs, and where it is.

    Args:
        stages: All of them, in order.
        bar: Where they are drawn; None prints a line as each begins.
        is_quiet: Whether nothing is shown.
        downloads: Whether something else may draw in the first stage, such as the progress of a download.
        number: Of the stage that runs, from 0; -1 before the first.
        started: When it began.
        row: Where it is drawn.
    """

    stages: Sequence[Stage]
    bar: Progress | None = None
    is_quiet: bool = False
    downloads: bool = False
    number: int = -1
    started: float = 0.0
    row: TaskID | None = None

    def begin(self, number: int) -> None:
        """Go on to a stage; nothing if it has begun."""
        if self.is_quiet or number <= self.number:
            return
        self.end()
        self.number, self.started = number, monotonic()
        if self.bar is None or (self.downloads and number == 0):
            say(self.title)
        else:
            self.draw(None)

    def end(self) -> None:
        """Leave a line of the stage that ran where it was drawn."""
        if self.bar is not None and self.row is not None:
            self.bar.remove_task(self.row)
            self.row = None
            say(f"{self.title}, {monotonic() - self.started:,.0f} s")

    def reach(self, title: str) -> None:
        """Go on to the stage that a meter belongs to, if there is one."""
        self.begin(next((number for number, stage in enumerate(self.stages) if stage.has(title)), self.number))

    def expect(self, seconds: float | None, first: int | None = None) -> None:
        """Say how long it will take, and where it goes on.

        Args:
            seconds: Of what is left; None if that is not known.
            first: Number of the stage, from 0, at which an earlier run stopped; None for a new one.
        """
        if self.is_quiet:
            return
        time = "" if seconds is None else f", {about(seconds)}"
        count = len(self.stages)
        say(f"{count} stages{time}" if first is None else f"resuming at stage {first + 1} of {count}{time}")

    @property
    def title(self) -> str:
        """Of the stage that runs, such as "3 of 5: learning the code"."""
        return f"{self.number + 1} of {len(self.stages)}: {self.stages[self.number].label}"

    def draw(self, total: int | None, done: int = 0) -> TaskID:
        """A row of its own for what runs now, in the place of the one before.

        Args:
            total: Its steps; None where they are not counted, which shows that time goes on.
            done: Of these.
        """
        assert self.bar is not None
        self.bar.start()
        if self.row is not None:
            self.bar.remove_task(self.row)
        self.row = self.bar.add_task(printable(self.title), total=total, completed=done)
        return self.row


_RUNNING: ContextVar[Stages | None] = ContextVar("running", default=None)
_COUNT: ContextVar[Callable[[str, int, int], object] | None] = ContextVar("count", default=None)


@contextmanager
def shown_elsewhere(say: Callable[[str], object], count: Callable[[str, int, int], object]) -> Iterator[None]:
    """Have another process show what this block says and how far its meters are; its stages are not told.

    Args:
        say: Given each text.
        count: Given title, steps done and total of a meter as it starts and at every step.

    Yields:
        Nothing.
    """
    token = _COUNT.set(count)
    try:
        with said_elsewhere(say):
            yield
    finally:
        _COUNT.reset(token)


def is_shown_elsewhere() -> bool:
    """Whether another process shows what this one does."""
    return _COUNT.get() is not None


@contextmanager
def staged(stages: Sequence[Stage], *, quiet: bool = False, downloads: bool = False) -> Iterator[Stages]:
    """A job in stages, the first of which begins at once; inside another one's stages those go on.

    Args:
        stages: All of them, in order.
        quiet: Show nothing.
        downloads: As in `Stages`.

    Yields:
        Where the job is. Meters move it on.
    """
    running = _RUNNING.get()
    if running is not None:
        yield running
        return
    quiet = quiet or is_shown_elsewhere()
    running = Stages(stages, None if quiet or not sys.stderr.isatty() else _bars(), quiet, downloads)
    token = _RUNNING.set(running)
    try:
        running.begin(0)
        yield running
        running.end()
    finally:
        _RUNNING.reset(token)
        if running.bar is not None:
            running.bar.stop()


@contextmanager
def meter(title: str, total: int, *, done: int = 0, quiet: bool = False) -> Iterator[Meter]:
    """A progress bar on stderr for `total` steps, `done` of them from an earlier run; in the row of a stage, where a job has stages.

    Yields:
        The meter to advance.
    """
    now, running, count = monotonic(), _RUNNING.get(), _COUNT.get()
    if count is not None and not quiet:
        count(title, done, total)
        yield Meter(title=title, total=total, bar=None, done=done, count=count)
        return
    if running is not None and not quiet and done < total:
        running.reach(title)
    if quiet or not sys.stderr.isatty() or (running is not None and running.is_quiet):
        spoken = now if not quiet else float("inf")
        yield Meter(title=title, total=total, bar=None, done=done, first=done, started=now, spoken=spoken)
    elif running is not None and running.bar is not None:
        yield Meter(title=title, total=total, bar=running.bar, task_id=running.draw(total, done), done=done, first=done)
        running.draw(None)
    else:
        with _bars() as bar:
            task = bar.add_task(printable(title), total=total, completed=done)
            yield Meter(title=title, total=total, bar=bar, task_id=task, done=done, first=done, started=now)


def about(seconds: float) -> str:
    """A time as people say it.

    >>> about(42), about(170), about(5000)
    ('about 42 s', 'about 3 min', 'about 1.4 h')
    """
    if seconds < 90:
        return f"about {max(seconds, 1):.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 60 * 60 else f"about {seconds / 3600:.1f} h"


def _bars() -> Progress:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), redirect_stdout=sys.stdout.isatty())
