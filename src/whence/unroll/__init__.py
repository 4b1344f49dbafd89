"""Attribution through training: recording a run, and SOURCE on what was recorded."""

from whence.unroll.recorder import Recorder
from whence.unroll.run import Run, open_run
from whence.unroll.segments import Segment
from whence.unroll.trainer import record_trainer
from whence.unroll.walk import carry, shrinkage

__all__ = ["Recorder", "Run", "Segment", "carry", "open_run", "record_trainer", "shrinkage"]
