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
    "Diffusion": "whence.tasks",
    "EXACT_METHODS": "whence.methods",
    "Ensemble": "whence.score",
    "GradientLog": "whence.pipeline",
    "Hit": "whence.report",
    "Hits": "whence.report",
    "METHODS": "whence.methods",
    "NoiseSchedule": "whence.tasks",
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
    "damping_sweep": "whence.pipeline",
    "ensemble_table": "whence.pipeline",
    "inverse_preconditioner": "whence.curvature",
    "load_diffusion": "whence.tasks",
    "load_records": "whence.load",
    "open_run": "whence.unroll",
    "open_store": "whence.store",
    "query": "whence.pipeline",
    "record_lightning": "whence.unroll",
    "record_trainer": "whence.unroll",
    "sample_images": "whence.pipeline",
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
    "Custom",
    "Diffusion",
    "Ensemble",
    "GradientLog",
    "Hit",
    "Hits",
    "NoiseSchedule",
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
    "damping_sweep",
    "ensemble_table",
    "inverse_preconditioner",
    "load_diffusion",
    "load_records",
    "open_run",
    "open_store",
    "query",
    "record_lightning",
    "record_trainer",
    "sample_images",
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
        GradientLog,
        SolveConfig,
        UnrollConfig,
        attribute,
        build,
        damping_sweep,
        ensemble_table,
        query,
        sample_images,
        score_table,
        self_influence,
    )
    from whence.records import Recipe, ScoreTable
    from whence.report import Hit, Hits
    from whence.score import Ensemble
    from whence.store import Store, open_store
    from whence.tasks import (
        AbstractTask,
        CausalLM,
        Classification,
        Custom,
        Diffusion,
        NoiseSchedule,
        Regression,
        load_diffusion,
    )
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
