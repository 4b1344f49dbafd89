"""Watching a training run: the optimizer's steps, batches and weights, as they are."""

from whence.recording.contents import Content, contents_of
from whence.recording.ids import names_of
from whence.recording.lightning import record_lightning
from whence.recording.lightning_batches import PlannedBatches, callback_class
from whence.recording.online import OnlineCurvature
from whence.recording.recorder import Recorder
from whence.recording.trainer import record_trainer
from whence.recording.trainer_batches import (
    TrainerBatch,
    check_device,
    check_known,
    check_one_model,
    narrow_steps,
    numbered,
    watch_steps,
)

__all__ = [
    "Content",
    "OnlineCurvature",
    "PlannedBatches",
    "Recorder",
    "TrainerBatch",
    "callback_class",
    "names_of",
    "check_device",
    "check_known",
    "check_one_model",
    "contents_of",
    "narrow_steps",
    "numbered",
    "record_lightning",
    "record_trainer",
    "watch_steps",
]
