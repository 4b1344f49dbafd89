"""From a model and a batch to gradient pairs, layer by layer."""

from whence.capture.check import check_task
from whence.capture.hooks import Objective, capture, frozen
from whence.capture.memory import Forecast, available_bytes, forecast, in_halves
from whence.capture.units import Coverage, Plan, plan_units

__all__ = [
    "Coverage",
    "Forecast",
    "Objective",
    "Plan",
    "available_bytes",
    "capture",
    "check_task",
    "forecast",
    "frozen",
    "in_halves",
    "plan_units",
]
