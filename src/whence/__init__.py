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
    "BuildConfig": "whence.settings",
    "CausalLM": "whence.tasks",
    "Classification": "whence.tasks",
    "Custom": "whence.tasks",
    "Damping": "whence.settings",
    "Diffusion": "whence.tasks",
    "EKFAC": "whence.settings",
    "FitConfig": "whence.settings",
    "Hits": "whence.report",
    "MaskedLM": "whence.tasks",
    "Recipe": "whence.records",
    "Recorder": "whence.recording",
    "Regression": "whence.tasks",
    "Rerank": "whence.settings",
    "Runtime": "whence.settings",
    "ScoreTable": "whence.records",
    "Source": "whence.settings",
    "Store": "whence.store",
    "WhenceError": "whence.errors",
    "attribute": "whence.pipeline",
    "build": "whence.pipeline",
    "load_arrays": "whence.load",
    "load_records": "whence.load",
    "open_store": "whence.store",
    "query": "whence.pipeline",
    "score_table": "whence.pipeline",
    "self_influence": "whence.pipeline",
    "__version__": "whence._version",
}
# What else there is, one level down by use: `whence.shares.shares`, `whence.settings.PCG`.
_ROOMS = {
    "audit",
    "clusters",
    "curvature",
    "distributed",
    "evaluate",
    "guide",
    "load",
    "methods",
    "pipeline",
    "proxy",
    "records",
    "report",
    "runs",
    "score",
    "select",
    "serve",
    "settings",
    "shares",
    "store",
    "study",
    "tasks",
    "why",
    "workers",
}

__all__ = [  # noqa: PLE0604
    "BuildConfig",
    "CausalLM",
    "Classification",
    "Custom",
    "Damping",
    "Diffusion",
    "EKFAC",
    "FitConfig",
    "Hits",
    "MaskedLM",
    "Recipe",
    "Recorder",
    "Regression",
    "Rerank",
    "Runtime",
    "ScoreTable",
    "Source",
    "Store",
    "WhenceError",
    "attribute",
    "build",
    "load_arrays",
    "load_records",
    "open_store",
    "query",
    "score_table",
    "self_influence",
]

if TYPE_CHECKING:
    from whence._version import __version__ as __version__
    from whence.errors import WhenceError
    from whence.load import load_arrays, load_records
    from whence.pipeline import attribute, build, query, score_table, self_influence
    from whence.recording import Recorder
    from whence.records import Recipe, ScoreTable
    from whence.report import Hits
    from whence.settings import EKFAC, BuildConfig, Damping, FitConfig, Rerank, Runtime, Source
    from whence.store import Store, open_store
    from whence.tasks import CausalLM, Classification, Custom, Diffusion, MaskedLM, Regression

    from . import (  # noqa: F401, TID252
        audit,
        clusters,
        curvature,
        distributed,
        evaluate,
        guide,
        load,
        methods,
        pipeline,
        proxy,
        records,
        report,
        runs,
        score,
        select,
        serve,
        settings,
        shares,
        store,
        study,
        tasks,
        why,
        workers,
    )


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used: importing the package costs nothing, not even torch.

    Raises:
        AttributeError: If there is no such name, saying where it lives if it is one level down.
    """
    if name not in _HOMES and name not in _ROOMS:
        raise AttributeError(f"module 'whence' has no attribute {name!r}; {_where(name)}")
    import_module("whence._distribution").warn_if_mixed(__path__[0])
    return import_module(f"whence.{name}") if name in _ROOMS else getattr(import_module(_HOMES[name]), name)


def _where(name: str) -> str:
    for room in () if name.startswith("_") else sorted(_ROOMS):
        try:
            names = import_module(f"whence.{room}").__all__
        except ImportError:  # an extra that is not installed
            continue
        if name in names:
            return f"it is whence.{room}.{name}"
    return f"it has: {', '.join([*sorted(_HOMES), *sorted(_ROOMS)])}"


def __dir__() -> list[str]:
    return sorted({*_HOMES, *_ROOMS})
