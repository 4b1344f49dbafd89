"""What each training example is worth, by every criterion that a selection can use."""

from collections.abc import Iterable
from typing import Any

from whence.data import Dataset
from whence.errors import BadInput, UnknownOption
from whence.pipeline import attribute, self_influence
from whence.records import ScoreTable
from whence.score import loss_scores, random_scores
from whence.select.selection import CRITERIA
from whence.settings import By, takes_option
from whence.tasks import AbstractTask

__all__ = ["value_table"]


def value_table(
    task: AbstractTask | None,
    train: Dataset | Iterable[Any],
    by: By = "influence",
    *,
    validation: Dataset | Iterable[Any] | None = None,
    method: str = "ekfac",
    seed: int = 0,
    quiet: bool = False,
    **options: Any,
) -> ScoreTable:
    """A table of values for `select`.

    Args:
        task: Model, loss and measurement; random values need none, if `train` is a dataset.
        train: Training examples.
        by: "influence" on the validation set, "self-influence", "loss" or "random".
        validation: Examples that the model should get right, for "influence". Not those that the outcome is judged by.
        method: One of `whence.methods.EXACT_METHODS`, for both kinds of influence.
        seed: Of random values.
        quiet: No progress on stderr.
        **options: For `attribute` or `self_influence`.

    Returns:
        One row per validation example for influence, one row otherwise.

    Raises:
        BadInput: If something is missing that the criterion needs, or there that it has no use for.
        UnknownOption: If there is no such criterion.
    """
    if by not in CRITERIA:
        raise UnknownOption(found=f"by={by!r}", needed=f"one of: {', '.join(CRITERIA)}", do="pick one")
    if (by == "influence") != (validation is not None):
        raise BadInput(
            found=f"by={by!r} {'without' if validation is None else 'with'} a validation set",
            needed="one for influence, and only for that",
            do="pass validation" if validation is None else "leave validation out",
        )
    if not by.endswith("influence") and (options or method != "ekfac"):
        name = next(iter(options), "method")
        raise BadInput(found=f"{name} for by={by!r}", needed="it for influence only", do=f"leave {name} out")
    if by == "random" and isinstance(train, Dataset):
        return random_scores(train, _first_example(train), seed=seed)
    if task is None:
        raise BadInput(found=f"by={by!r} without a task", needed="the model", do="pass the task")
    train = train if isinstance(train, Dataset) else task.prepare(train)
    drawn = {"seed": seed} if isinstance(method, str) and takes_option(method, "seed") else {}
    if by == "influence":
        assert validation is not None
        return attribute(task, train, validation, method=method, quiet=quiet, **drawn, **options)
    if by == "self-influence":
        return self_influence(task, train, method=method, quiet=quiet, **drawn, **options)
    if by == "loss":
        return loss_scores(task, train, _first_example(train), quiet=quiet)
    return random_scores(train, _first_example(train), seed=seed)


def _first_example(train: Dataset) -> Dataset:
    """These tables ignore what the query is; one row is enough."""
    return train.spread(1)
