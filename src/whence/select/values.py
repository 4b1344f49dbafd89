"""What each training example is worth, by every criterion that a selection can use."""

from collections.abc import Iterable
from typing import Any

from whence.data import Dataset
from whence.errors import BadInput, UnknownOption
from whence.pipeline import attribute, self_influence
from whence.records import ScoreTable
from whence.score import knn_shapley, loss_scores, random_scores
from whence.select.selection import CRITERIA
from whence.settings import By, ExactSettings, Runtime, records_only
from whence.tasks import AbstractTask

__all__ = ["value_table"]


@records_only(method=ExactSettings, runtime=Runtime)
def value_table(
    task: AbstractTask | None,
    train: Dataset | Iterable[Any],
    by: By = "influence",
    *,
    validation: Dataset | Iterable[Any] | None = None,
    method: str | ExactSettings = "ekfac",
    seed: int = 0,
    runtime: Runtime = Runtime(),
) -> ScoreTable:
    """A table of values for `select`.

    Args:
        task: Model, loss and measurement; random values need none, if `train` is a dataset.
        train: Training examples.
        by: "influence" on the validation set, "self-influence", "loss", "knn-shapley" for the labels of the validation set, or "random".
        validation: Examples that the model should get right, for "influence" and "knn-shapley". Not those that the outcome is judged by.
        method: As in `whence.attribute`, for both kinds of influence.
        seed: Of random values.
        runtime: How the job runs.

    Returns:
        One row per validation example for influence and Shapley values, one row otherwise.

    Raises:
        BadInput: If something is missing that the criterion needs, or there that it has no use for.
        UnknownOption: If there is no such criterion.
    """
    if by not in CRITERIA:
        raise UnknownOption(found=f"by={by!r}", needed=f"one of: {', '.join(CRITERIA)}", do="pick one")
    if (by in ("influence", "knn-shapley")) != (validation is not None):
        raise BadInput(
            found=f"by={by!r} {'without' if validation is None else 'with'} a validation set",
            needed="one for influence and knn-shapley, and only for these",
            do="pass validation" if validation is None else "leave validation out",
        )
    unused = [*(["method"] if method != "ekfac" else []), *runtime.chosen]
    if not by.endswith("influence") and unused:
        raise BadInput(found=f"{unused[0]} for by={by!r}", needed="it for influence only", do=f"leave {unused[0]} out")
    if by == "random" and isinstance(train, Dataset):
        return random_scores(train, _first_example(train), seed=seed)
    if task is None:
        raise BadInput(found=f"by={by!r} without a task", needed="the model", do="pass the task")
    train = train if isinstance(train, Dataset) else task.prepare(train)
    if by == "influence":
        assert validation is not None
        return attribute(task, train, validation, method=method, runtime=runtime)
    if by == "knn-shapley":
        assert validation is not None
        asked_about = validation if isinstance(validation, Dataset) else task.prepare(validation)
        return knn_shapley(task, train, asked_about, quiet=runtime.quiet)
    if by == "self-influence":
        return self_influence(task, train, method=method, runtime=runtime)
    if by == "loss":
        return loss_scores(task, train, _first_example(train), quiet=runtime.quiet)
    return random_scores(train, _first_example(train), seed=seed)


def _first_example(train: Dataset) -> Dataset:
    """These tables ignore what the query is; one row is enough."""
    return train.spread(1)
