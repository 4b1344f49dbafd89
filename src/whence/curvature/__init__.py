"""What preconditions a query: the Fisher of stored rows, K-FAC and EK-FAC of the model, damping, and learned axes."""

from whence.curvature.axes import fit_axes
from whence.curvature.damping import Damping, choose_damping, inverse_preconditioner, recipe_damping
from whence.curvature.eigenbasis import KroneckerBlock, KroneckerCurvature
from whence.curvature.ekfac import fit_ekfac
from whence.curvature.fisher import Fisher, fit_fisher, leading_directions, load_fisher
from whence.curvature.kfac import FitConfig, fit_kfac
from whence.curvature.labels import LabelChoice
from whence.curvature.moments import Sharing
from whence.curvature.squares import SquaredGradients, held_examples, shared_units

__all__ = [
    "Damping",
    "Fisher",
    "FitConfig",
    "KroneckerBlock",
    "KroneckerCurvature",
    "LabelChoice",
    "Sharing",
    "SquaredGradients",
    "choose_damping",
    "fit_axes",
    "fit_ekfac",
    "fit_fisher",
    "fit_kfac",
    "held_examples",
    "inverse_preconditioner",
    "leading_directions",
    "load_fisher",
    "recipe_damping",
    "shared_units",
]
