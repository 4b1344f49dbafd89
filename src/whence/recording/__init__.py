"""Watching a training run: the optimizer's steps, batches and weights, as they are."""

from whence.recording.lightning import record_lightning
from whence.recording.online import OnlineCurvature
from whence.recording.recorder import Recorder
from whence.recording.trainer import record_trainer

__all__ = ["OnlineCurvature", "Recorder", "record_lightning", "record_trainer"]
