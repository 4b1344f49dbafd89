"""The table of attribution methods: what each is made of, where it comes from, what it costs."""

from dataclasses import dataclass
from typing import Literal

from whence.errors import UnknownOption

__all__ = ["EXACT_METHODS", "METHODS", "ExactMethod", "Method", "exact_method_named", "method_named"]


@dataclass(frozen=True, kw_only=True)
class _EncoderKind:
    """What holds of every method with an encoder.

    Args:
        is_joined: Whether a row is one code of all units together; otherwise it is a matrix for each unit.
        is_projected: Whether it multiplies with a random projection, whose kind may be chosen.
    """

    is_joined: bool
    is_projected: bool


# An encoder that is not here has no method: nothing takes it for another one.
_ENCODERS = {
    "sides": _EncoderKind(is_joined=False, is_projected=True),
    "whole": _EncoderKind(is_joined=True, is_projected=True),
    "entries": _EncoderKind(is_joined=True, is_projected=False),
    "channels": _EncoderKind(is_joined=False, is_projected=False),
    "aligned": _EncoderKind(is_joined=True, is_projected=False),
}


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to attribute, as a record: parts by name, never a class of its own.

    Args:
        name: What users type.
        summary: One line on what it does.
        paper: Authors, year, identifier.
        version: Raised when the numbers that a store holds would change; older stores are then refused.
        encoder: What is shrunk: both sides of each unit's gradient ("sides"), the whole gradient of all units ("whole"), chosen entries of
            the whole gradient ("entries"), chosen channels on both sides of each unit ("channels"), or the whole gradient half-whitened by
            EK-FAC ("aligned").
        projection: What it is multiplied with.
        mask: How entries or channels are chosen; None where all are used.
        rank: Default width of the projection on each side, or numbers of a row where the whole gradient is shrunk.
        factor_rank: Rank-c factors kept of each projected gradient; None keeps it dense.
        curvature: What the query is preconditioned with: the Fisher of the rows, nothing, or EK-FAC that is already inside the rows.
        structure: Of that Fisher: "full", "kfac" for the product of its two sides, or "ekfac" for eigenvalues measured in their basis.
        curvature_rank: Directions kept of the curvature; None keeps all.
        dtype: Default stored type.
        axes_examples: Default size of the sample that axes or a mask are learned from.
        relative_damping: Used when the user does not say otherwise; share of the mean eigenvalue.
        objective: What the rows are gradients of: the loss, or the task's output function, whose weights are then kept beside them.
        optimizer_scaled: Whether gradients are divided by the root of their second moment before they are projected.
        whitened: Whether both sides are multiplied with the inverse root of the curvature.
        is_mixed: Whether that curvature is mixed with the queries' own.
        cosine: Whether scores are divided by both gradients' norms.
        passes: Passes over the training data to build, and over the store to fit the curvature.
    """

    name: str
    summary: str
    paper: str
    version: int = 1
    encoder: Literal["sides", "whole", "entries", "channels", "aligned"] = "sides"
    projection: Literal["gaussian", "rademacher", "sparse", "pca"] = "rademacher"
    mask: Literal["random", "selective"] | None = None
    rank: int = 16
    factor_rank: int | None = None
    curvature: Literal["fisher", "identity", "ekfac"] = "fisher"
    structure: Literal["full", "kfac", "ekfac"] = "full"
    curvature_rank: int | None = None
    dtype: str = "bfloat16"
    axes_examples: int = 1024
    relative_damping: float = 0.1
    objective: Literal["loss", "output"] = "loss"
    optimizer_scaled: bool = False
    whitened: bool = False
    is_mixed: bool = False
    cosine: bool = False
    passes: str = "1 data + 1 store"

    @property
    def is_joined(self) -> bool:
        """Whether a row is one code of all units together; otherwise it is a matrix for each unit."""
        return _ENCODERS[self.encoder].is_joined

    @property
    def is_projected(self) -> bool:
        """Whether rows are made with a random projection, whose kind may be chosen."""
        return _ENCODERS[self.encoder].is_projected and self.projection != "pca"


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            name="aligned",
            summary="gradients half-whitened by EK-FAC, then principal axes of a sample, cut to a few bits, or the span of known queries",
            paper="whence; Heo et al. 2026, arXiv 2609.37842",
            encoder="aligned",
            projection="pca",
            rank=1024,
            curvature="ekfac",
            dtype="int4",
            axes_examples=4096,
            passes="2 fit + 1 sample + 1 data",
        ),
        Method(
            name="lorif",
            summary="rank-c factors of projected gradients, truncated curvature with Woodbury inverse",
            paper="Li et al. 2026, arXiv 2601.21929",
            rank=32,
            factor_rank=2,
            curvature_rank=512,
            relative_damping=1.0,
            passes="1 data + 5 store",
        ),
        Method(
            name="logra",
            summary="projected gradients kept dense, full projected Fisher",
            paper="Choe et al. 2024, arXiv 2405.13954",
        ),
        Method(
            name="logra-kfac",
            summary="LoGra whose projected Fisher is the Kronecker product of its two sides: K-FAC among projected gradients",
            paper="Choe et al. 2024, arXiv 2405.13954; Martens and Grosse 2015",
            structure="kfac",
        ),
        Method(
            name="logra-ekfac",
            summary="the same with eigenvalues measured on the rows: EK-FAC among projected gradients",
            paper="Choe et al. 2024, arXiv 2405.13954; George et al. 2018",
            structure="ekfac",
            passes="1 data + 2 store",
        ),
        Method(
            name="logra-cos",
            summary="LoGra over the root of each document's self-influence and the query's: cosine in the metric of the inverse",
            paper="Choe et al. 2024, arXiv 2405.13954; Barshan et al. 2020",
            whitened=True,
            cosine=True,
        ),
        Method(
            name="logra-pca",
            summary="LoGra on the leading axes of each layer's inputs and output gradients",
            paper="Choe et al. 2024, arXiv 2405.13954",
            projection="pca",
            passes="2 data + 1 store",
        ),
        Method(
            name="trak",
            summary="random projection of the whole gradient of the log-odds, one kernel, weights 1 - p",
            paper="Park et al. 2023, arXiv 2303.14186",
            encoder="whole",
            rank=2048,
            relative_damping=1.0,
            objective="output",
        ),
        Method(
            name="grass",
            summary="TRAK on random entries of the gradient, summed into slots with random signs",
            paper="Hu et al. 2025, arXiv 2505.18976",
            encoder="entries",
            projection="sparse",
            mask="random",
            rank=2048,
            relative_damping=1.0,
            objective="output",
        ),
        Method(
            name="grass-selective",
            summary="the same with the entries learned that tell queries apart",
            paper="Hu et al. 2025, arXiv 2505.18976",
            encoder="entries",
            projection="sparse",
            mask="selective",
            rank=2048,
            relative_damping=1.0,
            objective="output",
            passes="1 data + 1 store + a sample",
        ),
        Method(
            name="factgrass",
            summary="random channels of both sides of each layer, their product summed into slots, full Fisher",
            paper="Hu et al. 2025, arXiv 2505.18976",
            encoder="channels",
            projection="sparse",
            mask="random",
        ),
        Method(
            name="trackstar",
            summary="gradients over the root of their second moment, projected, both sides whitened, cosine",
            paper="Chang et al. 2025, arXiv 2410.17413",
            relative_damping=1.0,
            optimizer_scaled=True,
            whitened=True,
            is_mixed=True,
            cosine=True,
            passes="1 data + 1 store + a sample",
        ),
        Method(
            name="grad-dot",
            summary="inner product of projected gradients; a baseline",
            paper="Charpiat et al. 2019, NeurIPS 32",
            curvature="identity",
            passes="1 data",
        ),
        Method(
            name="grad-cos",
            summary="cosine of projected gradients; a baseline",
            paper="Charpiat et al. 2019, NeurIPS 32",
            curvature="identity",
            cosine=True,
            passes="1 data",
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class ExactMethod:
    """One way to attribute without a store: whole gradients, the query preconditioned once per question.

    Args:
        name: What users type.
        summary: One line on what it does.
        paper: Authors, year, identifier.
        factors: Kronecker-factored curvature that is fitted first: the inverse itself, or what the solver starts from.
        solver: What inverts the Gauss-Newton matrix of the whole model; None where the factors do.
        needs_run: Whether it goes back through a recorded training run.
        passes: Passes over the training data to fit, per question, and to score.
    """

    name: str
    summary: str
    paper: str
    factors: Literal["ekfac", "kfac"] | None = "ekfac"
    solver: Literal["cg", "pcg", "lissa", "astra", "nystroem", "arnoldi", "datainf"] | None = None
    needs_run: bool = False
    passes: str = "2 fit + 1 score"


EXACT_METHODS: dict[str, ExactMethod] = {
    method.name: method
    for method in (
        ExactMethod(
            name="ekfac",
            summary="eigenvalue-corrected Kronecker factors of the Gauss-Newton matrix, layer by layer",
            paper="Grosse et al. 2023, arXiv 2308.03296",
        ),
        ExactMethod(
            name="kfac",
            summary="Kronecker factors without the correction",
            paper="Martens and Grosse 2015, arXiv 1503.05671",
            factors="kfac",
            passes="1 fit + 1 score",
        ),
        ExactMethod(
            name="source",
            summary="unrolled training in segments, each with the EK-FAC, learning rates and gradients of its own checkpoints",
            paper="Bae et al. 2024, arXiv 2405.12186",
            needs_run=True,
            passes="2 fit + 1 score per checkpoint",
        ),
        ExactMethod(
            name="astra-source",
            summary="SOURCE with each segment's inverse solved on the Gauss-Newton matrix itself, from EK-FAC",
            paper="Wang et al. 2025, arXiv 2507.14740",
            solver="astra",
            needs_run=True,
            passes="2 fit + 1 score per checkpoint + 3 per product of a batch",
        ),
        ExactMethod(
            name="tracin",
            summary="inner products of gradients at every checkpoint of a run, times the learning rates since the one before",
            paper="Pruthi et al. 2020, arXiv 2002.08484",
            factors=None,
            needs_run=True,
            passes="1 query + 1 score per checkpoint",
        ),
        ExactMethod(
            name="less",
            summary="cosines of the query's gradient and the update that the run's optimizer would make of an example, at every checkpoint",
            paper="Xia et al. 2024, arXiv 2402.04333",
            factors=None,
            needs_run=True,
            passes="1 query + 1 score per checkpoint",
        ),
        ExactMethod(
            name="dvemb",
            summary="data value embeddings: what each example's step became by the end of the run; curvature of the steps' own gradients",
            paper="Wang et al. 2024, arXiv 2412.09538",
            factors=None,
            needs_run=True,
            passes="4 per step of the run",
        ),
        ExactMethod(
            name="unroll",
            summary="the exact derivative of a recorded run by every example's weight: the run made again, then differentiated backwards",
            paper="Ilyas and Engstrom 2025, arXiv 2504.16430",
            factors=None,
            needs_run=True,
            passes="5 per step of the run + 2 per query and step",
        ),
        ExactMethod(
            name="pcg",
            summary="conjugate gradients on the whole Gauss-Newton matrix, preconditioned with EK-FAC",
            paper="whence; Hestenes and Stiefel 1952",
            solver="pcg",
            passes="2 fit + 3 per product + 1 score",
        ),
        ExactMethod(
            name="cg",
            summary="conjugate gradients on the whole Gauss-Newton matrix",
            paper="Martens 2010, ICML; Koh and Liang 2017, arXiv 1703.04730",
            solver="cg",
            passes="2 fit (for damping) + 3 per product + 1 score",
        ),
        ExactMethod(
            name="astra",
            summary="stochastic Neumann iterations preconditioned with EK-FAC, averaged",
            paper="Wang et al. 2025, arXiv 2507.14740",
            solver="astra",
            passes="2 fit + 3 per product of a batch + 1 score",
        ),
        ExactMethod(
            name="lissa",
            summary="stochastic Neumann iterations, averaged",
            paper="Agarwal et al. 2017, arXiv 1602.03943",
            solver="lissa",
            passes="2 fit (for damping) + 3 per product of a batch + 1 score",
        ),
        ExactMethod(
            name="nystroem",
            summary="rank-50 Nystroem approximation of the Gauss-Newton matrix, inverted by Woodbury",
            paper="Hataya and Yamada 2023, AISTATS",
            solver="nystroem",
            passes="2 fit (for damping) + 3 per direction + 1 score",
        ),
        ExactMethod(
            name="arnoldi",
            summary="leading eigenvectors of the Gauss-Newton matrix by Krylov iterations; the rest is dropped",
            paper="Schioppa et al. 2022, arXiv 2112.03052",
            solver="arnoldi",
            passes="2 fit (for damping) + 3 per product + 1 score",
        ),
        ExactMethod(
            name="datainf",
            summary="mean of the inverses of every example's rank-one curvature, layer by layer",
            paper="Kwon et al. 2024, arXiv 2310.00902",
            solver="datainf",
            passes="2 fit (for damping) + 1 per 64 queries + 1 score",
        ),
        ExactMethod(
            name="grad-dot-exact",
            summary="inner product of whole gradients; a baseline",
            paper="Charpiat et al. 2019, NeurIPS 32",
            factors=None,
            passes="1 score",
        ),
    )
}


def exact_method_named(name: str) -> ExactMethod:
    """The exact method of that name.

    Raises:
        UnknownOption: If there is none.
    """
    if name not in EXACT_METHODS:
        raise UnknownOption(
            found=f"unknown method {name!r}",
            needed=f"one of: {', '.join(sorted(EXACT_METHODS))}",
            do="pick one; those of stores go to whence.build",
        )
    return EXACT_METHODS[name]


def method_named(name: str) -> Method:
    """The method of that name.

    Raises:
        UnknownOption: If there is none.

    >>> method_named("logra").factor_rank is None
    True
    """
    if name not in METHODS:
        raise UnknownOption(
            found=f"unknown method {name!r}",
            needed=f"one of: {', '.join(sorted(METHODS))}",
            do="pick one; `whence methods` says what each does",
        )
    return METHODS[name]
