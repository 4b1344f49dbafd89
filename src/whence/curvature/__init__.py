"""What preconditions a query: the Fisher of stored rows, K-FAC and EK-FAC of the model, damping; learned axes and masks."""

from whence.curvature.axes import fit_axes
from whence.curvature.code_axes import (
    Choosing,
    LearnedCode,
    code_axes,
    most_bits,
    streamed_code,
)
from whence.curvature.code_choice import Code
from whence.curvature.code_tensors import (
    load_axes,
    load_rest,
    load_whitened,
    rest_bits,
    save_axes,
    save_rest,
    save_whitened,
)
from whence.curvature.damping import (
    ResolvedDamping,
    choose_damping,
    inverse_preconditioner,
    recipe_damping,
    rounding_share,
    stored_damping,
)
from whence.curvature.eigenbasis import KroneckerBlock, KroneckerCurvature
from whence.curvature.eigenvectors import eigenvectors
from whence.curvature.ekfac import fit_ekfac, fit_values
from whence.curvature.few_rows import few_rows
from whence.curvature.fisher import Fisher, fit_fisher, leading_directions, load_fishers
from whence.curvature.groups import POOLED, UnitBytes, number_bytes, unit_bytes
from whence.curvature.halves import solve_whitened, whiten
from whence.curvature.kfac import Fit, FitRun, fit_factors, fit_kfac, prepare_fit, solve_bases
from whence.curvature.kronecker_fisher import KroneckerFisher, fit_kronecker_fisher, load_kronecker_fishers
from whence.curvature.labels import class_count
from whence.curvature.mask import fit_mask, mask_objective
from whence.curvature.operators import Damped, Operator, Preconditioner, dense, top_eigenvalue
from whence.curvature.pooled import Weights, fit_ekfac_pooled
from whence.curvature.products import Curvature, Kind
from whence.curvature.range_finder import SKETCHED
from whence.curvature.rows import gradient_pairs, unit_rows
from whence.curvature.second_moments import fit_second_moments, side_scales
from whence.curvature.sides import basis_notes, basis_plan, cut_note, directions_of, kept_numbers, resolved
from whence.curvature.spectral import SpectralFactor
from whence.curvature.squares import SquaredGradients, held_examples, shared_units
from whence.curvature.stages import finished_stages, ranges_of
from whence.curvature.vectors import added, flatten, inner, random_like, scaled, split

__all__ = [
    "POOLED",
    "Code",
    "SpectralFactor",
    "SKETCHED",
    "Choosing",
    "LearnedCode",
    "code_axes",
    "streamed_code",
    "load_rest",
    "rest_bits",
    "save_rest",
    "most_bits",
    "load_axes",
    "load_whitened",
    "save_axes",
    "save_whitened",
    "whiten",
    "Fit",
    "eigenvectors",
    "fit_factors",
    "fit_values",
    "prepare_fit",
    "solve_bases",
    "Curvature",
    "Damped",
    "ResolvedDamping",
    "Fisher",
    "FitRun",
    "Kind",
    "KroneckerBlock",
    "KroneckerCurvature",
    "Operator",
    "Preconditioner",
    "SquaredGradients",
    "UnitBytes",
    "Weights",
    "added",
    "choose_damping",
    "class_count",
    "basis_notes",
    "basis_plan",
    "cut_note",
    "dense",
    "directions_of",
    "kept_numbers",
    "finished_stages",
    "fit_axes",
    "few_rows",
    "fit_ekfac",
    "fit_ekfac_pooled",
    "fit_fisher",
    "fit_kfac",
    "fit_mask",
    "fit_second_moments",
    "flatten",
    "gradient_pairs",
    "held_examples",
    "inner",
    "inverse_preconditioner",
    "leading_directions",
    "load_fishers",
    "KroneckerFisher",
    "fit_kronecker_fisher",
    "load_kronecker_fishers",
    "mask_objective",
    "number_bytes",
    "random_like",
    "resolved",
    "ranges_of",
    "recipe_damping",
    "rounding_share",
    "scaled",
    "shared_units",
    "side_scales",
    "solve_whitened",
    "split",
    "stored_damping",
    "top_eigenvalue",
    "unit_bytes",
    "unit_rows",
]
