"""Training data attribution: which training examples does this behaviour come from?

>>> from whence.methods import METHODS
>>> "lorif" in METHODS
True
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

# By it the command line sees that this file is not another package's.
__distribution__ = "whence-tda"

_HOMES = {
    "ASTRA": "whence.settings",
    "CG": "whence.settings",
    "EKFAC": "whence.settings",
    "KFAC": "whence.settings",
    "PCG": "whence.settings",
    "Arnoldi": "whence.settings",
    "AstraSource": "whence.settings",
    "Damping": "whence.settings",
    "DataInf": "whence.settings",
    "FitConfig": "whence.settings",
    "GradDot": "whence.settings",
    "LiSSA": "whence.settings",
    "Nystroem": "whence.settings",
    "Rerank": "whence.settings",
    "Runtime": "whence.settings",
    "Source": "whence.settings",
    "TracIn": "whence.settings",
    "Unroll": "whence.settings",
    "AbstractTask": "whence.tasks",
    "BuildConfig": "whence.settings",
    "CausalLM": "whence.tasks",
    "Classification": "whence.tasks",
    "Client": "whence.serve",
    "Clusters": "whence.apply.clusters",
    "Custom": "whence.tasks",
    "Diffusion": "whence.tasks",
    "DistilConfig": "whence.settings",
    "Distilled": "whence.apply.proxy",
    "DocumentParts": "whence.apply.why",
    "EXACT_METHODS": "whence.methods",
    "Ensemble": "whence.score",
    "GradientLog": "whence.pipeline",
    "GuideConfig": "whence.settings",
    "Hit": "whence.report",
    "Hits": "whence.report",
    "METHODS": "whence.methods",
    "Marks": "whence.apply.guide",
    "MaskedLM": "whence.tasks",
    "NoiseSchedule": "whence.tasks",
    "Proof": "whence.apply.select",
    "Ranks": "whence.distributed",
    "Recipe": "whence.records",
    "OnlineCurvature": "whence.recording",
    "Recorder": "whence.recording",
    "Regression": "whence.tasks",
    "Run": "whence.unroll",
    "ScoreTable": "whence.records",
    "Selection": "whence.apply.select",
    "ServeConfig": "whence.serve",
    "ShareCheck": "whence.apply.shares",
    "ShareLine": "whence.apply.shares",
    "Shares": "whence.apply.shares",
    "Smoothness": "whence.unroll",
    "Store": "whence.store",
    "Study": "whence.apply.study",
    "WhenceError": "whence.errors",
    "Why": "whence.apply.why",
    "Workers": "whence.workers",
    "__version__": "whence._version",
    "attribute": "whence.pipeline",
    "build": "whence.pipeline",
    "clusters": "whence.apply.clusters",
    "contrast_scores": "whence.apply.guide",
    "damping_sweep": "whence.pipeline",
    "distil": "whence.apply.proxy",
    "ensemble_table": "whence.pipeline",
    "fit_curvature": "whence.pipeline",
    "group_effects": "whence.pipeline",
    "guide": "whence.apply.guide",
    "inverse_preconditioner": "whence.curvature",
    "load_arrays": "whence.load",
    "load_diffusion": "whence.tasks",
    "load_records": "whence.load",
    "load_selection": "whence.apply.select",
    "named_sources": "whence.apply.shares",
    "near_duplicates": "whence.apply.select",
    "open_marks": "whence.apply.guide",
    "open_run": "whence.unroll",
    "open_store": "whence.store",
    "prove": "whence.apply.select",
    "proxy_agreement": "whence.apply.proxy",
    "proxy_table": "whence.apply.proxy",
    "query": "whence.pipeline",
    "record_lightning": "whence.recording",
    "record_trainer": "whence.recording",
    "sample_images": "whence.pipeline",
    "score_table": "whence.pipeline",
    "select": "whence.apply.select",
    "select_tokens": "whence.apply.guide",
    "self_influence": "whence.pipeline",
    "shares": "whence.apply.shares",
    "smoothness": "whence.pipeline",
    "spool": "whence.pipeline",
    "stream_records": "whence.load",
    "study": "whence.apply.study",
    "suppress_in_trainer": "whence.apply.guide",
    "suppress_marked": "whence.apply.guide",
    "value_table": "whence.apply.select",
    "verify_shares": "whence.apply.shares",
    "why": "whence.apply.why",
    "write_clusters": "whence.apply.clusters",
    "write_shares": "whence.apply.shares",
}

__all__ = [  # noqa: PLE0604
    "EXACT_METHODS",
    "ASTRA",
    "CG",
    "EKFAC",
    "KFAC",
    "PCG",
    "Arnoldi",
    "AstraSource",
    "Damping",
    "DataInf",
    "FitConfig",
    "GradDot",
    "LiSSA",
    "Nystroem",
    "Rerank",
    "Runtime",
    "Source",
    "TracIn",
    "Unroll",
    "METHODS",
    "AbstractTask",
    "BuildConfig",
    "CausalLM",
    "Classification",
    "Client",
    "Clusters",
    "Custom",
    "Diffusion",
    "DistilConfig",
    "Distilled",
    "DocumentParts",
    "Ensemble",
    "GradientLog",
    "GuideConfig",
    "Hit",
    "Hits",
    "Marks",
    "MaskedLM",
    "NoiseSchedule",
    "Proof",
    "Ranks",
    "Recipe",
    "OnlineCurvature",
    "Recorder",
    "Regression",
    "Run",
    "ScoreTable",
    "Selection",
    "ServeConfig",
    "ShareCheck",
    "ShareLine",
    "Shares",
    "Smoothness",
    "Store",
    "Study",
    "WhenceError",
    "Why",
    "Workers",
    "attribute",
    "build",
    "clusters",
    "contrast_scores",
    "damping_sweep",
    "distil",
    "ensemble_table",
    "fit_curvature",
    "group_effects",
    "guide",
    "inverse_preconditioner",
    "load_arrays",
    "load_diffusion",
    "load_records",
    "load_selection",
    "named_sources",
    "near_duplicates",
    "open_marks",
    "open_run",
    "open_store",
    "prove",
    "proxy_agreement",
    "proxy_table",
    "query",
    "record_lightning",
    "record_trainer",
    "sample_images",
    "score_table",
    "select",
    "select_tokens",
    "self_influence",
    "shares",
    "smoothness",
    "spool",
    "stream_records",
    "study",
    "suppress_in_trainer",
    "suppress_marked",
    "value_table",
    "verify_shares",
    "why",
    "write_clusters",
    "write_shares",
]

if TYPE_CHECKING:
    from whence._version import __version__ as __version__
    from whence.apply.clusters import Clusters, clusters, write_clusters
    from whence.apply.guide import (
        Marks,
        contrast_scores,
        guide,
        open_marks,
        select_tokens,
        suppress_in_trainer,
        suppress_marked,
    )
    from whence.apply.proxy import Distilled, distil, proxy_agreement, proxy_table
    from whence.apply.select import Proof, Selection, load_selection, near_duplicates, prove, select, value_table
    from whence.apply.shares import ShareCheck, ShareLine, Shares, named_sources, shares, verify_shares, write_shares
    from whence.apply.study import Study, study
    from whence.apply.why import DocumentParts, Why, why
    from whence.curvature import inverse_preconditioner
    from whence.distributed import Ranks
    from whence.errors import WhenceError
    from whence.load import load_arrays, load_records, stream_records
    from whence.methods import EXACT_METHODS, METHODS
    from whence.pipeline import (
        GradientLog,
        attribute,
        build,
        damping_sweep,
        ensemble_table,
        fit_curvature,
        group_effects,
        query,
        sample_images,
        score_table,
        self_influence,
        smoothness,
        spool,
    )
    from whence.recording import OnlineCurvature, Recorder, record_lightning, record_trainer
    from whence.records import Recipe, ScoreTable
    from whence.report import Hit, Hits
    from whence.score import Ensemble
    from whence.serve import Client, ServeConfig
    from whence.settings import (
        ASTRA,
        CG,
        EKFAC,
        KFAC,
        PCG,
        Arnoldi,
        AstraSource,
        BuildConfig,
        Damping,
        DataInf,
        DistilConfig,
        FitConfig,
        GradDot,
        GuideConfig,
        LiSSA,
        Nystroem,
        Rerank,
        Runtime,
        Source,
        TracIn,
        Unroll,
    )
    from whence.store import Store, open_store
    from whence.tasks import (
        AbstractTask,
        CausalLM,
        Classification,
        Custom,
        Diffusion,
        MaskedLM,
        NoiseSchedule,
        Regression,
        load_diffusion,
    )
    from whence.unroll import Run, Smoothness, open_run
    from whence.workers import Workers


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used: importing the package costs nothing, not even torch.

    Raises:
        AttributeError: If there is no such name.
    """
    if name not in _HOMES:
        raise AttributeError(f"module 'whence' has no attribute {name!r}; it has: {', '.join(sorted(_HOMES))}")
    import_module("whence._distribution").warn_if_mixed(__path__[0])
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
