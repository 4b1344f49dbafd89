"""Recorded training runs: watching one, opening it, and what its exact derivative says. `whence.Recorder` watches a loop of your own."""

from whence.pipeline import group_effects, log_lightning, log_trainer, smoothness
from whence.recording import OnlineCurvature, record_lightning, record_trainer
from whence.unroll import Run, Smoothness, open_run

__all__ = [
    "OnlineCurvature",
    "Run",
    "Smoothness",
    "group_effects",
    "log_lightning",
    "log_trainer",
    "open_run",
    "record_lightning",
    "record_trainer",
    "smoothness",
]
