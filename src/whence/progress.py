"""Progress on stderr, with the time left. Quiet when nobody watches."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from whence.errors import printable
from whence.terminal import say

__all__ = ["Meter", "meter", "say"]

_PLAIN_SECONDS = 15.0


@dataclass
class Meter:
    """Counts the steps of one job.

    Args:
        title: What is being done.
        total: Number of steps.
        bar: Where it is drawn; None prints a line now and then instead (a log file, a pipe).
    """

    title: str
    total: int
    bar: Progress | None
    task_id: TaskID = TaskID(0)
    done: int = 0
    started: float = 0.0
    spoken: float = 0.0
    first: int = 0

    def advance(self, steps: int = 1) -> None:
        """Count `steps` more as done."""
        self.done += steps
        if self.bar is not None:
            self.bar.advance(self.task_id, steps)
            return
        now = monotonic()
        if now - self.spoken >= _PLAIN_SECONDS and self.done < self.total:
            self.spoken = now
            left = (now - self.started) / max(self.done - self.first, 1) * (self.total - self.done)
            say(f"{self.title}: {self.done:,} of {self.total:,}, about {left:.0f} s left")


@contextmanager
def meter(title: str, total: int, *, done: int = 0, quiet: bool = False) -> Iterator[Meter]:
    """A progress bar on stderr for `total` steps, `done` of them from an earlier run.

    Yields:
        The meter to advance.
    """
    now = monotonic()
    if quiet or not sys.stderr.isatty():
        spoken = float("inf") if quiet else now
        yield Meter(title=title, total=total, bar=None, done=done, first=done, started=now, spoken=spoken)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(printable(title), total=total, completed=done)
        yield Meter(title=title, total=total, bar=bar, task_id=task, done=done, first=done, started=now)
