"""What preconditions a query: the Fisher of stored rows, damping, and learned axes."""

from whence.curvature.axes import fit_axes
from whence.curvature.damping import Damping, choose_damping, inverse_preconditioner, recipe_damping
from whence.curvature.fisher import Fisher, fit_fisher, leading_directions, load_fisher
from whence.curvature.operators import Damped, Operator, Preconditioner, dense, top_eigenvalue
from whence.curvature.products import Curvature, Kind
from whence.curvature.rows import gradient_pairs, unit_rows
from whence.curvature.vectors import added, flatten, inner, random_like, scaled, split

__all__ = [
    "Curvature",
    "Damped",
    "Damping",
    "Fisher",
    "Kind",
    "Operator",
    "Preconditioner",
    "added",
    "choose_damping",
    "dense",
    "fit_axes",
    "fit_fisher",
    "flatten",
    "gradient_pairs",
    "inner",
    "inverse_preconditioner",
    "leading_directions",
    "load_fisher",
    "random_like",
    "recipe_damping",
    "scaled",
    "split",
    "top_eigenvalue",
    "unit_rows",
]
