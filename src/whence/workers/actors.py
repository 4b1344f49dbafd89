"""Workers as actors of a Ray cluster, which may be this machine alone."""

import contextlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from whence.errors import BadInput, WhenceError
from whence.workers.cluster import RayCluster
from whence.workers.engine import READY, Doer, LostWorker

__all__ = ["ActorWorker", "Actors"]

_ASIDE = "aside"
_STYLES = re.compile(r"\x1b\[[0-9;]*m")


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
    """Starts actors. A lost one is not started again by Ray but by whoever asked for it.

    Args:
        make: Makes what does the jobs, in the actor. Its module has to be installed on all machines.
        count: Actors that there will be.
        cluster: Where; closed with this.
        cpus: Processors of each.
        gpus: GPUs of each.
        has_aside: Whether an actor also answers `aside` while it does a job, which it then does beside its main thread.

    Raises:
        BadInput: If the cluster has fewer processors, or GPUs.
    """

    def __init__(
        self,
        make: Callable[[], Doer],
        count: int,
        cluster: RayCluster,
        *,
        cpus: int = 1,
        gpus: float = 0,
        has_aside: bool = False,
    ):
        self.cluster = cluster
        self.ray: Any = cluster.ray
        rooms = cluster.rooms(cpus, gpus)
        if rooms < count:
            cluster.close()
            each = f" with {cpus} processors{f' and {gpus:g} GPUs' if gpus else ''} each" if (cpus, gpus) != (1, 0) else ""
            raise BadInput(
                found=f"{count} workers{each} for a Ray cluster of {rooms} {'processors' if not each else 'such places'}",
                needed="a processor for each" if not each else "one for each",
                do="ask for fewer workers, or add machines first",
            )
        groups = {"concurrency_groups": {_ASIDE: 1}} if has_aside else {}
        self.maker = self.ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0, max_task_retries=0, **groups)(_Actor)
        self.make = self.ray.put(make)  # sent to a machine once, however many actors it has

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
                answers.append((worker, LostWorker(_reason(str(error)))))
        return answers

    def aside(self, workers: Sequence[ActorWorker], question: str, seconds: float) -> dict[ActorWorker, Any]:
        """What actors say besides their jobs: what the method of this name gives, of what does their jobs.

        Args:
            workers: Of this engine.
            question: The method's name.
            seconds: After which nothing is an answer.

        Returns:
            The answer of each that gave one in time.
        """
        asks = {worker.actor.aside.options(concurrency_group=_ASIDE).remote(question): worker for worker in workers}
        there, _ = self.ray.wait(list(asks), num_returns=len(asks), timeout=seconds) if asks else ([], [])
        answers = {}
        for answer in there:
            with contextlib.suppress(self.ray.exceptions.RayError):  # one that is lost says so of its job
                answers[asks[answer]] = self.ray.get(answer)
        return answers

    def close(self) -> None:
        """Leave the cluster, if it was joined here, and end it, if it was started here."""
        self.cluster.close()


def _reason(message: str) -> str:
    r"""The line of an error of Ray that says what happened: the last of a trace, or what an actor died of.

    >>> _reason("The actor died unexpectedly.\n\tpid: 7\nThe actor is dead because it was killed by `ray.kill`.")
    'The actor is dead because it was killed by `ray.kill`.'
    """
    lines = [line for line in _STYLES.sub("", message).splitlines() if line.strip() and not line.startswith((" ", "\t"))]
    causes = [line for line in lines[1:] if line.startswith("The actor")]
    return re.split(" Some common causes include| The task may", (causes or lines or [message])[-1])[0][:240]


class _Actor:
    def __init__(self, make: Callable[[], Doer]):
        self._do: Any = make()

    def ready(self) -> str:
        return READY

    def do(self, job: Any) -> Any:
        try:
            return self._do(job)
        except WhenceError as error:
            return error

    def aside(self, question: str) -> Any:
        return getattr(self._do, question)()
