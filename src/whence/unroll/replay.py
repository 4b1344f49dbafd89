"""Trains a recorded run again, step by step, from its own checkpoints.

Axes: B examples of a step, N training examples.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from whence.capture import frozen, with_weights
from whence.data import Dataset, Example
from whence.errors import BadInput, Unsupported
from whence.optimizers import counted
from whence.tasks import AbstractTask
from whence.unroll.run import Run
from whence.unroll.states import counters_of, settings_at, state_of
from whence.unroll.update import Update, Values, update_of

__all__ = ["Part", "Replay", "State", "trainable"]


@dataclass(frozen=True)
class State:
    """Where a run is between two steps.

    Args:
        values: Weights and the optimizer's state.
        counts: By parameter, how many steps its state has seen; without any, the state is zero whatever came before.
    """

    values: Values
    counts: Mapping[str, int]


@dataclass(frozen=True)
class Part:
    """As many examples of a step as are computed on at once.

    Args:
        places_B: Their places in the training data.
        weights_B: What each loss is multiplied with in the loss that the step lowers.
        losses_B: Their losses, with a graph back to the weights.
    """

    places_B: Tensor
    weights_B: Tensor
    losses_B: Tensor


class Replay:
    """A run that can be made again from any of its checkpoints.

    The model is used in evaluation mode and with attention that can be differentiated twice: a run is the same only if its loss was that
    of the model in evaluation mode (no dropout, no statistics of the batch).

    Args:
        task: Model and per-example loss, with the weights that the run ended with.
        train: Every example that the run met.
        run: The run.
        max_positions: Positions computed on at once; a longer step is done in parts.
        max_examples: The same of examples; None for any number.

    Raises:
        BadInput: If the task leaves out parameters that the run has changed.
        Unsupported: If the optimizer is not known, or the arithmetic is narrower than float32.
    """

    def __init__(self, task: AbstractTask, train: Dataset, run: Run, *, max_positions: int, max_examples: int | None = None):
        self.task, self.train, self.run = task, train, run
        self.max_positions, self.max_examples = max_positions, max_examples
        self.limit: float | None = None
        self.fresh: set[int] = set()
        self.growth = 0.0
        row_of = {name: row for row, name in enumerate(train.ids)}
        self._rows = [row_of[name] for name in run.ids]
        used = {name for entry in run.record["settings"] for group in entry["groups"] for name in group["parameters"]}
        values = dict(task.model.named_parameters())
        for entry in run.record["settings"]:
            update_of(entry, run.groups(entry["start"]), [0.0] * len(entry["groups"]), 1.0)
        if any(group["rule"].is_averaged for group in run.groups(0)) and len(run.stages) > 1:
            raise Unsupported(
                found="a run of several stages with a Schedule-Free optimizer",
                needed="one stage: what a new average begins from is not told",
                do="record the stages as runs of their own",
            )
        if left := sorted(used - task.tracked):
            raise BadInput(
                found=f"a task that leaves out {left[0]!r}, which the run has changed",
                needed="a task that tracks every parameter of the run's optimizer",
                do="make it without track and ignore, from a model whose trained parameters ask for gradients",
            )
        narrow = [name for name in sorted(used) if values[name].dtype not in (torch.float32, torch.float64)]
        if narrow:
            raise Unsupported(
                found=f"the parameter {narrow[0]!r} in {values[narrow[0]].dtype}",
                needed="float32 or float64: half precision rounds away what a step's derivative is made of",
                do="record a run in float32, or choose method='source'",
            )
        self.names = tuple(sorted(used))

    @property
    def intervals(self) -> list[tuple[int, int]]:
        """Stretches between neighbouring checkpoints, in order."""
        steps = self.run.checkpoints
        return list(zip(steps, steps[1:], strict=False))

    @contextmanager
    def prepared_model(self) -> Iterator[None]:
        """The model as a replay needs it, for a while.

        Yields:
            Nothing.
        """
        with ExitStack() as stack:
            stack.enter_context(frozen(self.task.model))
            # The fused kernels have no second derivative.
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            yield

    def update(self, step: int) -> Update:
        """What the optimizer does in a step."""
        settings, run = settings_at(self.run.record, step), self.run
        return update_of(settings, run.groups(step), run.log.rates[step], run.log.factors[step], self.limit)

    def load(self, step: int) -> State:
        """Where the run was after so many steps, from its checkpoint."""
        tensors = self.run.tensors(step)
        weights = self.run.values(step, "gradients")
        update, device = self.update(min(step, self.run.steps - 1)), self.task.device
        values: Values = {"weights": {}}
        counts = {}
        before = settings_at(self.run.record, max(step - 1, 0))  # what wrote the checkpoint
        wrote = {name: group for group in self.run.groups(max(step - 1, 0)) for name in group["parameters"]}
        for name in update.groups:
            weight = weights[name].to(device)
            values["weights"][name] = weight
            state = state_of(before, wrote[name], name, tensors) if step and name in wrote else {}
            needed = update.rule(name).keys(weight.ndim)
            is_kept = step not in self.fresh and bool(needed) and all(key in state for key in needed)
            for key in needed:
                values.setdefault(key, {})[name] = state[key].to(weight) if is_kept else _empty(key, weight)
            counts[name] = counted(state, counters_of(wrote[name], tensors)) if is_kept else 0
        # Weights that this stage leaves alone may belong to another: the derivative by them passes through.
        for name in set(self.names) - set(update.groups):
            values["weights"][name] = weights[name].to(device)
        return State(values, counts)

    def renewed(self, state: State, step: int) -> State:
        """A state that did not come from a checkpoint, as the step after one finds it: with a new optimizer where the run had one."""
        loaded = self.load(step)
        values: Values = {"weights": state.values["weights"]}
        for kind, rows in loaded.values.items():
            if kind != "weights":
                values[kind] = {name: state.values[kind][name] if loaded.counts[name] else zero for name, zero in rows.items()}
        return State(values, {name: state.counts.get(name, 0) if count else 0 for name, count in loaded.counts.items()})

    def parts(self, step: int) -> Iterator[Part]:
        """The losses of a step's examples, at the weights that the model has just then: `with_weights` puts others there.

        Args:
            step: Which.

        Yields:
            Some examples at a time.
        """
        for indices, weights in self.pieces(step):
            losses_B = self._losses([self.train.examples[index] for index in indices])
            yield Part(torch.tensor(indices), torch.tensor(weights, dtype=losses_B.dtype, device=losses_B.device), losses_B)

    def pieces(self, step: int) -> Iterator[tuple[list[int], list[float]]]:
        """The examples of a step, as many as are computed on at once.

        Args:
            step: Which.

        Yields:
            Their places in the training data, and what each loss is multiplied with in the loss that the step lowers.
        """
        factors = self.run.log.weights[step]
        rows = [self._rows[member] for member in self.run.log.members[step]]
        for some in _cut([self.train.examples[row].length for row in rows], self.max_positions, self.max_examples):
            yield [rows[index] for index in some], [factors[index] for index in some]

    def gradients(self, state: State, step: int, scale_N: Tensor | None = None) -> dict[str, Tensor]:
        """Gradient of the loss that a step lowers.

        Args:
            state: Before the step.
            step: Which.
            scale_N: What the loss of every training example is multiplied with besides; None for 1.

        Returns:
            By parameter; without those that the loss does not reach, which torch leaves alone.
        """
        names = list(self.update(step).groups)
        total: dict[str, Tensor] = {}
        leaves = trainable(state.values["weights"], names)

        def add_up() -> None:
            for part in self.parts(step):
                weights_B = part.weights_B
                if scale_N is not None:
                    weights_B = weights_B * scale_N[part.places_B].to(weights_B)
                wanted = [leaves[name] for name in names]
                gradients = torch.autograd.grad((part.losses_B * weights_B).sum(), wanted, allow_unused=True)
                for name, gradient in zip(names, gradients, strict=True):
                    if gradient is not None:
                        total[name] = total[name] + gradient if name in total else gradient

        with torch.enable_grad():
            with_weights(self.task.model, leaves, add_up)
        return total

    def advance(self, state: State, gradients: Mapping[str, Tensor], step: int) -> State:
        """Where the run is after a step."""
        with torch.no_grad():
            values = self.update(step)(state.values, gradients, state.counts)
        return State(values, {**state.counts, **{name: state.counts.get(name, 0) + 1 for name in gradients}})

    def backwards(self, start: int, stop: int, length: int) -> Iterator[tuple[int, State, dict[str, Tensor]]]:
        """The steps between two checkpoints from the last to the first.

        States are rebuilt: one of every `length` is kept on the way from the checkpoint, those between are made again when their turn
        comes. With the root of the number of steps as length, twice that many states are held, and every step is made twice.

        Args:
            start: A checkpoint.
            stop: The next.
            length: Steps whose states are held at once.

        Yields:
            The step, the state before it and its gradients.
        """
        marks, state = {}, self.load(start)
        starts = range(start, stop, length)
        for step in range(start, starts[-1]):
            if (step - start) % length == 0:
                marks[step] = state
            state = self.advance(state, self.gradients(state, step), step)
        marks[starts[-1]] = state
        for first in reversed(starts):
            state, trail = marks.pop(first), []
            for step in range(first, min(first + length, stop)):
                gradients = self.gradients(state, step)
                trail.append((step, state, gradients))
                state = self.advance(state, gradients, step)
            while trail:
                yield trail.pop()

    def _losses(self, examples: Sequence[Example]) -> Tensor:
        losses_B = self.task.loss(self.task.model, self.task.collate(examples))
        if losses_B.shape != (len(examples),):
            raise BadInput(
                found=f"a loss of shape {tuple(losses_B.shape)} for {len(examples)} examples",
                needed="one loss per example",
                do="use reduction='none' and sum over positions only",
            )
        return losses_B


def _empty(key: str, weight: Tensor) -> Tensor:
    """A state that is made by the first step: as large as the weights, a matrix for a side, or a number."""
    if "pre_cond_" in key:
        size = weight.shape[int(key.rpartition("_")[2])]
        return weight.new_zeros(size, size)
    return weight.new_zeros(()) if key == "trust_ratio" else torch.zeros_like(weight)


def trainable(weights: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """Weights of which some ask for a gradient."""
    chosen = set(names)
    return {name: value.detach().requires_grad_(name in chosen) for name, value in weights.items()}


def _cut(lengths: Sequence[int], max_positions: int, max_examples: int | None) -> Iterator[list[int]]:
    """Neighbours together, as many as fit when padded to the longest, always at least one.

    Yields:
        Their places.
    """
    some: list[int] = []
    for index, length in enumerate(lengths):
        longest = max([length, *(lengths[other] for other in some)])
        if some and (longest * (len(some) + 1) > max_positions or len(some) == max_examples):
            yield some
            some = []
        some.append(index)
    yield some
