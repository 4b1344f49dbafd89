"""From queries to preconditioned rows: everything that depends on the query and not on the store's size.

Axes: Q queries, P x R one stored unit, D = P x R.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from whence.capture import Objective, Plan, capture, in_halves
from whence.compress import Encoder, numbers_held
from whence.curvature import ResolvedDamping, load_fishers, load_kronecker_fishers
from whence.data import Example, batches
from whence.errors import NonFinite
from whence.methods import method_named
from whence.progress import Meter
from whence.store import Store, name_now
from whence.tasks import AbstractTask

__all__ = ["Batching", "Rows", "examples_at_once", "gradient_rows", "precondition"]

_MOST_EXAMPLES = 256
# Of the gradients of a batch while they are encoded: a GiB in float32. Constant, since the last bits of a row depend on who is with it.
_BATCH_NUMBERS = 1 << 28


@dataclass(frozen=True)
class Rows:
    """Encoded gradients of some examples.

    Args:
        units: Per stored unit, shape (examples, P, R), on the CPU in full precision.
        values: The objective of each example.
        weights: For gradients of the output function, minus the derivative of each loss by it.
    """

    units: list[Tensor]
    values: Tensor
    weights: Tensor | None = None

    def norms(self) -> Tensor:
        """Norm over all units, one per example."""
        return sum((unit.flatten(1).square().sum(1) for unit in self.units), torch.zeros(())).sqrt()


@dataclass(frozen=True)
class Batching:
    """How examples are taken together.

    Args:
        positions: Per batch.
        examples: Per batch at most.
        calls: Batches to run at least, where a model that is split over processes has to run in all of them equally often: the last one is
            repeated and what it gives dropped.
    """

    positions: int
    examples: int = _MOST_EXAMPLES
    calls: int = 0


def examples_at_once(encoder: Encoder) -> int:
    """Examples in a batch at most, so that what is held of each while they are encoded takes no more than a GiB in float32."""
    return max(1, min(_MOST_EXAMPLES, _BATCH_NUMBERS // max(1, numbers_held(encoder))))


def gradient_rows(
    task: AbstractTask,
    plan: Plan,
    encoder: Encoder,
    examples: Sequence[Example],
    *,
    batching: Batching,
    progress: Meter,
    objective: Objective = "loss",
    autocast: torch.dtype | None = None,
) -> Rows:
    """Encoded gradients of examples, in their order.

    Args:
        task: Model and loss.
        plan: Its units.
        encoder: What shrinks them.
        examples: Training examples or queries.
        batching: How examples are taken together.
        progress: Advanced by examples.
        objective: "loss" or "measurement", or "negated output" for rows that come with weights.
        autocast: As in `capture`.

    Returns:
        The rows, in the order of the examples.

    Raises:
        NonFinite: If a gradient is NaN or infinite, naming unit and example.
    """

    def run(items: Sequence[int]) -> tuple[list[Tensor], Tensor, Tensor | None]:
        chosen = [examples[item] for item in items]
        batch = task.collate(chosen)
        sums = encoder.rows(len(chosen))
        captured = capture(
            task,
            plan,
            batch,
            sums,
            num_examples=len(chosen),
            alone=lambda index: task.collate([chosen[index]]),
            objective=objective,
            autocast=autocast,
        )
        rows = [row.cpu() for row in sums.finished()]
        _check_finite(rows, encoder, chosen)
        return rows, captured.cpu(), task.output_weights(-captured, batch).cpu() if objective == "negated output" else None

    order, collected = [], _Collected(len(examples))
    lengths = [example.length for example in examples]
    most = min(batching.examples, examples_at_once(encoder))
    planned = list(batches(lengths, max_positions=batching.positions, max_examples=most))
    for batch in planned:
        done = 0
        for rows, measurements, weight in in_halves(batch, run, task.model):
            indices = batch[done : done + len(measurements)]
            done += len(measurements)
            collected.take(indices, rows, measurements, weight)
        order.extend(batch)
        progress.advance(len(batch))
    for _ in range(batching.calls - len(planned)):
        run(planned[-1])
    back = torch.tensor(order).argsort()
    values, weights = torch.cat(collected.values), collected.weights
    return Rows(collected.units, values[back], torch.cat(weights)[back] if weights else None)


class _Collected:
    """Rows of all batches. Each goes where it belongs at once: a list of batches to be joined would take as much again."""

    def __init__(self, count: int):
        self.count = count
        self.units: list[Tensor] = []
        self.values: list[Tensor] = []
        self.weights: list[Tensor] = []

    def take(self, indices: Sequence[int], rows: Sequence[Tensor], values: Tensor, weights: Tensor | None) -> None:
        self.units = self.units or [row.new_empty(self.count, *row.shape[1:]) for row in rows]
        for unit, row in zip(self.units, rows, strict=True):
            unit[indices] = row
        self.values.append(values)
        self.weights += [] if weights is None else [weights]


def precondition(store: Store, rows: Rows, damping: ResolvedDamping | None) -> list[Tensor]:
    """Queries ready for the scan: scores are inner products with the stored rows, in the measurement's unit.

    score = -(1/N) grad m^T (F + damping)^-1 grad loss_i, block by block: the first-order change of the measurement when example i's weight
    rises by one (Koh and Liang 2017, equation 2, with the mean loss over N examples). Without curvature the inverse is left out.

    Args:
        store: Curvature and number of examples.
        rows: Gradients of the queries' measurements.
        damping: None for no curvature.

    Returns:
        Per unit, shape (Q, P, R).
    """
    scale = -1.0 / len(store)
    if damping is None:
        return [unit * scale for unit in rows.units]
    tensors = store.file(name_now(store.files, "curvature.safetensors"))
    if method_named(store.blueprint.method).structure == "full":
        fishers = load_fishers(tensors, [math.prod(unit.shape[1:]) for unit in rows.units])
    else:
        fishers = load_kronecker_fishers(tensors, [unit.projected for unit in store.blueprint.units])
    least = damping.least([fisher.mean_eigenvalue for fisher in fishers], rows.units[0].dtype)
    preconditioned = []
    for unit, stored, fisher in zip(rows.units, store.blueprint.units, fishers, strict=True):
        value = damping.of_unit(
            stored, fisher.mean_kept(len(store) + store.num_deleted) if damping.of_kept else fisher.mean_eigenvalue
        )
        preconditioned.append(
            (fisher.solve(unit.flatten(1), max(value, least), has_tail=damping.has_tail) * scale).view_as(unit)
        )
    return preconditioned


def _check_finite(rows: Sequence[Tensor], encoder: Encoder, chosen: Sequence[Example]) -> None:
    for unit, row in zip(encoder.units, rows, strict=True):
        bad = ~torch.isfinite(row).flatten(1).all(1)
        if bool(bad.any()):
            raise NonFinite(
                found=f"a NaN or infinite gradient of {unit.name!r} for the example {chosen[int(bad.nonzero()[0])].id!r}",
                needed="finite gradients",
                do="drop this example, or run in a wider type than the model's",
            )
