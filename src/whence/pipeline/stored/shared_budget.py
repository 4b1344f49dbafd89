"""What all rows of a store may share on disk, chosen from sizes, and the bases that fit in it.

Few documents do not need what they share to be smaller by mathematics: with N of them, N numbers each hold all inner products among them (the
root of their Gram matrix), and no axes. But a new query's code is made of its inner products with all N, and those take either the axes or
every document's gradient and the whole curvature again. So what is shared is cut, and what that costs is measured and told.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from whence.curvature import kept_numbers
from whence.errors import BadInput
from whence.pipeline.stored.code_size import AXES_BYTES, CodeSize, code_size
from whence.records import Unit
from whence.settings import BuildConfig, FitConfig
from whence.store import size_text

__all__ = ["budget_note", "default_budget", "nearest_sizes", "within_budget"]

# Beyond as much as the rows take: of the bytes of the parameters in float32, and what nobody minds.
_SHARE, _LEAST_BYTES = 0.25, AXES_BYTES + (64 << 20)
# Of the budget, for bases; the rest is for axes.
_FOR_BASES = 0.5
# Of shared bytes that are proposed, the least.
_LITTLE_BYTES = 1 << 20
_DIRECTIONS = (1024, 512, 256, 128, 64, 32, 16)


def default_budget(units: Sequence[Unit], rows_bytes: int) -> int:
    """Bytes that all rows may share unless more is asked for: as many as theirs, and a quarter of the parameters', 320 MiB at least.

    Args:
        units: The units.
        rows_bytes: Of all rows.
    """
    parameters = sum(unit.outputs * unit.inputs for unit in units)
    return rows_bytes + max(_LEAST_BYTES, int(_SHARE * 4 * parameters))


def within_budget(
    units: Sequence[Unit],
    examples: int,
    config: BuildConfig,
    fit: FitConfig,
    *,
    free_bytes: float = float("inf"),
    is_begun: bool = False,
) -> tuple[FitConfig, CodeSize]:
    """How the curvature is fitted and how large the code is, with what is shared inside its budget.

    Bases give way to half of the budget by fewer directions a side, the axes to what is left by fewer bits, coordinates and axes. What was
    asked for (`shared_bytes`) is the budget if it is given; a fit in a folder of its own, or one that has begun, keeps its bases, and the
    default budget grows by what of them is more than its half.

    Args:
        units: The units.
        examples: To be stored.
        config: The build's options.
        fit: How the curvature would be fitted without a budget, resolved.
        free_bytes: On the store's disk.
        is_begun: Whether the fit lies in its folder already.

    Returns:
        The fit and the size of the code.

    Raises:
        BadInput: If the gradients of anchors, which are kept whole, take more.
    """
    size = code_size(units, examples, config, fit)
    asked_bytes = int(config.shared_bytes)
    budget = asked_bytes or int(min(default_budget(units, examples * size.row_bytes), max(free_bytes / 2, 1.0)))
    if size.shared_bytes <= budget:
        return fit, size
    if config.anchors is not None:
        _refuse_anchors(size, budget, is_by_default=not asked_bytes)
    if config.factors is None and not is_begun:
        fit = _fitting(units, fit, int(_FOR_BASES * budget))
    elif not asked_bytes:  # bases that are kept leave the axes what they would have had
        budget = max(budget, int(4 * kept_numbers(units, fit) + (1 - _FOR_BASES) * budget))
    # Axes for more coordinates would leave memory for fewer examples to learn them from.
    most = budget if asked_bytes else min(budget, 4 * kept_numbers(units, fit) + AXES_BYTES)
    return fit, code_size(units, examples, replace(config, shared_bytes=most), fit)


def _refuse_anchors(size: CodeSize, budget: int, *, is_by_default: bool) -> None:
    """Refuse anchors that take more than rows may share: axes of fewer bits or coordinates would not be exact.

    Raises:
        BadInput: Always.
    """
    most = max(0, budget - (size.shared_bytes - size.axes_bytes)) * size.samples // size.axes_bytes
    raise BadInput(
        found=f"{size.samples:,} anchors, which with the curvature take {size_text(size.shared_bytes)}",
        needed=f"at most {size_text(budget)} that all rows share{' unless more is asked for' if is_by_default else ', as asked'}",
        do=f"pass shared_bytes={size.shared_bytes}" + (f", or {most:,} anchors at most" if most else ""),
    )


def budget_note(units: Sequence[Unit], config: BuildConfig, fit: FitConfig, size: CodeSize) -> str:
    """What was given up for the budget, and how to have it; empty if nothing was.

    Args:
        units: The units.
        config: The build's options.
        fit: As `within_budget` gave it.
        size: As `within_budget` gave it.
    """
    parameters = sum(unit.outputs * unit.inputs for unit in units)
    longest = max(size for unit in units for size in (unit.outputs, unit.inputs))
    given_up = []
    if fit.largest_side is not None and longest > fit.largest_side + 1:
        given_up.append(f"sides above {fit.largest_side:,} have {fit.directions:,} directions")
    if size.coordinates < parameters:
        given_up.append(f"codes are made of {size.coordinates:,} of {parameters:,} coordinates")
    if not given_up:
        return ""
    asked_bytes = int(config.shared_bytes)
    if not asked_bytes:
        rule = "as much as the rows and a quarter of the parameters, 320 MiB at least, by default"
    elif size.shared_bytes <= asked_bytes:
        rule = "as asked"
    else:
        rule = f"the nearest to the {size_text(asked_bytes)} that were asked for"
    return f"shared files take about {size_text(size.shared_bytes)} ({rule}; shared_bytes asks for another size): {'; '.join(given_up)}"


def nearest_sizes(
    units: Sequence[Unit], examples: int, config: BuildConfig, fit: FitConfig, fits: Callable[[CodeSize], bool]
) -> str:
    """The two nearest options of a build with which its code fits where it did not, in words; empty if there are none.

    Args:
        units: The units.
        examples: To be stored.
        config: The build's options.
        fit: How the curvature is fitted.
        fits: Whether a size does.
    """
    size = code_size(units, examples, config, fit)
    shared = [size.shared_bytes >> shift for shift in range(1, 20)]
    options = {
        "axes_examples": [size.samples >> shift for shift in range(1, 12)],
        "shared_bytes": [bytes_ for bytes_ in shared if bytes_ >= _LITTLE_BYTES],
        "rank": []
        if config.bytes_per_example
        else [max(choice.width for choice in size.choices) >> shift for shift in range(1, 12)],
    }
    sizes = []
    for name, values in options.items():
        for value in values:
            other = replace(config, **{name: value}) if value else config
            if value and fits(within_budget(units, examples, other, fit)[1]):
                sizes.append(f"{name}={value}")
                break
    return f"; what would fit: {' or '.join(sizes[:2])}" if sizes else ""


def _fitting(units: Sequence[Unit], fit: FitConfig, room: int) -> FitConfig:
    """The fit with as many directions a side as fit, or with the fewest there are."""
    cuts = [fit]
    for width in _DIRECTIONS:
        longest = min(fit.largest_side or width, width)
        cuts.append(replace(fit, largest_side=longest, directions=min(width, fit.directions or width)))
    return next((cut for cut in cuts if 4 * kept_numbers(units, cut) <= room), cuts[-1])
