"""What is attributed: model, per-example loss, measurement, tracked parameters."""

from whence.tasks.base import AbstractTask, Batch, fitting_mask, weights_digest
from whence.tasks.bounds import step_back
from whence.tasks.causal_lm import CausalLM, contrast_notes
from whence.tasks.classification import Classification, Regression, TextLimits
from whence.tasks.custom import Custom
from whence.tasks.diffusers_folder import load_diffusion
from whence.tasks.diffusion import Diffusion
from whence.tasks.diffusion_measures import DiffusionMeasure, Measured
from whence.tasks.diffusion_records import condition_rows
from whence.tasks.draws import Draws, Guidance
from whence.tasks.masked_lm import Hiding, MaskedLM
from whence.tasks.noise import NoiseSchedule
from whence.tasks.outputs import Likelihood, Outputs
from whence.tasks.preference import Preference
from whence.tasks.reading import records_in
from whence.tasks.reward_weighted import RewardWeighted
from whence.tasks.seq2seq import Seq2Seq
from whence.tasks.structure import Structure, differences, structure_of
from whence.tasks.token_classification import TokenClassification

__all__ = [
    "AbstractTask",
    "Batch",
    "CausalLM",
    "Classification",
    "Custom",
    "Diffusion",
    "DiffusionMeasure",
    "Draws",
    "Guidance",
    "Hiding",
    "Likelihood",
    "MaskedLM",
    "Measured",
    "NoiseSchedule",
    "Outputs",
    "Preference",
    "Regression",
    "RewardWeighted",
    "Seq2Seq",
    "Structure",
    "TextLimits",
    "TokenClassification",
    "condition_rows",
    "contrast_notes",
    "differences",
    "fitting_mask",
    "load_diffusion",
    "records_in",
    "step_back",
    "structure_of",
    "weights_digest",
]
