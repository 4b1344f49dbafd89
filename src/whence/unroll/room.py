"""What a sweep through a run takes in memory, and how it is cut to fit.

Axes: R rows (queries or groups) carried through the run.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from whence.capture import frozen, with_weights
from whence.data import Example
from whence.errors import OutOfMemory
from whence.tasks import AbstractTask
from whence.unroll.replay import trainable
from whence.unroll.run import Run

__all__ = ["Room", "measure_sweep"]

# On top of what autograd keeps: the gradients in flight and the allocator's slack, as for one pass back (`whence.capture.memory`).
_SLACK = 1.6
# Versions of a row at once: as it comes, through the update, by the gradient, as it leaves.
_ROW_COPIES = 4
# Of an example's gradient: per unit as it is added up, per parameter, and in the product with the rows.
_GRADIENT_COPIES = 3
# More rows in one pass back bring no speed, only memory.
_AT_ONCE = 64


@dataclass(frozen=True)
class Room:
    """How a sweep is cut, and what it takes then.

    Args:
        work: What a step is, in words.
        max_positions: Positions of a step that are computed on at once.
        max_examples: Of a step whose gradients are held at once; None where they are not held.
        rows: Carried through the run together; more take more sweeps.
        at_once: Rows taken together through the graph of a gradient.
        length: Steps whose states are held at once.
        graph_bytes: Of the graph of a gradient and the passes through it: the peak of a step's double backward. Of single gradients, them.
        row_bytes: Of the rows.
        state_bytes: Of the states held.
        room_bytes: What may be taken besides the model.
    """

    work: str
    max_positions: int
    max_examples: int | None
    rows: int
    at_once: int
    length: int
    graph_bytes: int
    row_bytes: int
    state_bytes: int
    room_bytes: int

    @property
    def peak_bytes(self) -> int:
        """All together."""
        return self.graph_bytes + self.row_bytes + self.state_bytes

    def __str__(self) -> str:
        peak, graph, rows, states, room = (
            value / 2**20 for value in (self.peak_bytes, self.graph_bytes, self.row_bytes, self.state_bytes, self.room_bytes)
        )
        return (
            f"memory: peak about {peak:,.0f} of {room:,.0f} MiB: {self.work} of {self.max_positions:,} positions {graph:,.0f}, "
            f"{self.rows:,} rows at a time {rows:,.0f}, states of {self.length:,} steps {states:,.0f}"
        )

    def refuse(self) -> None:
        """Stop before anything long runs.

        Raises:
            OutOfMemory: If it does not fit.
        """
        if self.peak_bytes > self.room_bytes:
            raise OutOfMemory(
                found=f"room for {self.room_bytes / 2**20:,.0f} MiB",
                needed=f"{self.peak_bytes / 2**20:,.0f} MiB: the {self.work} of one example, one row, and states of the run",
                do="use shorter examples, a smaller model or a larger machine; record checkpoints closer together; or choose method='source'",
            )


def measure_sweep(
    task: AbstractTask,
    run: Run,
    examples: Sequence[Example],
    rows: int,
    *,
    room_bytes: int,
    max_positions: int | None = None,
    is_twice: bool = True,
) -> Room:
    """Measure the passes back of the longest example and cut a sweep so that it fits.

    Args:
        task: Model and per-example loss.
        run: The run.
        examples: The training data.
        rows: Queries or groups to carry.
        room_bytes: What may be taken besides the model.
        max_positions: Positions computed on at once; None for what fits.
        is_twice: Whether the rows go back through the graph of a gradient; if not, each example's gradient is made by itself.

    Returns:
        The cut; `refuse` says whether it fits.
    """
    longest = max(examples, key=lambda example: example.length)
    per_position = _graph_bytes(task, longest) / longest.length
    most = max(len(members) for members in run.log.members) * longest.length
    used = {name for entry in run.record["settings"] for group in entry["groups"] for name in group["parameters"]}
    weights = sum(value.numel() * value.element_size() for name, value in task.model.named_parameters() if name in used)
    positions = max_positions or max(longest.length, int(0.25 * room_bytes / (2 * per_position)))
    positions = min(max(positions, longest.length), most)
    at_once = max(1, min(rows, _AT_ONCE, int(0.5 * room_bytes / (positions * per_position)) - 1)) if is_twice else 0
    state_keys = [group["rule"].keys(2) for entry in run.record["settings"] for group in run.groups(entry["start"])]
    kinds = max(1, *(sum(key != "trust_ratio" for key in keys) for keys in state_keys))
    row = _ROW_COPIES * (1 + kinds) * weights
    at_a_time = max(1, min(rows, int(0.25 * room_bytes / row)))
    checkpoints = run.checkpoints
    steps = max(stop - start for start, stop in zip(checkpoints, checkpoints[1:], strict=False))
    state = (2 + kinds) * weights  # with the step's gradients
    length = steps if steps * state <= 0.25 * room_bytes else math.isqrt(steps - 1) + 1
    states_held = length if length == steps else 2 * length
    graph, together = int(positions * per_position * (1 + min(at_once, at_a_time))), None
    if not is_twice:
        together = max(1, min(max(map(len, run.log.members)), int(0.25 * room_bytes / (_GRADIENT_COPIES * weights))))
        graph += together * _GRADIENT_COPIES * weights
    return Room(
        "double backward" if is_twice else "gradients of examples", positions, together, at_a_time, min(at_once, at_a_time),
        length, graph, at_a_time * row, states_held * state, room_bytes,
    )  # fmt: skip


def _graph_bytes(task: AbstractTask, example: Example) -> float:
    """What autograd keeps of the loss of one example and of its gradient."""
    saved: dict[int, int] = {}
    parameters_seen = {
        value.untyped_storage().data_ptr() for value in task.model.state_dict().values() if isinstance(value, Tensor)
    }

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters_seen:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    values = {name: value for name, value in task.model.named_parameters() if name in task.tracked}
    with frozen(task.model), torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        leaves, batch = trainable(values, list(values)), task.collate([example])

        def gradients() -> Sequence[Tensor | None]:
            loss = task.loss(task.model, batch).sum()
            return torch.autograd.grad(loss, list(leaves.values()), create_graph=True, allow_unused=True)

        results = with_weights(task.model, leaves, gradients)
        del results
    return _SLACK * sum(saved.values())
