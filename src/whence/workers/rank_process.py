"""One rank of a job as an actor runs it, and what it lets its driver know meanwhile."""

import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from whence._version import __version__
from whence.distributed import Ranks
from whence.errors import BadInput
from whence.progress import shown_elsewhere
from whence.store import check_shared
from whence.workers.cluster import rooms_here

__all__ = ["News", "RankOrder", "RankProcess"]


@dataclass(frozen=True)
class RankOrder:
    """Which rank an actor is.

    Args:
        rank: Its number.
        count: How many there are.
        meeting: Host and port at which ranks that talk find each other; None for ranks that do not.
        version: Of whence where the job was started.
    """

    rank: int
    count: int
    meeting: tuple[str, int] | None = None
    version: str = __version__


@dataclass(frozen=True)
class News:
    """What a rank has said so far: an answer that comes too late for its driver loses nothing.

    Args:
        lines: For the person who waits.
        meters: By title, in the order in which they began, steps that are done and all steps.
    """

    lines: tuple[str, ...] = ()
    meters: Mapping[str, tuple[int, int]] = field(default_factory=dict)


class RankProcess:
    """Does a rank's part of a job, as a process under torchrun would.

    Args:
        run: The job, of a rank.
        folder: What the job writes, which all ranks have to see.
        home: The folder that paths are read from; None where all of them are absolute.
        cpus: Threads.
        gpus: GPUs that an actor has, for how many of them there may be on a machine.
    """

    def __init__(self, run: Callable[[Ranks], Any], folder: Path, home: Path | None, cpus: int, gpus: float):
        self.run = run
        self.folder = folder
        self.home = home
        self.cpus = cpus
        self.gpus = gpus
        self._lock = Lock()
        self._news = News()

    def __call__(self, order: RankOrder) -> Any:
        """What the job gives this rank.

        Raises:
            BadInput: If this machine has another version, or does not see the folders.
        """
        if order.version != __version__:
            raise BadInput(
                found=f"whence {__version__} on {socket.gethostname()}, and {order.version} where the command was started",
                needed="the same version on all machines, so that all compute alike",
                do="install it there",
            )
        torch.set_num_threads(self.cpus)
        if self.home is not None:
            try:
                os.chdir(self.home)
            except OSError as error:
                raise BadInput(
                    found=f"no folder {self.home} on {socket.gethostname()}",
                    needed="the folder where the command was started on all machines, since paths are read from there",
                    do="start it in a folder that all of them see",
                ) from error
        check_shared(self.folder)
        if order.meeting is not None:
            os.environ |= {"MASTER_ADDR": order.meeting[0], "MASTER_PORT": str(order.meeting[1])}
        on_machine = min(order.count, rooms_here(self.cpus, self.gpus))
        with shown_elsewhere(self._say, self._count):
            return self.run(Ranks(order.rank, order.count, on_machine))

    def news(self) -> News:
        """What there is to say so far."""
        with self._lock:
            return self._news

    def meeting(self) -> tuple[str, int]:
        """A place where ranks can find this one: its host, and a port that is free now."""
        import ray

        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def _say(self, text: str) -> None:
        with self._lock:
            self._news = replace(self._news, lines=(*self._news.lines, text))

    def _count(self, title: str, done: int, total: int) -> None:
        with self._lock:
            self._news = replace(self._news, meters={**self._news.meters, title: (done, total)})
