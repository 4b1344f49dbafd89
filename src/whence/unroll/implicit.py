"""What a segment does to a gradient, written as one damped inverse: the form that solvers can take."""

from collections.abc import Sequence

from whence.records import Unit
from whence.unroll.scaling import Scaling
from whence.unroll.segments import Segment
from whence.unroll.walk import of_unit

__all__ = ["implicit_damping"]


def implicit_damping(units: Sequence[Unit], segment: Segment, scaling: Sequence[Scaling] | None) -> list[float | None]:
    """The damping at which (H + damping)^-1 stands for what a segment makes of a constant gradient.

    (1 - exp(-reach s)) / s is nearly 1 / (s + 1 / reach), from 0 to infinity (Bae et al. 2024, section 3.2; Wang et al. 2025 solve this
    system). With weight decay 1 / reach becomes (1 + decay) / reach; behind an optimizer that multiplies gradients with P, 1 / reach
    becomes 1 / (reach P), of which the mean over the unit is taken.

    Args:
        units: Of the model.
        segment: Its learning rates.
        scaling: P, per unit; None for SGD.

    Returns:
        Per unit, in the curvature of the per-example loss; None for a unit that the segment did not move.
    """
    dampings: list[float | None] = []
    for index, unit in enumerate(units):
        reach, decay = of_unit(unit, segment.reach), of_unit(unit, segment.decay)
        inverse = 1.0 if scaling is None else scaling[index].mean_inverse()
        if reach == 0 or inverse is None:
            dampings.append(None)
            continue
        scaled_decay = decay * inverse if segment.is_decoupled(unit) or scaling is None else decay
        dampings.append((inverse + scaled_decay) / reach)
    return dampings
