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
    "AbstractTask": "whence.tasks",
    "BuildConfig": "whence.config",
    "CausalLM": "whence.tasks",
    "Classification": "whence.tasks",
    "Client": "whence.serve",
    "Clusters": "whence.apply.clusters",
    "Custom": "whence.tasks",
    "Diffusion": "whence.tasks",
    "DistilConfig": "whence.apply.proxy_distil",
    "Distilled": "whence.apply.proxy_distil",
    "DocumentParts": "whence.report",
    "EXACT_METHODS": "whence.methods",
    "Ensemble": "whence.score",
    "GradientLog": "whence.pipeline",
    "GuideConfig": "whence.apply.guide_select",
    "Hit": "whence.report",
    "Hits": "whence.report",
    "METHODS": "whence.methods",
    "Marks": "whence.apply.guide_marks",
    "MaskedLM": "whence.tasks",
    "NoiseSchedule": "whence.tasks",
    "Proof": "whence.apply.proof",
    "Ranks": "whence.distributed",
    "Recipe": "whence.records",
    "Recorder": "whence.unroll",
    "Regression": "whence.tasks",
    "Run": "whence.unroll",
    "ScoreTable": "whence.records",
    "Selection": "whence.apply.selection",
    "ServeConfig": "whence.serve",
    "ShareCheck": "whence.apply.share_verify",
    "ShareLine": "whence.apply.shares",
    "Shares": "whence.apply.shares",
    "Smoothness": "whence.unroll",
    "SolveConfig": "whence.pipeline",
    "Store": "whence.store",
    "Study": "whence.apply.study_result",
    "UnrollConfig": "whence.pipeline",
    "WhenceError": "whence.errors",
    "Why": "whence.report",
    "Workers": "whence.score",
    "__version__": "whence._version",
    "attribute": "whence.pipeline",
    "build": "whence.pipeline",
    "clusters": "whence.apply.clusters",
    "contrast_scores": "whence.apply.guide_scores",
    "damping_sweep": "whence.pipeline",
    "distil": "whence.apply.proxy_distil",
    "ensemble_table": "whence.pipeline",
    "fit_curvature": "whence.pipeline",
    "group_effects": "whence.pipeline",
    "guide": "whence.apply.guide",
    "inverse_preconditioner": "whence.curvature",
    "load_arrays": "whence.arrays",
    "load_diffusion": "whence.tasks",
    "load_records": "whence.load",
    "load_selection": "whence.apply.selection",
    "named_sources": "whence.apply.share_sources",
    "near_duplicates": "whence.apply.duplicates",
    "open_marks": "whence.apply.guide_marks",
    "open_run": "whence.unroll",
    "open_store": "whence.store",
    "prove": "whence.apply.proof",
    "proxy_agreement": "whence.apply.proxy",
    "proxy_table": "whence.apply.proxy",
    "query": "whence.pipeline",
    "record_lightning": "whence.unroll",
    "record_trainer": "whence.unroll",
    "sample_images": "whence.pipeline",
    "score_table": "whence.pipeline",
    "select": "whence.apply.select",
    "select_tokens": "whence.apply.guide_select",
    "self_influence": "whence.pipeline",
    "shares": "whence.apply.shares",
    "smoothness": "whence.pipeline",
    "spool": "whence.pipeline",
    "stream_records": "whence.shards",
    "study": "whence.apply.study_sets",
    "suppress_in_trainer": "whence.apply.guide_loss",
    "suppress_marked": "whence.apply.guide_loss",
    "value_table": "whence.apply.values",
    "verify_shares": "whence.apply.share_verify",
    "why": "whence.apply.why",
    "write_clusters": "whence.apply.clusters_page",
    "write_shares": "whence.apply.share_record",
}

__all__ = [  # noqa: PLE0604
    "EXACT_METHODS",
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
    "SolveConfig",
    "Store",
    "Study",
    "UnrollConfig",
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
    from whence.apply.clusters import Clusters, clusters
    from whence.apply.clusters_page import write_clusters
    from whence.apply.duplicates import near_duplicates
    from whence.apply.guide import guide
    from whence.apply.guide_loss import suppress_in_trainer, suppress_marked
    from whence.apply.guide_marks import Marks, open_marks
    from whence.apply.guide_scores import contrast_scores
    from whence.apply.guide_select import GuideConfig, select_tokens
    from whence.apply.proof import Proof, prove
    from whence.apply.proxy import proxy_agreement, proxy_table
    from whence.apply.proxy_distil import DistilConfig, Distilled, distil
    from whence.apply.select import select
    from whence.apply.selection import Selection, load_selection
    from whence.apply.share_record import write_shares
    from whence.apply.share_sources import named_sources
    from whence.apply.share_verify import ShareCheck, verify_shares
    from whence.apply.shares import ShareLine, Shares, shares
    from whence.apply.study_result import Study
    from whence.apply.study_sets import study
    from whence.apply.values import value_table
    from whence.apply.why import why
    from whence.arrays import load_arrays
    from whence.config import BuildConfig
    from whence.curvature import inverse_preconditioner
    from whence.distributed import Ranks
    from whence.errors import WhenceError
    from whence.load import load_records
    from whence.methods import EXACT_METHODS, METHODS
    from whence.pipeline import (
        GradientLog,
        SolveConfig,
        UnrollConfig,
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
    from whence.records import Recipe, ScoreTable
    from whence.report import DocumentParts, Hit, Hits, Why
    from whence.score import Ensemble, Workers
    from whence.serve import Client, ServeConfig
    from whence.shards import stream_records
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
    from whence.unroll import Recorder, Run, Smoothness, open_run, record_lightning, record_trainer


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
