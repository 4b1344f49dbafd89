"""What preconditions a query: the Fisher of stored rows, damping, and learned axes."""

from whence.curvature.axes import fit_axes
from whence.curvature.damping import Damping, choose_damping, inverse_preconditioner, recipe_damping
from whence.curvature.fisher import Fisher, fit_fisher, leading_directions, load_fisher

__all__ = [
    "Damping",
    "Fisher",
    "choose_damping",
    "fit_axes",
    "fit_fisher",
    "inverse_preconditioner",
    "leading_directions",
    "load_fisher",
    "recipe_damping",
]
