"""Workers that one process starts, on this machine or on Ray: a scan cut into pieces for them, and ranks of a job."""

from whence.workers.actors import Actors
from whence.workers.cluster import RayCluster
from whence.workers.engine import READY, Doer, Engine, LostWorker, Worker
from whence.workers.processes import Processes
from whence.workers.ranks_on_ray import SharedJob, run_on_ray
from whence.workers.workers import RowChoice, Workers

__all__ = [
    "Actors",
    "Doer",
    "Engine",
    "LostWorker",
    "Processes",
    "READY",
    "RayCluster",
    "RowChoice",
    "SharedJob",
    "Worker",
    "Workers",
    "run_on_ray",
]
