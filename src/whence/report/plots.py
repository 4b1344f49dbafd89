"""Plots for a report page: points and lines with intervals, as inline SVG that loads and runs nothing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from math import ceil, floor, isfinite, log10

from whence.errors import BadInput

__all__ = ["Point", "plot_section"]

_WIDTH, _HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 170, 14, 44
_TICKS = 5
# As many as there are classes series-0, series-1 ... in page.css; then they repeat.
_COLOURS = 8


@dataclass(frozen=True)
class Point:
    """One point.

    Args:
        x: Across.
        y: Upwards.
        low: Low end of its interval; None for none.
        high: High end.
    """

    x: float
    y: float
    low: float | None = None
    high: float | None = None


def plot_section(
    caption: str,
    series: Mapping[str, Sequence[Point]],
    *,
    across: str,
    upwards: str,
    log_across: bool = False,
    diagonal: bool = False,
    marks_across: Mapping[float, str] | None = None,
    marks_upwards: Mapping[float, str] | None = None,
) -> str:
    """Series of points, joined by lines, each with its name at its last point.

    >>> "quality" in plot_section("quality", {"a": [Point(1, 2)]}, across="bytes", upwards="LDS")
    True

    Args:
        caption: What is shown.
        series: Points by name, in the order in which they are joined.
        across: What x counts.
        upwards: What y counts.
        log_across: Whether x is drawn on a logarithmic scale.
        diagonal: Whether to draw the line y = x.
        marks_across: Where to mark the axis of x, and with what text, for numbers on a scale of their own; None marks round numbers.
        marks_upwards: The same for y.

    Returns:
        HTML for a section of `page`; every text is escaped, and the numbers stand in a table that is folded under the plot.

    Raises:
        BadInput: If there is nothing to draw, or a number that cannot be drawn.
    """
    points = [point for points_of in series.values() for point in points_of]
    numbers = [value for point in points for value in (point.x, point.y, point.low, point.high) if value is not None]
    if not points or not all(map(isfinite, numbers)) or log_across and min(point.x for point in points) <= 0:
        raise BadInput(
            found=f"{len(points)} points" + (", of which some cannot be drawn" if points else ""),
            needed="one or more, finite, and positive on a logarithmic scale",
            do="leave the plot or the point out",
        )
    x = _scale([point.x for point in points], _LEFT, _WIDTH - _RIGHT, log_across)
    heights = [value for point in points for value in (point.y, point.low, point.high) if value is not None]
    y = _scale(heights + ([point.x for point in points] if diagonal else []), _HEIGHT - _BOTTOM, _TOP, False)
    x, y = _marked(x, marks_across), _marked(y, marks_upwards)
    drawn = "".join(_series(number, name, points_of, x.at, y.at) for number, (name, points_of) in enumerate(series.items()))
    low, high = max(x.low, y.low), min(x.high, y.high)
    line = (
        f'<line class="zero" x1="{x.at(low):.1f}" y1="{y.at(low):.1f}" x2="{x.at(high):.1f}" y2="{y.at(high):.1f}"/>'
        if diagonal
        else ""
    )
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{point.x:.4g}</td><td>{point.y:.4g}</td><td>{_ends(point)}</td></tr>"
        for name, points_of in series.items()
        for point in points_of
    )
    return (
        f'<figure class="bars plot"><figcaption>{escape(caption)}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(caption)}">'
        f"{_axes(x, y, across, upwards)}{line}{drawn}</svg>"
        f"<details><summary>Numbers</summary><table><thead><tr><th>series</th><th>{escape(across)}</th>"
        f"<th>{escape(upwards)}</th><th>interval</th></tr></thead><tbody>{rows}</tbody></table></details></figure>"
    )


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float
    ticks: tuple[float, ...]
    at: Callable[[float], float]
    texts: Mapping[float, str] = field(default_factory=dict)

    def text(self, tick: float) -> str:
        """What stands at a tick."""
        return escape(self.texts.get(tick, f"{tick:.4g}"))


def _scale(values: Sequence[float], first: float, last: float, is_log: bool) -> _Scale:
    low, high = min(values), max(values)
    if is_log:
        low, high = low / 1.5, high * 1.5
        ticks = tuple(10.0**power for power in range(floor(log10(low)), ceil(log10(high)) + 1) if low <= 10.0**power <= high)
        span = log10(high / low)
        return _Scale(low, high, ticks, lambda value: first + (last - first) * log10(value / low) / span)
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    low, high = low - room, high + room
    step = 10.0 ** floor(log10((high - low) / _TICKS))
    step *= next(factor for factor in (1, 2, 5, 10, 20) if (high - low) / (step * factor) <= _TICKS)
    ticks = tuple(step * count for count in range(ceil(low / step), floor(high / step) + 1))
    return _Scale(low, high, ticks, lambda value: first + (last - first) * (value - low) / (high - low))


def _marked(scale: _Scale, marks: Mapping[float, str] | None) -> _Scale:
    if marks is None:
        return scale
    return replace(scale, ticks=tuple(tick for tick in marks if scale.low <= tick <= scale.high), texts=marks)


def _axes(x: _Scale, y: _Scale, across: str, upwards: str) -> str:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    upright = "".join(
        f'<line class="grid" x1="{x.at(tick):.1f}" x2="{x.at(tick):.1f}" y1="{_TOP}" y2="{bottom}"/>'
        f'<text x="{x.at(tick):.1f}" y="{bottom + 16}">{x.text(tick)}</text>'
        for tick in x.ticks
    )
    level = "".join(
        f'<line class="{"grid" if tick else "zero"}" x1="{_LEFT}" x2="{right}" y1="{y.at(tick):.1f}" y2="{y.at(tick):.1f}"/>'
        f'<text class="left" x="{_LEFT - 8}" y="{y.at(tick) + 4:.1f}">{y.text(tick)}</text>'
        for tick in y.ticks
    )
    names = (
        f'<text x="{(_LEFT + right) / 2}" y="{_HEIGHT - 8}">{escape(across)}</text>'
        f'<text transform="translate(12 {(_TOP + bottom) / 2}) rotate(-90)">{escape(upwards)}</text>'
    )
    return upright + level + names


def _series(number: int, name: str, points: Sequence[Point], x: Callable[[float], float], y: Callable[[float], float]) -> str:
    if not points:
        return ""
    path = " ".join(f"{x(point.x):.1f},{y(point.y):.1f}" for point in points)
    marks = "".join(
        f'<circle cx="{x(point.x):.1f}" cy="{y(point.y):.1f}" r="3.5"/>'
        + (
            f'<line x1="{x(point.x):.1f}" x2="{x(point.x):.1f}" y1="{y(point.low):.1f}" y2="{y(point.high):.1f}"/>'
            if point.low is not None and point.high is not None
            else ""
        )
        for point in points
    )
    last = points[-1]
    label = f'<text class="right" x="{x(last.x) + 8:.1f}" y="{y(last.y) + 4:.1f}">{escape(name)}</text>'
    return f'<g class="series-{number % _COLOURS}"><polyline points="{path}"/>{marks}{label}</g>'


def _ends(point: Point) -> str:
    return "" if point.low is None or point.high is None else f"{point.low:.4g} to {point.high:.4g}"
