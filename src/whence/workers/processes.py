"""Workers as processes of this machine, each at the end of a pipe that only its parent has."""

import contextlib
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import ModuleType
from typing import Any

import torch

from whence.errors import WhenceError
from whence.workers.engine import READY, Doer, LostWorker

__all__ = ["ProcessWorker", "Processes"]


@dataclass(eq=False)
class ProcessWorker:
    """A process and the pipe to it.

    Args:
        process: Ends when the pipe does.
        pipe: Jobs go in, answers come out.
    """

    process: BaseProcess
    pipe: Connection

    def send(self, job: Any) -> None:
        """Have a job done."""
        with contextlib.suppress(OSError):  # it is gone: `answers` says so
            self.pipe.send(job)

    def end(self) -> None:
        """Stop it at once."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


class Processes:
    """Starts processes that have none of this one's locks and threads.

    On Linux they are forked off a process that has done nothing but import what they need, which takes hundredths of a second and shares its
    memory; elsewhere each starts afresh.

    What they send is unpickled here; nobody else can write into the pipes.

    Args:
        make: Makes what does the jobs, in the process; by name, so a class or function of a module.
        count: Processes that this one's threads are shared among.
    """

    def __init__(self, make: Callable[[], Doer], count: int):
        self.make = make
        self.threads = max(1, torch.get_num_threads() // count)
        self.context: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
        self.context.set_forkserver_preload([make.__module__])

    def start(self) -> ProcessWorker:
        """A process that is on its way."""
        here, there = self.context.Pipe()
        process = self.context.Process(target=_work, args=(there, self.make, self.threads), name="whence-worker", daemon=True)
        with _without_main():
            process.start()
        there.close()  # else its end would not close this pipe
        return ProcessWorker(process, here)

    def answers(self, workers: Sequence[ProcessWorker], seconds: float) -> list[tuple[ProcessWorker, Any]]:
        """What processes have to say; see `Engine`."""
        at_pipe: dict[Any, ProcessWorker] = {worker.pipe: worker for worker in workers}
        answers = []
        for pipe in wait(list(at_pipe), seconds):
            worker = at_pipe[pipe]
            try:
                answers.append((worker, worker.pipe.recv()))
            except (EOFError, OSError):
                worker.process.join()
                answers.append((worker, LostWorker(f"exit status {worker.process.exitcode}")))
        return answers

    def close(self) -> None:
        """Nothing: processes are all there was."""


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Keep new processes from running this one's script again, which may take long or start all over; nothing in it is named to them."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _work(pipe: Connection, make: Callable[[], Doer], threads: int) -> None:
    # Ctrl-C is for the parent, which ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    do = make()
    with contextlib.suppress(EOFError, OSError):  # the parent is gone
        pipe.send(READY)
        while True:
            job = pipe.recv()
            try:
                answer = do(job)
            except WhenceError as error:
                answer = error
            pipe.send(answer)
