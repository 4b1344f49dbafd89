"""Attribution through training: recording a run, and SOURCE on what was recorded."""

from whence.unroll.exponential import shrinkage
from whence.unroll.implicit import implicit_damping
from whence.unroll.lightning import record_lightning
from whence.unroll.recorder import Recorder
from whence.unroll.run import Run, open_run
from whence.unroll.scaling import Scaling, scaling_of
from whence.unroll.segments import Segment
from whence.unroll.trainer import record_trainer
from whence.unroll.walk import Form, carry, of_unit

__all__ = [
    "Form",
    "Recorder",
    "Run",
    "Scaling",
    "Segment",
    "carry",
    "implicit_damping",
    "of_unit",
    "open_run",
    "record_lightning",
    "record_trainer",
    "scaling_of",
    "shrinkage",
]
