"""Methods and controls by name, as functions that score."""

import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

__all__ = ["scorer_of_method"]


def scorer_of_method(name: str, runtime: Any) -> Callable[..., Any]:
    """A method by name, as a function of task, train and queries.

    Args:
        name: Of a method, or of a control: random, loss, similarity, bm25.
        runtime: How it runs.

    Raises:
        BadInput: If the method needs a recorded run.
        UnknownOption: If there is no such method.
    """
    from whence.methods import METHODS
    from whence.pipeline import attribute, build, score_table
    from whence.score import bm25, loss_scores, random_scores, representation_similarity
    from whence.settings import BuildConfig, checked_settings

    draws = count()  # scores that mean nothing are others every time
    controls: dict[str, Callable[..., Any]] = {
        "random": lambda task, train, queries: random_scores(train, queries, seed=next(draws)),
        "loss": lambda task, train, queries: loss_scores(task, train, queries, quiet=True),
        "similarity": lambda task, train, queries: representation_similarity(task, train, queries, quiet=True),
        "bm25": lambda task, train, queries: bm25(train, queries),
    }
    if name in controls:
        return controls[name]
    if name not in METHODS:
        settings = checked_settings(name)
        return lambda task, train, queries: attribute(task, train, queries, method=settings, runtime=runtime)

    def stored(task: Any, train: Any, queries: Any) -> Any:
        with tempfile.TemporaryDirectory(prefix="whence-battery-") as folder:
            store = build(task, train, Path(folder) / "store", config=BuildConfig(method=name), runtime=runtime)
            return score_table(store, task, queries, runtime=runtime)

    return stored
