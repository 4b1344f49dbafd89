"""Whether a run lowered the loss that a task has, for methods that do not make the run again.

Axes: B examples of a step.
"""

import math
import statistics
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from whence.capture import frozen
from whence.data import Dataset, batches
from whence.errors import BadInput, StoreMismatch, Unsupported
from whence.internals import BATCH_NORMS
from whence.progress import meter
from whence.tasks import AbstractTask
from whence.unroll.replay import Replay
from whence.unroll.run import Run
from whence.unroll.sweep import dropout_of, interval_difference

__all__ = ["check_loss"]

# Share of a loss that arithmetic of half precision may move, and of the way between two checkpoints.
_LOSS_TOLERANCE, _WAY_TOLERANCE = 0.02, 0.1
# What single precision and another order of sums explain.
_ROUNDING = 5e-4
# With dropout a loss is one of many: draws that say how far these are apart, and standard deviations that one may be off.
_DRAWS, _DEVIATIONS = 8, 5.0
# A run that does not say its losses is made again between two checkpoints, if that takes so many passes over the data at most.
_MOST_PASSES = 2.0
_DO = (
    "pass a task whose loss is what was trained (label smoothing, weights of classes, another reduction; divided_by of batch() says what it "
    "is divided by), or, where examples were augmented, any_loss=True (--any-loss) in source, tracin or less"
)


def check_loss(task: AbstractTask, train: Dataset, run: Run, *, max_positions: int, quiet: bool, labels: str = "") -> list[str]:
    """Hold a task's loss against what a run lowered.

    Where the run says its losses, at its checkpoints; otherwise by making it again between two checkpoints, if these are near to each other.

    Args:
        task: The task, with the weights that the run ended with.
        train: Every example that the run met.
        run: The run.
        max_positions: Positions computed on at once.
        quiet: No progress on stderr.
        labels: How labels of examples differ from the run's, where that is known, for the error.

    Returns:
        What a reader should know of what was not compared.

    Raises:
        StoreMismatch: If they are different losses.
    """
    if not any(isinstance(module, BATCH_NORMS) and module.track_running_stats for module in task.model.modules()):
        if run.losses:
            return _check_losses(task, train, run, max_positions, labels)
        if _check_way(task, train, run, max_positions, quiet):
            return []
    return [
        "whether the task's loss is the one that the run lowered was not compared: the run does not say its losses, and cannot be made again"
    ]


def _check_losses(task: AbstractTask, train: Dataset, run: Run, max_positions: int, labels: str) -> list[str]:
    """Refuse another loss; a difference that is small, but more than rounding of single precision, is told.

    Raises:
        StoreMismatch: If it is another.
    """
    row_of = {name: row for row, name in enumerate(train.ids)}
    dropout, pairs = dropout_of(task.model), []
    for step, recorded in sorted(run.losses.items()):
        members = zip(run.log.members[step], run.log.weights[step], strict=True)
        weight_of = [(train.examples[row_of[run.ids[member]]], weight) for member, weight in members]
        with run.weights(task.model, [step]):
            if dropout:
                with _dropping(task.model):
                    drawn = [_loss(task, weight_of, max_positions, seed) for seed in range(_DRAWS)]
            else:
                with frozen(task.model):
                    drawn = [_loss(task, weight_of, max_positions, 0)]
        pairs.append((step, recorded, statistics.fmean(drawn), statistics.variance(drawn) if len(drawn) > 1 else 0.0))
    # Each by itself, and their sum, in which what chance does is less.
    sums = (pairs[0][0], *(math.fsum(column) for column in list(zip(*pairs, strict=True))[1:]))
    for step, recorded, mean, variance in [*pairs, sums]:
        allowed = _LOSS_TOLERANCE * max(abs(mean), abs(recorded)) + _DEVIATIONS * math.sqrt(variance * (1 + 1 / _DRAWS)) + 1e-6
        if not abs(mean - recorded) <= allowed:
            raise StoreMismatch(
                found=f"a run in {run.folder} that lowered a loss of {recorded:.5g} at step {step + 1:,}, and a task that gives {mean:.5g}"
                + (f"; {labels}" if labels else ""),
                needed="the loss that was trained with, since scores and damping are in its units",
                do=_DO,
            )
    apart = max(abs(mean - recorded) / max(abs(mean), abs(recorded), 1e-6) for _, recorded, mean, _ in pairs)
    if dropout or apart <= _ROUNDING:
        return []
    return [
        f"the loss that the run lowered differs from the task's by {apart:.2%}: half precision explains as much, and so do labels that the "
        "run's collator hid, such as the end of a text where it is also the padding"
    ]


def _loss(task: AbstractTask, weight_of: list, max_positions: int, seed: int) -> float:
    """The loss of a step's examples, weighted as it was."""
    total = []
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        for batch in batches([example.length for example, _ in weight_of], max_positions=max_positions):
            losses_B = task.loss(task.model, task.collate([weight_of[row][0] for row in batch])).double().tolist()
            total += [weight_of[row][1] * loss for row, loss in zip(batch, losses_B, strict=True)]
    return math.fsum(total)


@contextmanager
def _dropping(model: nn.Module) -> Iterator[None]:
    """The model in training mode for a while.

    Yields:
        Nothing.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = True
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _check_way(task: AbstractTask, train: Dataset, run: Run, max_positions: int, quiet: bool) -> bool:
    """Make the run again between two checkpoints: whether that could be done.

    Raises:
        StoreMismatch: If it ends elsewhere.
    """
    spans = list(zip(run.checkpoints, run.checkpoints[1:], strict=False))
    cost, (start, stop) = min((sum(len(run.log.members[step]) for step in range(*span)), span) for span in spans)
    if dropout_of(task.model) or cost > _MOST_PASSES * len(train):
        return False
    try:
        replay = Replay(task, train, run, max_positions=max_positions)
        with replay.prepared_model(), meter("the run's loss", stop - start, quiet=quiet) as progress:
            apart = interval_difference(replay, start, stop, progress)
    except (BadInput, Unsupported):  # parameters that are left out, an optimizer without a formula, half precision
        return False
    if not apart <= _WAY_TOLERANCE:
        raise StoreMismatch(
            found=f"a run in {run.folder} whose steps {start:,} to {stop:,}, made again with the task's loss, end {apart:.2g} of their way "
            "from the recorded weights or moments",
            needed="the loss that was trained with, since scores and damping are in its units",
            do=_DO,
        )
    return True
