"""Workers that one process starts, on this machine or on Ray, and a scan cut into pieces for them."""

from whence.workers.actors import Actors
from whence.workers.engine import READY, Doer, Engine, LostWorker, Worker
from whence.workers.processes import Processes
from whence.workers.workers import RowChoice, Workers

__all__ = ["Actors", "Doer", "Engine", "LostWorker", "Processes", "READY", "RowChoice", "Worker", "Workers"]
