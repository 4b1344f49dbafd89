"""The stages of long jobs, known before torch is imported."""

from whence.methods import exact_method_named, method_named
from whence.progress import Stage
from whence.settings import BuildConfig, ExactSettings

__all__ = ["FIT_STAGES", "attribute_stages", "build_stages", "query_stages"]

_READING = Stage("reading the model and the data")
_CURVATURE = Stage("measuring the curvature", ("factors", "bases", "eigenvalues"))

FIT_STAGES = (
    _READING,
    Stage("adding up second moments", ("factors",)),
    Stage("finding eigenvectors", ("bases",)),
    Stage("measuring eigenvalues", ("eigenvalues",)),
)
"""Of a fit of curvature."""


def build_stages(config: BuildConfig) -> tuple[Stage, ...]:
    """Of a build.

    >>> [stage.label for stage in build_stages(BuildConfig(method="logra"))][1:]
    ['compressing the examples', 'measuring the curvature of the rows']
    """
    method = method_named(config.method)
    compressing = Stage("compressing the examples", ("gradients",))
    if method.encoder == "aligned":
        if config.anchors is not None:
            return (_READING, _CURVATURE, Stage("taking the anchors' gradients", ("anchors",)), compressing)
        learning = Stage("learning the code", ("held out", "sample", "sketches", "axes"))
        return (_READING, _CURVATURE, learning, compressing, Stage("holding scores against exact ones", ("fidelity",)))
    learns = method.mask == "selective" or method.optimizer_scaled or method.projection == "pca"
    return (
        _READING,
        *((Stage("learning what to keep", ("mask", "moments", "axes")),) if learns else ()),
        compressing,
        *((Stage("measuring the curvature of the rows", ("curvature",)),) if method.curvature == "fisher" else ()),
    )


def attribute_stages(settings: ExactSettings) -> tuple[Stage, ...]:
    """Of scores from whole gradients."""
    method = exact_method_named(settings.name)
    if method.needs_run or getattr(settings, "run", None) is not None:
        return (_READING, Stage("going through the recorded run"))
    return (
        _READING,
        *((_CURVATURE,) if method.factors is not None else ()),
        Stage("asking the questions", ("queries",)),
        Stage("scoring the training examples", ("scan",)),
    )


def query_stages(*, is_reranked: bool = False, tokens: bool = False) -> tuple[Stage, ...]:
    """Of a question to a store.

    Args:
        is_reranked: Whether there is a second stage of scores.
        tokens: Whether tokens are scored.
    """
    return (
        Stage("reading the store and its model"),
        Stage("asking the questions", ("queries",)),
        Stage("scanning the store", ("scan",)),
        *((Stage("scoring the shortlist", ("rerank",)),) if is_reranked else ()),
        *((Stage("scoring tokens", ("tokens",)),) if tokens else ()),
    )
