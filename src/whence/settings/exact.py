"""Settings of the exact methods: a frozen record each, with what that method takes and nothing else.

Fields that several have mean the same in all of them:

- `damping`: what is added to every eigenvalue; see `Damping`. Without one Kronecker factors take .1 x the mean eigenvalue; solvers take what
  the training recipe says, and 1 x the mean without a recipe or with one that lacks an adaptive optimizer's second moments.
- `fit`: what the Kronecker factors depend on; see `FitConfig`.
- `factors`: folder where the fitted curvature is kept: a fit that stopped goes on there, a finished one is used again.
- `fit_on`: other data to fit the curvature on, or a number of training examples; None takes them all.
- `query_rank`: singular directions kept of every query's gradient of a weight, 16 to 256: less memory; None keeps it whole.
- `normalize`: "cosine" divides by both norms in the inner product of the method; "relatif" by the root of N x the example's self-influence
  and "theta-relatif" by the norm of its (H + damping)^-1 grad (Barshan et al. 2020, section 4).
- `iterations`: of a solver, at most; enough to be affordable, not for the residual to vanish: what is left stands in the table's notes.
- `tolerance`: relative residual at which a query stops.
- `examples`: training examples, spread evenly, that the matrix is the mean over; None takes all. A product costs in proportion.
- `batch_examples`: training examples per iteration of a stochastic solver.
- `matrix`: what a solver inverts: "gauss_newton", or "hessian", which may have negative eigenvalues where training has not converged.
- `seed`: of the solver's draws.
- `run`: folder of a run that `whence.Recorder` kept. With it, a method of the final weights is averaged over the run instead: its scores at
  `checkpoints` of it (per stage, all if fewer were kept), each with query, example and curvature at those weights, weighted by the learning
  rate.
- `members`: with `run`, the method is averaged over further models in place of checkpoints: the final weights and so many short runs, a
  tenth of the run's steps each (50 at least), that whence trains itself; see `whence.unroll.short_run`. None trains none.
- `any_loss`: whether the task's loss may be another one than the run lowered, as it is where examples were augmented; False holds them
  against each other, by the losses that the run says or by making it again between two near checkpoints.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from whence.settings.checks import typed
from whence.settings.curvature import Damping, FitConfig
from whence.settings.exact_checks import Form, Matrix, Normalize, check_exact

__all__ = [
    "ASTRA",
    "CG",
    "EKFAC",
    "KFAC",
    "PCG",
    "Arnoldi",
    "AstraSource",
    "DVEmb",
    "DataInf",
    "ExactSettings",
    "Form",
    "GradDot",
    "Less",
    "LiSSA",
    "Matrix",
    "Normalize",
    "Nystroem",
    "ReplaySettings",
    "Source",
    "TracIn",
    "Unroll",
]

FolderName = str | Path | None


@dataclass(frozen=True, kw_only=True)
@typed
class EKFAC:
    """Eigenvalue-corrected Kronecker factors (Grosse et al. 2023)."""

    name: ClassVar[str] = "ekfac"
    damping: Damping = Damping()
    fit: FitConfig = FitConfig()
    factors: FolderName = None
    fit_on: Any = None
    query_rank: int | None = None
    normalize: Normalize | None = None
    run: FolderName = None
    checkpoints: int = 3
    members: int | None = None

    def __post_init__(self):
        check_exact(self)


@dataclass(frozen=True, kw_only=True)
@typed
class KFAC:
    """Kronecker factors without the correction (Martens and Grosse 2015)."""

    name: ClassVar[str] = "kfac"
    damping: Damping = Damping()
    fit: FitConfig = FitConfig()
    factors: FolderName = None
    fit_on: Any = None
    query_rank: int | None = None
    normalize: Normalize | None = None
    run: FolderName = None
    checkpoints: int = 3
    members: int | None = None

    def __post_init__(self):
        check_exact(self)


@dataclass(frozen=True, kw_only=True)
@typed
class GradDot:
    """Inner product of whole gradients; a baseline."""

    name: ClassVar[str] = "grad-dot-exact"
    query_rank: int | None = None
    normalize: Normalize | None = None

    def __post_init__(self):
        check_exact(self)


@dataclass(frozen=True, kw_only=True)
@typed
class PCG:
    """Conjugate gradients on the whole matrix, preconditioned with EK-FAC."""

    name: ClassVar[str] = "pcg"
    damping: Damping = Damping()
    fit: FitConfig = FitConfig()
    factors: FolderName = None
    fit_on: Any = None
    query_rank: int | None = None
    matrix: Matrix = "gauss_newton"
    iterations: int = 25
    tolerance: float = 1e-2
    examples: int | None = None
    run: FolderName = None
    checkpoints: int = 3
    members: int | None = None

    def __post_init__(self):
        check_exact(self)


@dataclass(frozen=True, kw_only=True)
@typed
class CG:
    """Conjugate gradients on the whole matrix (Martens 2010)."""

    name: ClassVar[str] = "cg"
    damping: Damping = Damping()
    fit: FitConfig = FitConfig()
    factors: FolderName = None
    fit_on: Any = None
    query_rank: int | None = None
    matrix: Matrix = "gauss_newton"
    iterations: int = 100
    tolerance: float = 1e-2
    examples: int | None = None

    def __post_init__(self):
        check_exact(self)


@dataclass(frozen=True, kw_only=True)
@typed
class ASTRA:
    """Stochastic Neumann iterations preconditioned with EK-FAC, averaged (Wang et al. 2025)."""

    name: ClassVar[str] = "astra"
    damping: Damping = Damping()
    fit: FitConfig = FitConfig()
    factors: FolderName = None
    fit_on: Any = None
    query_rank: int | None = None
    matrix: Matrix = "gauss_newton"
    iterations: int = 200
    tolerance: float = 1e-2
    examples: int | None = None
    batch_examples: int = 64
    seed: int = 0
    run: FolderName = None
    checkpoints: int = 3
    members: int | None = None

    def __post_init__(self):
        check_exact(self)


@dataclass(frozen=True, kw_only=True)
@typed
class LiSSA:
    """Stochastic Neumann iterations, averaged over independent walks (Agarwal et al. 2017).

    Args:
        repeats: Independent walks whose ends are averaged.
    """

    name: ClassVar[str] = "lissa"
    damping: Damping = Damping()
    fit: FitConfig = FitConfig()
    factors: FolderName = None
    fit_on: Any = None
    query_rank: int | None = None
    matrix: Matrix = "gauss_newton"
    iterations: int = 500
    repeats: int = 1
    tolerance: float = 1e-2
    examples: int | None = None
    batch_examples: int = 64
    seed: int = 0

    def __post_init__(self):
        check_exact(self)


@dataclass(frozen=True, kw_only=True)
@typed
class Nystroem:
    """Nystroem approximation of the matrix, inverted by Woodbury (Hataya and Yamada 2023).

    Args:
        rank: Directions kept.
    """

    name: ClassVar[str] = "nystroem"
    damping: Damping = Damping()
    fit: FitConfig = FitConfig()
    factors: FolderName = None
    fit_on: Any = None
    query_rank: int | None = None
    rank: int = 50
    examples: int | None = None
    seed: int = 0

    def __post_init__(self):
        check_exact(self)


@dataclass(frozen=True, kw_only=True)
@typed
class Arnoldi:
    """Leading eigenvectors by Krylov iterations; the rest is dropped (Schioppa et al. 2022).

    Args:
        rank: Directions kept.
    """

    name: ClassVar[str] = "arnoldi"
    damping: Damping = Damping()
    fit: FitConfig = FitConfig()
    factors: FolderName = None
    fit_on: Any = None
    query_rank: int | None = None
    matrix: Matrix = "gauss_newton"
    iterations: int = 100
    rank: int = 50
    examples: int | None = None
    seed: int = 0

    def __post_init__(self):
        check_exact(self)


@dataclass(frozen=True, kw_only=True)
@typed
class DataInf:
    """Mean of the inverses of every example's rank-one curvature (Kwon et al. 2024)."""

    name: ClassVar[str] = "datainf"
    damping: Damping = Damping()
    fit: FitConfig = FitConfig()
    factors: FolderName = None
    fit_on: Any = None
    query_rank: int | None = None
    examples: int | None = None

    def __post_init__(self):
        check_exact(self)


