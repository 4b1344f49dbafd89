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
    "Client": "whence.serve",
    "Custom": "whence.tasks",
    "EXACT_METHODS": "whence.methods",
    "Ensemble": "whence.score",
    "Hit": "whence.report",
    "Hits": "whence.report",
    "METHODS": "whence.methods",
    "Recipe": "whence.records",
    "Recorder": "whence.unroll",
    "Regression": "whence.tasks",
    "Run": "whence.unroll",
    "ScoreTable": "whence.records",
    "ServeConfig": "whence.serve",
    "SolveConfig": "whence.pipeline",
    "Store": "whence.store",
    "WhenceError": "whence.errors",
    "UnrollConfig": "whence.pipeline",
    "attribute": "whence.pipeline",
    "build": "whence.pipeline",
    "damping_sweep": "whence.pipeline",
    "ensemble_table": "whence.pipeline",
    "inverse_preconditioner": "whence.curvature",
    "load_records": "whence.load",
    "open_run": "whence.unroll",
    "open_store": "whence.store",
    "query": "whence.pipeline",
    "record_trainer": "whence.unroll",
    "score_table": "whence.pipeline",
    "self_influence": "whence.pipeline",
}

__all__ = [  # noqa: PLE0604
    "EXACT_METHODS",
    "METHODS",
    "AbstractTask",
    "BuildConfig",
    "CausalLM",
    "Classification",
    "Client",
    "Custom",
    "Ensemble",
    "Hit",
    "Hits",
    "Recipe",
    "Recorder",
    "Regression",
    "Run",
    "ScoreTable",
    "ServeConfig",
    "SolveConfig",
    "Store",
    "UnrollConfig",
    "WhenceError",
    "attribute",
    "build",
    "damping_sweep",
    "ensemble_table",
    "inverse_preconditioner",
    "load_records",
    "open_run",
    "open_store",
    "query",
    "record_trainer",
    "score_table",
    "self_influence",
]

if TYPE_CHECKING:
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
    from whence.serve import Client, ServeConfig
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
