"""What preconditions a query: the Fisher of stored rows, K-FAC and EK-FAC of the model, damping, and learned axes."""

from whence.curvature.axes import fit_axes
from whence.curvature.damping import Damping, choose_damping, inverse_preconditioner, recipe_damping
from whence.curvature.eigenbasis import KroneckerBlock, KroneckerCurvature
from whence.curvature.ekfac import fit_ekfac
from whence.curvature.fisher import Fisher, fit_fisher, leading_directions, load_fisher
from whence.curvature.groups import UnitBytes, number_bytes, unit_bytes
from whence.curvature.kfac import FitConfig, fit_kfac
from whence.curvature.labels import LabelChoice
from whence.curvature.moments import Sharing
from whence.curvature.operators import Damped, Operator, Preconditioner, dense, top_eigenvalue
from whence.curvature.products import Curvature, Kind
from whence.curvature.rows import gradient_pairs, unit_rows
from whence.curvature.squares import SquaredGradients, held_examples, shared_units
from whence.curvature.stages import ranges_of
from whence.curvature.vectors import added, flatten, inner, random_like, scaled, split

__all__ = [
    "Curvature",
    "Damped",
    "Damping",
    "Fisher",
    "FitConfig",
    "Kind",
    "KroneckerBlock",
    "KroneckerCurvature",
    "LabelChoice",
    "Operator",
    "Preconditioner",
    "Sharing",
    "SquaredGradients",
    "UnitBytes",
    "added",
    "choose_damping",
    "dense",
    "fit_axes",
    "fit_ekfac",
    "fit_fisher",
    "fit_kfac",
    "flatten",
    "gradient_pairs",
    "held_examples",
    "inner",
    "inverse_preconditioner",
    "leading_directions",
    "load_fisher",
    "number_bytes",
    "random_like",
    "ranges_of",
    "recipe_damping",
    "scaled",
    "shared_units",
    "split",
    "top_eigenvalue",
    "unit_bytes",
    "unit_rows",
]
