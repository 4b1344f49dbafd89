"""The check of a gradient log: logged rows against those of the task's own loss."""

from collections.abc import Sequence

import torch
from torch import Tensor

from whence.capture import Plan
from whence.compress import Encoder
from whence.data import Example
from whence.errors import BadInput
from whence.internals import DROPOUTS
from whence.pipeline.inputs import autocast_named
from whence.progress import meter
from whence.score import Batching, gradient_rows
from whence.settings import BuildConfig
from whence.tasks import AbstractTask

__all__ = ["check_rows"]

# A wrong divisor or another example's gradient is off by more; rounding of float32 by less.
_TOLERANCE, _HALF_TOLERANCE = 1e-2, 0.2


def check_rows(
    task: AbstractTask, plan: Plan, encoder: Encoder, examples: Sequence[Example], rows: Sequence[Tensor], config: BuildConfig
) -> None:
    """Hold the first rows of a batch against those that the task's loss gives, example by example.

    Nothing is compared while the model draws random numbers (dropout).

    Args:
        task: Model, at the weights of the batch, and loss.
        plan: Its units.
        encoder: What made the rows.
        examples: The batch's first.
        rows: Per unit, shape (B, P, R).
        config: Type of the model's arithmetic.

    Raises:
        BadInput: If they differ.
    """
    if any(isinstance(module, DROPOUTS) and module.training and module.p for module in task.model.modules()):
        return
    autocast = autocast_named(config.autocast)
    is_half = autocast is not None or next(task.model.parameters()).dtype in (torch.bfloat16, torch.float16)
    with meter("check", len(examples), quiet=True) as progress:
        own = gradient_rows(task, plan, encoder, examples, batching=Batching(1), progress=progress, autocast=autocast)
    for row, example in enumerate(examples):
        mine, theirs = (torch.cat([unit[row].flatten().double().cpu() for unit in units]) for units in (rows, own.units))
        if float((mine - theirs).norm()) <= (_HALF_TOLERANCE if is_half else _TOLERANCE) * float(theirs.norm()) + 1e-12:
            continue
        ratio = float(mine @ theirs / theirs.square().sum().clamp_min(1e-300))
        raise BadInput(
            found=f"a logged gradient of {example.id!r} that is not that of the task's loss (along it, {ratio:.3g} times as long)",
            needed="the gradient of each example's own loss, summed over what the example consists of",
            do="pass the ids in the batch's order, what the loss was divided by (divided_by=...), and autocast=... if that is on; "
            "step the optimizer after the batch",
        )
