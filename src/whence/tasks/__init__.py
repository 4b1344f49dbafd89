"""What is attributed: model, per-example loss, measurement, tracked parameters."""

from whence.tasks.base import AbstractTask, Batch, weights_digest
from whence.tasks.bounds import step_back
from whence.tasks.causal_lm import CausalLM
from whence.tasks.classification import Classification, Regression
from whence.tasks.custom import Custom
from whence.tasks.diffusers_folder import load_diffusion
from whence.tasks.diffusion import Diffusion, DiffusionMeasure
from whence.tasks.masked_lm import MaskedLM
from whence.tasks.noise import NoiseSchedule
from whence.tasks.outputs import Likelihood, Outputs
from whence.tasks.reading import records_in

__all__ = [
    "AbstractTask",
    "Batch",
    "CausalLM",
    "Classification",
    "Custom",
    "Diffusion",
    "DiffusionMeasure",
    "Likelihood",
    "MaskedLM",
    "NoiseSchedule",
    "Outputs",
    "Regression",
    "load_diffusion",
    "records_in",
    "step_back",
    "weights_digest",
]
