"""Going back through a recorded run: SOURCE on what was recorded, and the run's exact derivative."""

from whence.unroll.directions import Directions, directions_of
from whence.unroll.exponential import shrinkage
from whence.unroll.implicit import implicit_damping
from whence.unroll.replay import Replay, trainable
from whence.unroll.room import Room, measure_sweep
from whence.unroll.run import Run, open_run
from whence.unroll.same_contents import check_contents
from whence.unroll.same_loss import check_loss
from whence.unroll.scaling import Scaling, scaling_of
from whence.unroll.segments import Segment
from whence.unroll.short_runs import FINAL_SHARE, Clipping, ShortRun, clipping_of, short_run, steps_of
from whence.unroll.smoothness import Smoothness, smoothness_of
from whence.unroll.sweep import Verified, metagradients, tangents, verify
from whence.unroll.walk import carry, carry_averaged, of_unit

__all__ = [
    "Directions",
    "FINAL_SHARE",
    "Clipping",
    "Replay",
    "Room",
    "Run",
    "Scaling",
    "Segment",
    "ShortRun",
    "Smoothness",
    "Verified",
    "carry",
    "carry_averaged",
    "check_contents",
    "check_loss",
    "directions_of",
    "clipping_of",
    "implicit_damping",
    "measure_sweep",
    "metagradients",
    "of_unit",
    "open_run",
    "scaling_of",
    "short_run",
    "shrinkage",
    "smoothness_of",
    "steps_of",
    "tangents",
    "trainable",
    "verify",
]