@dataclass(frozen=True, kw_only=True)
@typed
class Source:
    """Unrolled training in segments (Bae et al. 2024).

    Args:
        segments: Per stage of the run. Within one, curvature and gradients are taken as constant; a stage with fewer checkpoints has as
            many segments as checkpoints.
        average_weights: Whether one fit and one pass at the mean of a segment's weights replace those at each of its checkpoints
            (FAST-SOURCE, appendix F).
        form: For optimizers that multiply gradients with a matrix, such as Adam: "full" takes the exponential of the whole product of that
            matrix and the curvature, "diagonal" of its diagonal (equation 43).
        per_segment: Whether the table also has each segment's part of the scores, by name "steps 0 to 500": when an example mattered.
        online_bases: Whether the curvature's bases that the run's recorder followed replace a pass over the data and their decompositions;
            eigenvalues are measured in them as ever.
    """

    name: ClassVar[str] = "source"
    run: FolderName = None
    fit: FitConfig = FitConfig()
    factors: FolderName = None
    segments: int = 3
    average_weights: bool = False
    form: Form = "full"
    per_segment: bool = False
    any_loss: bool = False
    online_bases: bool = False

    def __post_init__(self):
        check_exact(self)


@dataclass(frozen=True, kw_only=True)
@typed
class AstraSource:
    """SOURCE with each segment's inverse solved on the Gauss-Newton matrix itself (Wang et al. 2025); fields as in `Source` and `ASTRA`."""

    name: ClassVar[str] = "astra-source"
    run: FolderName = None
    fit: FitConfig = FitConfig()
    factors: FolderName = None
    segments: int = 3
    average_weights: bool = False
    form: Form = "full"
    per_segment: bool = False
    any_loss: bool = False
    iterations: int = 200
    tolerance: float = 1e-2
    examples: int | None = None
    batch_examples: int = 64
    seed: int = 0

    def __post_init__(self):
        check_exact(self)


