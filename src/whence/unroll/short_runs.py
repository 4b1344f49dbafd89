"""Short runs beside a recorded one: further models of the same training, for a fraction of it.

Each begins between the weights that the run ended with and others like those it began with (Ash and Adams 2020, "shrink and perturb"), and
takes every so many-th step of the run: its batches, learning rates and optimizer.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from whence.capture import with_weights
from whence.errors import BadInput, Unsupported
from whence.internals import BATCH_NORMS
from whence.progress import Meter
from whence.unroll.replay import Replay, State
from whence.unroll.run import Run

__all__ = ["FINAL_SHARE", "ShortRun", "clipped_to", "short_run", "steps_of"]

FINAL_SHARE = 0.5
"""Share of the final weights in those that a short run begins with."""

# Of the run's steps one in so many, but not fewer steps than that in all: on a table 33 steps made worse scores than the run's own weights.
_STRIDE, _FEWEST = 10, 50
# Of the last steps of a short run, whose losses are compared.
_COMPARED = 4


@dataclass(frozen=True)
class ShortRun:
    """What a short run ended with.

    Args:
        weights: By parameter.
        steps: That it took.
        loss: Mean over its last batches of the loss that a step lowers, at these weights.
        loss_of_run: The same at the weights that the recorded run ended with.
    """

    weights: dict[str, Tensor]
    steps: int
    loss: float
    loss_of_run: float


def steps_of(run: Run, number: int) -> list[int]:
    """Steps of a run that a short run takes: one in ten of each stage, or one in fewer for 50 in all; each short run begins at another one.

    Args:
        run: The run.
        number: Of the short run, from 0.
    """
    stride = max(1, min(_STRIDE, run.steps // _FEWEST))
    return [step for start, stop in run.stages for step in range(min(start + number % stride, stop - 1), stop, stride)]


def short_run(replay: Replay, number: int, progress: Meter) -> ShortRun:
    """Train a further model.

    Args:
        replay: The recorded run; where it was clipped to one norm, with its `limit`.
        number: Of the short run, from 0; what is drawn depends on it alone.
        progress: Advanced once per step.

    Returns:
        Its weights.

    Raises:
        Unsupported: If the run averages its weights, or the model has statistics of batches.
        BadInput: If the short run knows less than the run did at its beginning, as it does where that began with pretrained weights.
    """
    run, steps = replay.run, steps_of(replay.run, number)
    _check(replay)
    first, last = replay.load(run.checkpoints[0]), run.values(run.checkpoints[-1], "gradients")
    state = State({**first.values, "weights": _between(first.values["weights"], last, number)}, dict.fromkeys(first.counts, 0))
    starts = {start for start, _ in run.stages}
    stage = run.stages[0][0]
    with replay.prepared_model():
        for step in steps:
            begun = max(start for start in starts if start <= step)
            if begun != stage:
                stage, state = begun, _with_new_optimizer(replay, state, begun)
            state = replay.advance(state, replay.gradients(state, step), step)
            progress.advance()
        weights = state.values["weights"]
        final = {name: last[name].to(value) for name, value in weights.items()}
        losses = [
            sum(_loss(replay, values, step) for step in steps[-_COMPARED:]) / len(steps[-_COMPARED:])
            for values in (weights, final, first.values["weights"])
        ]
    if not losses[0] < losses[2]:
        raise BadInput(
            found=f"a short run of {len(steps):,} steps that ends with a loss of {losses[0]:.4g}, where the recorded run began with "
            f"{losses[2]:.4g}",
            needed="a run from random weights, long enough that a tenth of its steps trains a model",
            do="leave members out: what pretrained weights know, a short run cannot learn",
        )
    return ShortRun(weights, len(steps), losses[0], losses[1])


def clipped_to(replay: Replay) -> float | None:
    """The norm that a run's gradients were cut to, by a step that was cut right after a checkpoint; None if there is none.

    Args:
        replay: The run.
    """
    run = replay.run
    with replay.prepared_model():
        for step in run.checkpoints[:-1]:
            if run.log.factors[step] < 1:
                gradients = replay.gradients(replay.load(step), step)
                norm = torch.stack([gradient.double().square().sum() for gradient in gradients.values()]).sum().sqrt()
                return run.log.factors[step] * (float(norm) + 1e-6)
    return None


def _check(replay: Replay) -> None:
    """Refuse what cannot be trained again by the record of another run's steps.

    Raises:
        Unsupported: If it cannot.
    """
    run = replay.run
    if any(group["rule"].is_averaged for group in run.groups(0)):
        raise Unsupported(
            found="short runs of a Schedule-Free optimizer, whose average depends on all steps before",
            needed="an optimizer that keeps no average of the weights",
            do="leave members out",
        )
    if any(isinstance(module, BATCH_NORMS) for module in replay.task.model.modules()):
        raise Unsupported(
            found="a model with statistics of batches, which short runs would not learn",
            needed="a model whose loss is the same in training and in evaluation",
            do="leave members out",
        )


def _between(first: Mapping[str, Tensor], last: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
    """FINAL_SHARE of the final weights and the rest of the first ones, shuffled inside each parameter: as a new start would draw them."""
    generator = torch.Generator().manual_seed(number)
    mixed = {}
    for name, value in first.items():
        order = torch.randperm(value.numel(), generator=generator).to(value.device)
        mixed[name] = FINAL_SHARE * last[name].to(value) + (1 - FINAL_SHARE) * value.flatten()[order].view_as(value)
    return mixed


def _with_new_optimizer(replay: Replay, state: State, start: int) -> State:
    """The state as a stage begins: its own parameters, and nothing that the optimizer of the stage before kept."""
    loaded = replay.load(start)
    empty = {
        kind: {name: torch.zeros_like(value) for name, value in rows.items()}
        for kind, rows in loaded.values.items()
        if kind != "weights"
    }
    return State({**empty, "weights": state.values["weights"]}, dict.fromkeys(loaded.counts, 0))


def _loss(replay: Replay, weights: Mapping[str, Tensor], step: int) -> float:
    """What a step lowers, at other weights."""
    total: list[float] = []

    def add_up() -> None:
        total.extend(float((part.losses_B.double() * part.weights_B).sum()) for part in replay.parts(step))

    with torch.no_grad():
        with_weights(replay.task.model, weights, add_up)
    return sum(total)
