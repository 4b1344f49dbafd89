"""Second moments of gradients as an optimizer keeps them: row times column means of every unit (TrackStar, Adafactor).

Axes: B examples, O outputs, I inputs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from whence.capture import Plan, in_halves
from whence.curvature.rows import gradient_pairs, unit_rows
from whence.data import Example, batches
from whence.progress import Meter
from whence.tasks import AbstractTask

__all__ = ["fit_second_moments", "side_scales"]

# Of the mean: rows of tokens that the sample lacks would otherwise be scaled up without bound.
_FLOOR = 0.01


def fit_second_moments(
    task: AbstractTask,
    plan: Plan,
    examples: Sequence[Example],
    *,
    max_positions: int,
    progress: Meter,
    autocast: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """Means over rows and over columns of every unit's mean squared gradient (Shazeer and Stern 2018).

    Args:
        task: Model and loss.
        plan: Its units.
        examples: A sample of the training data.
        max_positions: Positions per batch.
        progress: Advanced once an example.
        autocast: As in `capture`.

    Returns:
        `outputs.i` of shape (O,) and `inputs.i` of shape (I,), float64: the mean of each row and of each column.
    """
    moments = {}
    for index, unit in enumerate(plan.units):
        moments[f"outputs.{index}"] = torch.zeros(unit.outputs, dtype=torch.float64)
        moments[f"inputs.{index}"] = torch.zeros(unit.inputs, dtype=torch.float64)

    def run(items: Sequence[int]) -> dict[str, Tensor]:
        chosen = [examples[item] for item in items]
        sums: dict[str, Tensor] = {}
        for index, pairs in gradient_pairs(task, plan, chosen, autocast=autocast).items():
            # A unit that the loss did not reach has none.
            rows = unit_rows([pair.wide() for pair in pairs]) if pairs else ()
            squares_OI = sum((rows_BOI.double().square().sum(0) for _, rows_BOI in rows), torch.zeros(1, 1, device=task.device))
            sums[f"outputs.{index}"], sums[f"inputs.{index}"] = squares_OI.mean(1), squares_OI.mean(0)
        progress.advance(len(chosen))
        return sums

    for batch in batches([example.length for example in examples], max_positions=max_positions):
        for sums in in_halves(batch, run, task.model):
            for name, value in sums.items():
                moments[name] += value.cpu()
    return {name: value / len(examples) for name, value in moments.items()}


def side_scales(outputs_O: Tensor, inputs_I: Tensor, least: float = 0.0) -> tuple[Tensor, Tensor]:
    """Factors on both sides of a pair that divide its gradient by the root of its second moment.

    The moment of an entry is taken as its row's mean times its column's over the mean of all, so its root splits over the sides.

    Args:
        outputs_O: Mean square of each row.
        inputs_I: Mean square of each column.
        least: Mean square up to which a gradient is nothing but rounding.

    Returns:
        Shapes (O,) and (I,); ones for a unit without any gradient. Means below a hundredth of their own mean are raised to that.
    """
    mean = outputs_O.mean()
    if not mean > least:
        return torch.ones_like(outputs_O), torch.ones_like(inputs_I)
    outputs_O, inputs_I = (side.clamp_min(_FLOOR * mean) / mean.sqrt() for side in (outputs_O, inputs_I))
    return outputs_O.rsqrt(), inputs_I.rsqrt()
