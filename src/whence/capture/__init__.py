"""From a model and a batch to gradient pairs, layer by layer."""

from whence.capture.blocks import Blocks, as_blocks, as_parameters
from whence.capture.check import check_task
from whence.capture.forward import forward_mode
from whence.capture.frozen import frozen
from whence.capture.halves import in_halves, is_out_of_memory
from whence.capture.head import Head, separate_head
from whence.capture.hooks import Objective, capture
from whence.capture.memory import Forecast, available_bytes, forecast, give_back
from whence.capture.pulled import pulled
from whence.capture.same_model import ModelRecord, Probe, check_model, probe_examples, probed
from whence.capture.swapped import put_back, with_weights
from whence.capture.taps import taps
from whence.capture.telling_examples import telling_examples
from whence.capture.units import Coverage, Plan, plan_units

__all__ = [
    "Blocks",
    "Coverage",
    "Forecast",
    "Head",
    "ModelRecord",
    "Objective",
    "Plan",
    "Probe",
    "as_blocks",
    "as_parameters",
    "available_bytes",
    "capture",
    "check_model",
    "check_task",
    "forecast",
    "forward_mode",
    "frozen",
    "give_back",
    "in_halves",
    "is_out_of_memory",
    "plan_units",
    "put_back",
    "pulled",
    "probe_examples",
    "probed",
    "separate_head",
    "taps",
    "telling_examples",
    "with_weights",
]
