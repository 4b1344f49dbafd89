"""Attribution through training: recording a run, SOURCE on what was recorded, and the run's exact derivative."""

from whence.unroll.recorder import Recorder
from whence.unroll.replay import Replay, trainable
from whence.unroll.room import Room, measure_sweep
from whence.unroll.run import Run, Segment, open_run
from whence.unroll.smoothness import Smoothness, smoothness_of
from whence.unroll.sweep import metagradients, tangents, verify
from whence.unroll.trainer import record_trainer
from whence.unroll.walk import carry, shrinkage

__all__ = [
    "Recorder",
    "Replay",
    "Room",
    "Run",
    "Segment",
    "Smoothness",
    "carry",
    "measure_sweep",
    "metagradients",
    "open_run",
    "record_trainer",
    "shrinkage",
    "smoothness_of",
    "tangents",
    "trainable",
    "verify",
]
