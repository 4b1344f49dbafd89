"""Attribution through training: recording a run, and SOURCE on what was recorded."""

from whence.unroll.lightning import record_lightning
from whence.unroll.recorder import Recorder
from whence.unroll.run import Run, Segment, open_run
from whence.unroll.trainer import record_trainer
from whence.unroll.walk import carry, shrinkage

__all__ = ["Recorder", "Run", "Segment", "carry", "open_run", "record_lightning", "record_trainer", "shrinkage"]
