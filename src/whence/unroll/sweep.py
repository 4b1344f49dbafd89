"""Through a whole run: made again and held against its checkpoints, then differentiated backwards or forwards.

Axes: R rows (numbers wanted, or groups of examples), N training examples.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from whence.capture import Plan
from whence.errors import StoreMismatch
from whence.internals import DROPOUTS
from whence.optimizers import mix_of, weights_averaged
from whence.progress import Meter
from whence.unroll.derivative import backward, check_second_derivatives, forward
from whence.unroll.outer_products import backward_by_outer_products
from whence.unroll.replay import Replay, State
from whence.unroll.update import Values

__all__ = ["Verified", "dropout_of", "interval_difference", "metagradients", "tangents", "verify"]

# Of the way that the weights went between two checkpoints. Sums in another order explain the one, nothing harmless the other.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-2}
_FACTORS_AGREE = 1e-4
# Share of the mean square of gradients below which the square of their mean is noise.
_NOISE = 1e-4
# Where transformers have dropout that is no module.
_RATES = ("attn_pdrop", "attention_dropout", "attention_probs_dropout_prob")


@dataclass(frozen=True)
class Verified:
    """How near a replay comes to the run.

    Args:
        difference: Largest difference at a checkpoint, as a share of the way from the one before.
        clipped: Steps whose gradients were cut.
        limit: What their norm was cut to; None if nothing was cut, or not to one norm.
    """

    difference: float
    clipped: int
    limit: float | None

    def __str__(self) -> str:
        clipping = ""
        if self.clipped:
            how = "differentiated" if self.limit is not None else "constants, since the cut is not that of one norm"
            clipping = f"; {self.clipped:,} clipped steps, their factors {how}"
        return f"replayed to within {self.difference:.1g} of the recorded weights' way{clipping}"


def verify(replay: Replay, progress: Meter, *, is_twice: bool = True) -> Verified:
    """Make the run again between every two checkpoints and compare.

    Sees on the way where a stage began with a new optimizer, and what norm gradients were clipped to; the replay knows both afterwards.

    Args:
        replay: The run.
        progress: Advanced once per step.
        is_twice: Whether the loss has to have second derivatives.

    Returns:
        How near it comes.

    Raises:
        StoreMismatch: If it is not the run.
    """
    _check_buffers(replay)
    if is_twice:
        check_second_derivatives(replay)
    limits: list[float] = []
    worst = 0.0
    stages = {stage["start"] for stage in replay.run.record["stages"]}
    for start, stop in replay.intervals:
        state, norms = _interval(replay, start, stop, progress)
        difference, tolerance = _difference(replay, start, stop, state)
        # A new optimizer of the same kind leaves no other mark in the record.
        if start in stages and difference > tolerance:
            replay.fresh.add(start)
            state, norms = _interval(replay, start, stop, None)
            difference, tolerance = _difference(replay, start, stop, state)
        if not difference <= tolerance:
            raise StoreMismatch(
                found=f"a replay of the steps {start:,} to {stop:,} that ends {difference:.2g} of their way from the recorded weights",
                needed=f"the same run to within {tolerance:g}",
                do=_causes(replay.task.model, replay.run.record["stages"]),
            )
        worst = max(worst, difference)
        factors = replay.run.log.factors[start:stop]
        limits += [factor * (norm + 1e-6) for factor, norm in zip(factors, norms, strict=True) if factor < 1]
    is_one = bool(limits) and max(limits) - min(limits) <= _FACTORS_AGREE * max(limits)
    is_cut = all(factor <= 1 for factor in replay.run.log.factors)
    replay.limit = sum(limits) / len(limits) if is_one and is_cut else None
    return Verified(worst, len(limits), replay.limit)


def interval_difference(replay: Replay, start: int, stop: int, progress: Meter | None) -> float:
    """How far from the recorded checkpoint the run ends that is made again from the one before.

    Args:
        replay: The run.
        start: A checkpoint.
        stop: The next.
        progress: Advanced once per step.

    Returns:
        The distance as a share of the way of the weights, or of the mean of gradients that an adaptive optimizer keeps, which tells apart
        losses that differ by a factor; the larger one.
    """
    state, _ = _interval(replay, start, stop, progress)
    apart = max(_difference(replay, start, stop, state)[0], _means_apart(replay, stop, state))
    if apart > max(_TOLERANCE.values()) and start in {stage["start"] for stage in replay.run.record["stages"]}:
        replay.fresh.add(start)
        state, _ = _interval(replay, start, stop, None)
        apart = max(_difference(replay, start, stop, state)[0], _means_apart(replay, stop, state))
    return apart


def metagradients(
    replay: Replay, wanted: Mapping[str, Tensor], *, length: int, at_once: int, progress: Meter, plan: Plan | None = None
) -> Tensor:
    """The derivative of numbers at the end of a run by the weight of every training example's loss (arXiv 2504.16430).

    Args:
        replay: The run, verified.
        wanted: By parameter, the derivative of R numbers by the final weights, with R in front.
        length: Steps whose states are held at once, see `Replay.backwards`.
        at_once: Vectors taken through a graph together.
        progress: Advanced once per step.
        plan: Units of the model, for outer products of the examples' gradients in place of the Hessian (arXiv 2412.09538).

    Returns:
        Shape (R, N), float64, on the CPU; 0 for examples that the run never met. With a plan the replay knows afterwards how many times
        their first length the numbers carried back came to.
    """
    rows = len(next(iter(wanted.values())))
    scores_RN = torch.zeros(rows, len(replay.train), dtype=torch.float64)
    carried = _at_end(replay, wanted)
    for start, stop in reversed(replay.intervals):
        for step, state, gradients in replay.backwards(start, stop, length):
            if plan is None:
                carried = backward(replay, state, gradients, step, carried, scores_RN, at_once)
            else:
                carried = backward_by_outer_products(replay, plan, state, gradients, step, carried, scores_RN)
                replay.growth = max(replay.growth, _length(carried["weights"]) / max(_length(wanted), 1e-300))
            progress.advance()
    return scores_RN


def tangents(replay: Replay, groups_N: Tensor, count: int, *, at_once: int, progress: Meter) -> dict[str, Tensor]:
    """The derivative of the final weights by weights that groups of examples share, carried along with the run (arXiv 2605.18814).

    Args:
        replay: The run, verified.
        groups_N: Group of every training example, -1 for none.
        count: How many groups.
        at_once: Vectors taken through a graph together.
        progress: Advanced once per step.

    Returns:
        By parameter, with the groups in front.
    """
    carried: Values = {}
    for start, stop in replay.intervals:
        state = replay.load(start)
        if not carried:
            weights = state.values["weights"]
            carried = {"weights": {name: value.new_zeros(count, *value.shape) for name, value in weights.items()}}
        for step in range(start, stop):
            gradients = replay.gradients(state, step)
            carried = forward(replay, state, gradients, step, carried, groups_N, at_once)
            state = replay.advance(state, gradients, step)
            progress.advance()
    return _used(replay, carried)


def _length(rows: Mapping[str, Tensor]) -> float:
    return math.sqrt(sum(float(row.square().sum()) for row in rows.values()))


def _at_end(replay: Replay, wanted: Mapping[str, Tensor]) -> Values:
    """Derivatives by the weights that the model is used at, as those by what the last step made: an average is y / b + (1 - 1 / b) z."""
    groups = replay.update(replay.run.steps - 1).groups
    mixes = {name: mix_of(group) for name, group in groups.items() if group["rule"].is_averaged}
    rows: Values = {"weights": {name: row / mixes.get(name, 1.0) for name, row in wanted.items()}}
    if mixes:
        rows["z"] = {name: wanted[name] * (1 - 1 / mix) for name, mix in mixes.items()}
    return rows


def _used(replay: Replay, rows: Values) -> dict[str, Tensor]:
    """What the last step made, as the weights that the model is used at."""
    groups = replay.update(replay.run.steps - 1).groups
    weights = dict(rows["weights"])
    for name, group in groups.items():
        if group["rule"].is_averaged:
            weights[name] = weights_averaged(weights[name], rows["z"][name], group)
    return weights


def _interval(replay: Replay, start: int, stop: int, progress: Meter | None) -> tuple[State, list[float]]:
    """From one checkpoint to the next: where it ends, and the norms of the gradients on the way."""
    state, norms = replay.load(start), []
    for step in range(start, stop):
        gradients = replay.gradients(state, step)
        norms.append(math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients.values())))
        state = replay.advance(state, gradients, step)
        if progress is not None:
            progress.advance()
    return state, norms


def _difference(replay: Replay, start: int, stop: int, state: State) -> tuple[float, float]:
    """Distance from the recorded weights over the way that they went, and what is allowed."""
    before, after = (replay.run.values(step, "gradients") for step in (start, stop))
    apart = way = 0.0
    for name, value in state.values["weights"].items():
        there = after[name].to(value)
        apart += float((value - there).square().sum())
        way += float((there - before[name].to(value)).square().sum())
    tolerance = max(_TOLERANCE[value.dtype] for value in state.values["weights"].values())
    if way == 0:
        return (0.0 if apart == 0 else math.inf), tolerance
    return math.sqrt(apart / way), tolerance


def _means_apart(replay: Replay, stop: int, state: State) -> float:
    """Distance from the recorded means of gradients, as a share of their length; 0 for an optimizer without."""
    there = replay.run.tensors(stop)
    apart = length = 0.0
    for name, value in state.values.get("exp_avg", {}).items():
        mean, square = there.get(f"state_exp_avg.{name}"), there.get(f"state_exp_avg_sq.{name}")
        if mean is not None and square is not None:
            apart += float((value - mean.to(value)).square().sum())
            # Where gradients are but noise around zero their mean is, too.
            length += max(float(mean.square().sum()), _NOISE * float(square.sum()))
    return math.sqrt(apart / length) if length else 0.0


def _check_buffers(replay: Replay) -> None:
    """Refuse a run in which something changed besides its parameters.

    Raises:
        StoreMismatch: If it did.
    """
    mine = dict(replay.task.model.named_buffers())
    for step in replay.run.checkpoints:
        recorded = replay.run.tensors(step)
        other = [name for name, value in mine.items() if not torch.equal(recorded[f"model.{name}"].to(value), value)]
        if other:
            raise StoreMismatch(
                found=f"a run that changed the buffer {other[0]!r} up to step {step:,}, as batch normalisation does",
                needed="a run in which only parameters change: every example's loss is its own",
                do="train with group or layer normalisation, or with the statistics frozen (eval mode), or choose method='source'",
            )


def dropout_of(model: nn.Module) -> str:
    """The first place where a model has dropout, a module or an entry of its configuration; empty if it has none."""
    config = getattr(model, "config", None)
    names = [name for name, module in model.named_modules() if isinstance(module, DROPOUTS) and module.p > 0]
    names += [key for key in _RATES if isinstance(getattr(config, key, None), float) and getattr(config, key)]
    return names[0] if names else ""


def _causes(model: nn.Module, stages: list) -> str:
    """What to look for, the likely first."""
    causes = []
    if dropout := dropout_of(model):
        causes.append(f"dropout ({dropout!r} has some: record a run with none)")
    causes += [
        "augmentation or noise in the data, other contents of examples with the same ids",
        "another loss than the task's, such as a factor, or a mean that divided_by of batch() should tell",
        "gradients changed without clip() or scaled()",
        "autocast",
    ]
    if not stages:
        causes.append("a new optimizer without stage()")
    return f"look for {', '.join(causes)}; or choose method='source', which needs no replay"
