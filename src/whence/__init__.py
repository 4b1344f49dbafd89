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
    "EXACT_METHODS": "whence.methods",
    "Ensemble": "whence.score",
    "GuideConfig": "whence.apply",
    "Hit": "whence.report",
    "Hits": "whence.report",
    "METHODS": "whence.methods",
    "Marks": "whence.apply",
    "Recipe": "whence.records",
    "Recorder": "whence.unroll",
    "Regression": "whence.tasks",
    "Run": "whence.unroll",
    "ScoreTable": "whence.records",
    "SolveConfig": "whence.pipeline",
    "Store": "whence.store",
    "WhenceError": "whence.errors",
    "UnrollConfig": "whence.pipeline",
    "attribute": "whence.pipeline",
    "build": "whence.pipeline",
    "contrast_scores": "whence.apply",
    "damping_sweep": "whence.pipeline",
    "ensemble_table": "whence.pipeline",
    "guide": "whence.apply",
    "inverse_preconditioner": "whence.curvature",
    "load_records": "whence.load",
    "open_marks": "whence.apply",
    "open_run": "whence.unroll",
    "open_store": "whence.store",
    "query": "whence.pipeline",
    "record_trainer": "whence.unroll",
    "score_table": "whence.pipeline",
    "select_tokens": "whence.apply",
    "self_influence": "whence.pipeline",
    "suppress_in_trainer": "whence.apply",
    "suppress_marked": "whence.apply",
}

__all__ = [  # noqa: PLE0604
    "EXACT_METHODS",
    "METHODS",
    "AbstractTask",
    "BuildConfig",
    "CausalLM",
    "Classification",
    "Custom",
    "Ensemble",
    "GuideConfig",
    "Hit",
    "Hits",
    "Marks",
    "Recipe",
    "Recorder",
    "Regression",
    "Run",
    "ScoreTable",
    "SolveConfig",
    "Store",
    "UnrollConfig",
    "WhenceError",
    "attribute",
    "build",
    "contrast_scores",
    "damping_sweep",
    "ensemble_table",
    "guide",
    "inverse_preconditioner",
    "load_records",
    "open_marks",
    "open_run",
    "open_store",
    "query",
    "record_trainer",
    "score_table",
    "select_tokens",
    "self_influence",
    "suppress_in_trainer",
    "suppress_marked",
]

if TYPE_CHECKING:
    from whence.apply import (
        GuideConfig,
        Marks,
        contrast_scores,
        guide,
        open_marks,
        select_tokens,
        suppress_in_trainer,
        suppress_marked,
    )
    from whence.config import BuildConfig
    from whence.curvature import inverse_preconditioner
    from whence.errors import WhenceError
    from whence.load import load_records
    from whence.methods import EXACT_METHODS, METHODS
    from whence.pipeline import (
        SolveConfig,
        UnrollConfig,
        attribute,
        build,
        damping_sweep,
        ensemble_table,
        query,
        score_table,
        self_influence,
    )
    from whence.records import Recipe, ScoreTable
    from whence.report import Hit, Hits
    from whence.score import Ensemble
    from whence.store import Store, open_store
    from whence.tasks import AbstractTask, CausalLM, Classification, Custom, Regression
    from whence.unroll import Recorder, Run, open_run, record_trainer


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
