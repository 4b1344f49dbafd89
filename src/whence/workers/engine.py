"""What a pool of workers asks of whoever runs them: processes of this machine, or a cluster."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["READY", "Doer", "Engine", "LostWorker", "Worker"]

READY = "ready"
"""The first answer of every worker."""

# What a worker does with a job; its class is made once in the worker, so it may keep things between jobs.
Doer = Callable[[Any], Any]


@dataclass(frozen=True)
class LostWorker:
    """The last answer of a worker that ended, however it did.

    Args:
        why: What is known of it.
    """

    why: str


class Worker(Protocol):
    """One that does a job at a time."""

    def send(self, job: Any) -> None:
        """Have a job done; of a worker that is gone the next answer says so."""
        ...

    def end(self) -> None:
        """Stop it at once."""
        ...


class Engine(Protocol):
    """Starts workers and collects what they say."""

    def start(self) -> Any:
        """A worker on its way; it answers READY when it can be sent something."""
        ...

    def answers(self, workers: Sequence[Any], seconds: float) -> list[tuple[Any, Any]]:
        """What workers have to say, as soon as one of them does.

        Args:
            workers: Of this engine.
            seconds: After which nothing is an answer.

        Returns:
            Of each that says something itself and READY, what its job gave, the `WhenceError` that its job raised, or `LostWorker`.
        """
        ...

    def close(self) -> None:
        """Take back what the engine started besides workers."""
        ...
