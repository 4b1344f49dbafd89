"""Settings near those that were asked for with which an exact run fits, for whoever was refused."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from whence.errors import DiskFull, OutOfMemory
from whence.pipeline.exact.footprint import Footprint
from whence.settings import ExactSettings, factors_folder, fit_of

__all__ = ["refused_with_what_fits"]

_SIDES = (16384, 8192, 4096, 2048, 1024, 512, 256, 128)
_RANKS = (64, 16, 4)
_NAMED = 2


def refused_with_what_fits(
    need: Footprint, settings: ExactSettings, positions: int, least: int, measured: Callable[[ExactSettings, int], Footprint]
) -> None:
    """Refuse a run that does not fit, with the two nearest settings that do, where there are any.

    Args:
        need: What it takes.
        settings: As asked, resolved.
        positions: Per batch.
        least: Of the longest example, which a batch has to hold.
        measured: What other settings would take.

    Raises:
        OutOfMemory: As `Footprint.refuse`.
        DiskFull: The same.
    """
    try:
        need.refuse()
    except (OutOfMemory, DiskFull) as error:
        fitting: dict[str, str] = {}
        for kind, text, other, batch in _others(settings, positions, least):
            if len(fitting) < _NAMED and kind not in fitting and _fits(measured(other, batch)):
                fitting[kind] = text
        advice = f"{error.do}; what would fit: {' or '.join(fitting.values())}" if fitting else error.do
        raise type(error)(found=error.found, needed=error.needed, do=advice) from None


def _others(settings: Any, positions: int, least: int) -> Iterator[tuple[str, str, ExactSettings, int]]:
    """Settings in the order of what they cost.

    Yields:
        The kind of change, its words, and the settings and positions per batch that are asked with it.
    """
    yield "batch", f"batch_positions={max(least, positions // 4)}", settings, max(least, positions // 4)
    can_keep = hasattr(settings, "factors") and factors_folder(settings) is None
    on_disk = replace(settings, factors=Path("factors")) if can_keep else settings
    if can_keep:
        yield "factors", "factors='factors'", on_disk, positions
    if hasattr(settings, "fit"):
        longest = fit_of(settings).largest_side or _SIDES[0]
        for side in _SIDES:
            if side < longest:
                yield "side", f"largest_side={side} with directions={side}", _with_side(settings, side), positions
        for side in _SIDES:
            if side < longest and can_keep:
                yield (
                    "side",
                    f"largest_side={side} with directions={side} with factors='factors'",
                    _with_side(on_disk, side),
                    positions,
                )
    for rank in _RANKS if hasattr(settings, "query_rank") and settings.query_rank is None else ():
        yield "rank", f"query_rank={rank}", replace(settings, query_rank=rank), positions
        if can_keep:
            yield "rank", f"query_rank={rank} with factors='factors'", replace(on_disk, query_rank=rank), positions


def _with_side(settings: Any, side: int) -> ExactSettings:
    fit = fit_of(settings)
    return replace(settings, fit=replace(fit, largest_side=side, directions=side))


def _fits(need: Footprint) -> bool:
    try:
        need.refuse()
    except (OutOfMemory, DiskFull):
        return False
    return True
