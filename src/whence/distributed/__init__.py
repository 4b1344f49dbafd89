"""Several processes on one job: which of them this is, what they say to each other, and workers that one of them starts."""

from whence.distributed.actors import Actors
from whence.distributed.engine import READY, Doer, Engine, Lost, Worker
from whence.distributed.processes import Processes
from whence.distributed.ranks import Ranks

__all__ = ["READY", "Actors", "Doer", "Engine", "Lost", "Processes", "Ranks", "Worker"]
