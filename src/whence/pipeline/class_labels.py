"""Labels of a classifier's examples, and what the model makes of each: where the two disagree, somebody should look.

Axes: B examples of a batch, C classes.
"""

from collections.abc import Sequence

import torch

from whence.capture import frozen
from whence.data import Example, batches
from whence.report import ClassLabel
from whence.score import Batching
from whence.tasks import AbstractTask, Classification

__all__ = ["class_labels", "given_labels"]


def class_labels(
    task: AbstractTask, examples: Sequence[Example], *, batching: Batching, autocast: torch.dtype | None = None
) -> list[ClassLabel]:
    """The label of every example and the class that the model sees in it: a pass forward.

    Args:
        task: A classifier; of other tasks there are no labels.
        examples: Training examples or queries.
        batching: How examples are taken together; as often as in `whence.score.gradient_rows`, for models that are split over processes.
        autocast: The type of the model's arithmetic.

    Returns:
        One per example; empty for a task that is no classifier.
    """
    if not isinstance(task, Classification):
        return []
    predicted = [""] * len(examples)
    planned = list(
        batches([example.length for example in examples], max_positions=batching.positions, max_examples=batching.examples)
    )
    repeated = [planned[-1]] * (batching.calls - len(planned))
    with frozen(task.model), torch.no_grad(), torch.autocast(task.device.type, autocast, enabled=autocast is not None):
        for indices in [*planned, *repeated]:
            logits_BC = task.logits(task.model, task.collate([examples[index] for index in indices]))
            for index, name in zip(indices, task.seen_labels(logits_BC), strict=True):
                predicted[index] = name
    return [
        ClassLabel(task.label_name(example.fields["target"]), name) for example, name in zip(examples, predicted, strict=True)
    ]


def given_labels(task: AbstractTask, examples: Sequence[Example]) -> list[ClassLabel]:
    """The label of every example, without asking the model; empty for a task that is no classifier."""
    if not isinstance(task, Classification):
        return []
    return [ClassLabel(task.label_name(example.fields["target"])) for example in examples]
