"""Training data attribution: which training examples does this behaviour come from?

>>> from whence.methods import METHODS
>>> "lorif" in METHODS
True
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "AbstractTask": "whence.tasks",
    "BuildConfig": "whence.config",
    "CausalLM": "whence.tasks",
    "Classification": "whence.tasks",
    "Custom": "whence.tasks",
    "DocumentParts": "whence.report",
    "EXACT_METHODS": "whence.methods",
    "Ensemble": "whence.score",
    "GradientLog": "whence.pipeline",
    "Hit": "whence.report",
    "Hits": "whence.report",
    "METHODS": "whence.methods",
    "Ranks": "whence.distributed",
    "Recipe": "whence.records",
    "Recorder": "whence.unroll",
    "Regression": "whence.tasks",
    "Run": "whence.unroll",
    "ScoreTable": "whence.records",
    "ShareCheck": "whence.apply.share_verify",
    "ShareLine": "whence.apply.shares",
    "Shares": "whence.apply.shares",
    "SolveConfig": "whence.pipeline",
    "Store": "whence.store",
    "UnrollConfig": "whence.pipeline",
    "WhenceError": "whence.errors",
    "Why": "whence.report",
    "attribute": "whence.pipeline",
    "build": "whence.pipeline",
    "damping_sweep": "whence.pipeline",
    "ensemble_table": "whence.pipeline",
    "fit_curvature": "whence.pipeline",
    "inverse_preconditioner": "whence.curvature",
    "load_records": "whence.load",
    "named_sources": "whence.apply.share_sources",
    "open_run": "whence.unroll",
    "open_store": "whence.store",
    "query": "whence.pipeline",
    "record_lightning": "whence.unroll",
    "record_trainer": "whence.unroll",
    "score_table": "whence.pipeline",
    "self_influence": "whence.pipeline",
    "shares": "whence.apply.shares",
    "spool": "whence.pipeline",
    "stream_records": "whence.shards",
    "verify_shares": "whence.apply.share_verify",
    "why": "whence.apply.why",
    "write_shares": "whence.apply.share_record",
}

__all__ = [  # noqa: PLE0604
    "EXACT_METHODS",
    "METHODS",
    "AbstractTask",
    "BuildConfig",
    "CausalLM",
    "Classification",
    "Custom",
    "DocumentParts",
    "Ensemble",
    "GradientLog",
    "Hit",
    "Hits",
    "Ranks",
    "Recipe",
    "Recorder",
    "Regression",
    "Run",
    "ScoreTable",
    "ShareCheck",
    "ShareLine",
    "Shares",
    "SolveConfig",
    "Store",
    "UnrollConfig",
    "WhenceError",
    "Why",
    "attribute",
    "build",
    "damping_sweep",
    "ensemble_table",
    "fit_curvature",
    "inverse_preconditioner",
    "load_records",
    "named_sources",
    "open_run",
    "open_store",
    "query",
    "record_lightning",
    "record_trainer",
    "score_table",
    "self_influence",
    "shares",
    "spool",
    "stream_records",
    "verify_shares",
    "why",
    "write_shares",
]

if TYPE_CHECKING:
    from whence.apply.share_record import write_shares
    from whence.apply.share_sources import named_sources
    from whence.apply.share_verify import ShareCheck, verify_shares
    from whence.apply.shares import ShareLine, Shares, shares
    from whence.apply.why import why
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
        query,
        score_table,
        self_influence,
        spool,
    )
    from whence.records import Recipe, ScoreTable
    from whence.report import DocumentParts, Hit, Hits, Why
    from whence.score import Ensemble
    from whence.shards import stream_records
    from whence.store import Store, open_store
    from whence.tasks import AbstractTask, CausalLM, Classification, Custom, Regression
    from whence.unroll import Recorder, Run, open_run, record_lightning, record_trainer


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used: importing the package costs nothing, not even torch.

    Raises:
        AttributeError: If there is no such name.
    """
    if name not in _HOMES:
        raise AttributeError(f"module 'whence' has no attribute {name!r}; it has: {', '.join(sorted(_HOMES))}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*_HOMES, "__version__"])
