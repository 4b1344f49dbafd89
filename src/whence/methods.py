"""The table of attribution methods: what each is made of, where it comes from, what it costs."""

from dataclasses import dataclass
from typing import Literal

from whence.errors import UnknownOption

__all__ = ["METHODS", "Method", "method_named"]


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to attribute, as a record: parts by name, never a class of its own.

    Args:
        name: What users type.
        summary: One line on what it does.
        paper: Authors, year, identifier.
        version: Raised when the numbers that a store holds would change; older stores are then refused.
        projection: How each gradient is shrunk on both sides.
        rank: Default width of the projection on each side.
        factor_rank: Rank-c factors kept of each projected gradient; None keeps it dense.
        curvature: What the query is preconditioned with.
        curvature_rank: Directions kept of the curvature; None keeps all.
        relative_damping: Used when neither the user nor a training recipe says otherwise; share of the mean eigenvalue.
        cosine: Whether scores are divided by both gradients' norms.
        passes: Passes over the training data to build, and over the store to fit the curvature.
    """

    name: str
    summary: str
    paper: str
    version: int = 1
    projection: Literal["gaussian", "rademacher", "pca"] = "rademacher"
    rank: int = 16
    factor_rank: int | None = None
    curvature: Literal["fisher", "identity"] = "fisher"
    curvature_rank: int | None = None
    relative_damping: float = 0.1
    cosine: bool = False
    passes: str = "1 data + 1 store"


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
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
            name="logra-pca",
            summary="LoGra on the leading axes of each layer's inputs and output gradients",
            paper="Choe et al. 2024, arXiv 2405.13954",
            projection="pca",
            passes="2 data + 1 store",
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
