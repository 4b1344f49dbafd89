"""What an optimizer multiplies gradients with, read off its state: P, one block per unit, diagonal in bases of its own.

Axes: O outputs, I inputs.
"""

from collections.abc import Sequence

from torch import device

from whence.capture import Plan, as_blocks
from whence.curvature import KroneckerBlock
from whence.unroll.run import Run

__all__ = ["scaling_of"]


def scaling_of(run: Run, plan: Plan, steps: Sequence[int], place: device) -> list[KroneckerBlock]:
    """P of an adaptive optimizer: 1 / (sqrt(v) + eps), v bias-corrected, in parameters.

    Args:
        run: The run.
        plan: Units of the model.
        steps: Checkpoints over which P is averaged.
        place: Device of the model.

    Returns:
        One block per unit, its values P's.
    """
    found = run.preconditioner(steps)
    like = {name: found[name][None] for unit in plan.units for name in unit.parameters}
    return [
        KroneckerBlock(unit, None, None, block[0].to(place))
        for unit, block in zip(plan.units, as_blocks(plan, like), strict=True)
    ]
