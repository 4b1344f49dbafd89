"""What is attributed: model, per-example loss, measurement, tracked parameters."""

from whence.tasks.base import AbstractTask, Batch, weights_digest
from whence.tasks.causal_lm import CausalLM
from whence.tasks.classification import Classification, Regression
from whence.tasks.custom import Custom
from whence.tasks.masked_lm import MaskedLM
from whence.tasks.outputs import Likelihood, Outputs

__all__ = [
    "AbstractTask",
    "Batch",
    "CausalLM",
    "Classification",
    "Custom",
    "Likelihood",
    "MaskedLM",
    "Outputs",
    "Regression",
    "weights_digest",
]
