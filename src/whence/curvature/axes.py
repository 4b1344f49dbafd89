"""Learned projection axes: the leading eigenvectors of each layer's input and output-gradient second moments (LoGra-PCA)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from whence.capture import Plan, capture, in_halves
from whence.compress import AxesSketch, projected_shape
from whence.data import Example, batches
from whence.progress import Meter
from whence.records import Pair
from whence.tasks import AbstractTask, fitting_mask

__all__ = ["fit_axes"]


def fit_axes(
    task: AbstractTask,
    plan: Plan,
    examples: Sequence[Example],
    *,
    rank: int,
    seed: int,
    max_positions: int,
    progress: Meter,
    autocast: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """Axes of every unit side that is wider than its projection (Choe et al. 2024, section 3.2).

    Args:
        task: Model and loss.
        plan: Its units.
        examples: A sample of the training data.
        rank: Width of the projection.
        seed: The run's seed.
        max_positions: Positions per batch.
        progress: Advanced once an example.
        autocast: As in `capture`.

    Returns:
        `outputs.i` of shape (O, P) and `inputs.i` of shape (I, R), orthonormal columns; absent where a side is kept whole.
    """
    sketches: dict[str, AxesSketch] = {}
    for index, unit in enumerate(plan.units):
        for side, size, width in zip(
            ("outputs", "inputs"), (unit.outputs, unit.inputs), projected_shape(unit, rank), strict=True
        ):
            if width < size:
                name = f"{unit.name}:{side}"
                sketches[f"{side}.{index}"] = AxesSketch(size, width, seed=seed, name=name, device=task.device)

    def run(items: Sequence[int]) -> None:
        chosen = [examples[item] for item in items]
        batch = task.collate(chosen)
        masks = task.positions(batch)

        # Added only when the batch went through: one that did not fit is done again in halves.
        axes: dict[str, Tensor] = {}

        def consume(index: int, pair: Pair) -> None:
            for side in ("outputs", "inputs"):
                name = f"{side}.{index}"
                if name in sketches:
                    values = pair.outputs if side == "outputs" else pair.inputs
                    mask = fitting_mask(masks, pair.shape[0] * pair.shape[1]) if pair.is_by_position else None
                    product = sketches[name].product(values, mask)
                    axes[name] = product if name not in axes else axes[name] + product

        capture(
            task,
            plan,
            batch,
            consume,
            num_examples=len(chosen),
            alone=lambda number: task.collate([chosen[number]]),
            autocast=autocast,
        )
        for name, product in axes.items():
            sketches[name].sketch += product
        progress.advance(len(chosen))

    for batch in batches([example.length for example in examples], max_positions=max_positions):
        in_halves(batch, run, task.model)
    return {name: sketch.axes() for name, sketch in sketches.items()}
