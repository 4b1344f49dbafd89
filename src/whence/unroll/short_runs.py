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

__all__ = ["FINAL_SHARE", "Clipping", "ShortRun", "clipping_of", "short_run", "steps_of"]

FINAL_SHARE = 0.5
"""Share of the final weights in those that a short run begins with."""

# Of the run's steps one in so many, but not fewer steps than that in all: on a table 33 steps made worse scores than the run's own weights.
_STRIDE, _FEWEST = 10, 50
# Of the last steps of a short run, whose losses are compared.
_COMPARED = 4


# Norms that clipping cut to are the same up to what float32 rounds in a gradient's.
_NORMS_AGREE = 0.01


@dataclass(frozen=True)
class Clipping:
    """What norms a run's gradients were cut to, as far as checkpoints tell.

    Args:
        norms: By the first step of a stage, the norms of its steps that were cut right after a checkpoint; stages without such are not in it.
        untold: First steps of stages that cut gradients, of which no such step tells the norm.
    """

    norms: Mapping[int, tuple[float, ...]]
    untold: tuple[int, ...] = ()

    def norm(self, stage: int) -> float | None:
        """That short runs cut to in a stage: the mean of those known; None where none is."""
        norms = self.norms.get(stage)
        return None if norms is None else sum(norms) / len(norms)

    def notes(self) -> list[str]:
        """What a reader of short runs should know of it."""
        notes = []
        if self.untold:
            stages = (
                f"the stages from steps {', '.join(map(str, self.untold))} on"
                if self.norms or len(self.untold) > 1
                else "the run"
            )
            notes.append(
                f"short runs cut gradients by the factors of the recorded steps: what norm {stages} cut them to is not known"
            )
        for norms in self.norms.values():
            if max(norms) - min(norms) > _NORMS_AGREE * max(norms):
                notes.append(
                    f"gradients of the run seem to have been cut to norms from {min(norms):.3g} to {max(norms):.3g} in a stage; short runs "
                    f"cut to the mean, {sum(norms) / len(norms):.3g}"
                )
        return notes


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


def short_run(replay: Replay, number: int, clipping: Clipping, progress: Meter) -> ShortRun:
    """Train a further model, with the optimizer's state emptied where the recorded run began a stage with a new optimizer, and only there.

    Args:
        replay: The recorded run.
        number: Of the short run, from 0; what is drawn depends on it alone.
        clipping: What gradients are cut to.
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
    starts = [start for start, _ in run.stages]
    stage = starts[0]
    replay.limit = clipping.norm(stage)
    replay.fresh.update(start for start in starts if run.has_new_optimizer(start) is not False)
    with replay.prepared_model():
        for step in steps:
            begun = max(start for start in starts if start <= step)
            if begun != stage:
                stage, state, replay.limit = begun, replay.renewed(state, begun), clipping.norm(begun)
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


def clipping_of(replay: Replay) -> Clipping:
    """The norms that a run's gradients were cut to, by steps that were cut right after a checkpoint.

    Args:
        replay: The run.
    """
    run, norms, untold = replay.run, {}, []
    with replay.prepared_model():
        for start, stop in run.stages:
            cut = [step for step in run.checkpoints if start <= step < stop and run.log.factors[step] < 1]
            if cut:
                norms[start] = tuple(run.log.factors[step] * (_norm(replay, step) + 1e-6) for step in cut)
            elif min(run.log.factors[start:stop]) < 1:
                untold.append(start)
    return Clipping(norms, tuple(untold))


def _norm(replay: Replay, step: int) -> float:
    """Of the gradient of the step after a checkpoint."""
    gradients = replay.gradients(replay.load(step), step)
    return float(torch.stack([gradient.double().square().sum() for gradient in gradients.values()]).sum().sqrt())


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


def _loss(replay: Replay, weights: Mapping[str, Tensor], step: int) -> float:
    """What a step lowers, at other weights."""
    total: list[float] = []

    def add_up() -> None:
        total.extend(float((part.losses_B.double() * part.weights_B).sum()) for part in replay.parts(step))

    with torch.no_grad():
        with_weights(replay.task.model, weights, add_up)
    return sum(total)
