"""Workers as actors of a Ray cluster, which may be this machine alone."""

import contextlib
import logging
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from whence.errors import BadInput, WhenceError
from whence.workers.engine import READY, Doer, LostWorker

__all__ = ["ActorWorker", "Actors"]

_CONNECT_SECONDS = 10.0


@dataclass(eq=False)
class ActorWorker:
    """An actor and what it was asked last.

    Args:
        ray: The module.
        actor: Its handle.
        answer: Comes when it has done that; None once it was collected.
    """

    ray: Any
    actor: Any
    answer: Any

    def send(self, job: Any) -> None:
        """Have a job done."""
        self.answer = self.actor.do.remote(job)

    def end(self) -> None:
        """Stop it at once."""
        with contextlib.suppress(Exception):  # the cluster may be gone
            self.ray.kill(self.actor)


class Actors:
    """Starts actors of one processor each. A lost one is not started again by Ray but by whoever asked for it.

    Uses the cluster that this process is connected to, else connects or starts one, and lets go of that when closed. A cluster that is
    started here has no dashboard and reports nothing to anybody.

    Args:
        make: Makes what does the jobs, in the actor. Its module has to be installed on all machines.
        count: Actors that there will be.
        address: "local" starts a cluster of so many processors on this machine, "auto" finds the one that this machine is part of; else the
            address of one.

    Raises:
        BadInput: If Ray is not installed, nothing is at the address, or the cluster has fewer processors.
    """

    def __init__(self, make: Callable[[], Doer], count: int, address: str):
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError as error:
            raise BadInput(
                found="no package ray", needed="what workers on a cluster need", do="pip install 'whence-tda[ray]'"
            ) from error
        self.ray: Any = ray
        self.is_ours = not ray.is_initialized()
        if self.is_ours:
            options: dict[str, Any] = {"num_cpus": count, "include_dashboard": False} if address == "local" else {}
            try:
                _knock(address)
                # What actors print is not for this process's output, which is data.
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
            except (ConnectionError, OSError, ValueError, RuntimeError) as error:
                raise BadInput(
                    found=f"no Ray cluster at {address!r} ({str(error).splitlines()[0][:120]})",
                    needed="one that runs the same versions of Ray and Python",
                    do="start one with `ray start --head`, pass its address, or pass 'local'",
                ) from error
        there = int(ray.cluster_resources().get("CPU", 0))
        if there < count:
            self.close()
            raise BadInput(
                found=f"{count} workers for a Ray cluster of {there} processors",
                needed="a processor for each",
                do="ask for fewer workers, or add machines first",
            )
        self.maker = ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)(_Actor)
        self.make = make

    def start(self) -> ActorWorker:
        """An actor that is on its way."""
        actor = self.maker.remote(self.make)
        return ActorWorker(self.ray, actor, actor.ready.remote())

    def answers(self, workers: Sequence[ActorWorker], seconds: float) -> list[tuple[ActorWorker, Any]]:
        """What actors have to say; see `Engine`. One that has nothing to do and ends says so when it is sent something."""
        worker_of = {worker.answer: worker for worker in workers if worker.answer is not None}
        if not worker_of:
            return []
        self.ray.wait(list(worker_of), num_returns=1, timeout=seconds)  # for one of them; then whoever else is there
        there, _ = self.ray.wait(list(worker_of), num_returns=len(worker_of), timeout=0)
        answers = []
        for answer in there:
            worker = worker_of[answer]
            worker.answer = None
            try:
                answers.append((worker, self.ray.get(answer)))
            except self.ray.exceptions.RayError as error:
                worker.end()
                # A traceback ends with its error; what else Ray says begins with it.
                lines = str(error).strip().splitlines()
                answers.append((worker, LostWorker(lines[-1 if isinstance(error, self.ray.exceptions.RayTaskError) else 0])))
        return answers

    def close(self) -> None:
        """Leave the cluster, if it was joined here, and end it, if it was started here."""
        if self.is_ours:
            self.ray.shutdown()


def _knock(address: str) -> None:
    """Fail at once where nobody listens: Ray itself tries for minutes."""
    if address not in ("local", "auto"):
        host, _, port = address.removeprefix("ray://").rpartition(":")
        socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()


class _Actor:
    def __init__(self, make: Callable[[], Doer]):
        self._do = make()

    def ready(self) -> str:
        return READY

    def do(self, job: Any) -> Any:
        try:
            return self._do(job)
        except WhenceError as error:
            return error
