"""Workers that one process starts, on this machine or on Ray, and a scan cut into pieces for them."""

from whence.workers.actors import Actors
from whence.workers.engine import READY, Doer, Engine, Lost, Worker
from whence.workers.processes import Processes
from whence.workers.workers import RowChoice, Workers

__all__ = ["Actors", "Doer", "Engine", "Lost", "Processes", "READY", "RowChoice", "Worker", "Workers"]