@dataclass(frozen=True, kw_only=True)
@typed
class TracIn:
    """Inner products of gradients at every checkpoint of a run (Pruthi et al. 2020).

    Args:
        per_segment: Whether the table also has each checkpoint's part of the scores.
    """

    name: ClassVar[str] = "tracin"
    run: FolderName = None
    per_segment: bool = False
    any_loss: bool = False

    def __post_init__(self):
        check_exact(self)


@dataclass(frozen=True, kw_only=True)
@typed
class Less:
    """Cosines of gradients and the optimizer's updates at every checkpoint of a run, times learning rates (Xia et al. 2024).

    Args:
        per_segment: Whether the table also has each checkpoint's part of the scores.
    """

    name: ClassVar[str] = "less"
    run: FolderName = None
    per_segment: bool = False
    any_loss: bool = False

    def __post_init__(self):
        check_exact(self)


@dataclass(frozen=True, kw_only=True)
@typed
class DVEmb:
    """Data value embeddings (Wang et al. 2024): `Unroll` with outer products of the examples' gradients in place of the Hessian."""

    name: ClassVar[str] = "dvemb"
    run: FolderName = None

    def __post_init__(self):
        check_exact(self)


@dataclass(frozen=True, kw_only=True)
@typed
class Unroll:
    """The exact derivative of a recorded run (Ilyas and Engstrom 2025): it has no curvature and no segments."""

    name: ClassVar[str] = "unroll"
    run: FolderName = None

    def __post_init__(self):
        check_exact(self)


ReplaySettings = DVEmb | Unroll
"""Of methods that make the recorded run again, step by step."""

ExactSettings = (
    EKFAC | KFAC | GradDot | PCG | CG | ASTRA | LiSSA | Nystroem | Arnoldi | DataInf
    | Source | AstraSource | TracIn | Less | ReplaySettings
)  # fmt: skip
