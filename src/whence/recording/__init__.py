"""Watching a training run: the optimizer's steps, batches and weights, as they are."""

from whence.recording.lightning import record_lightning
from whence.recording.recorder import Recorder
from whence.recording.trainer import record_trainer

__all__ = ["Recorder", "record_lightning", "record_trainer"]
