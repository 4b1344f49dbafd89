"""Sections of a report page besides rankings: bars with intervals, and plain tables."""

from collections.abc import Iterable, Sequence
from html import escape
from math import floor, isfinite, log10

from whence.errors import BadInput
from whence.report.html import breakable

__all__ = ["bars_section", "table_section"]

_ROW_PIXELS = 34
_AXIS_PIXELS = 22
_MAX_TICKS = 6


def bars_section(caption: str, rows: Sequence[tuple[str, float, float, float]], unit: str) -> str:
    """A horizontal bar chart with an interval per bar, drawn as inline SVG on one axis that includes 0.

    >>> "(-0.7 to -0.3)" in bars_section("Effect", [("top 10 removed", -0.5, -0.7, -0.3)], "nats")
    True

    Args:
        caption: What is shown.
        rows: Label, mean, and the low and high end of its interval; both ends at the mean stand for no interval.
        unit: What the numbers are counted in.

    Returns:
        HTML for a section of `page`; the numbers stand beside the bars as text. Label, caption and unit are escaped.

    Raises:
        BadInput: If there are no rows, or a row has numbers that cannot be drawn.
    """
    if not rows:
        raise BadInput(found="no rows to draw", needed="one or more", do="leave the chart out")
    for label, mean, low, high in rows:
        if not all(map(isfinite, (mean, low, high))) or low > high:
            raise BadInput(
                found=f"row {label!r} with mean {mean}, interval {low} to {high}",
                needed="finite numbers, the low end first",
                do="leave the row out or correct it",
            )
    low = min(0.0, *(min(mean, low) for _, mean, low, _ in rows))
    high = max(0.0, *(max(mean, high) for _, mean, _, high in rows))
    axis = _Axis(low, high if high > low else low + 1.0)
    items = "".join(_item(axis, *row) for row in rows)
    heading = escape(caption) + (f' <span class="muted">({escape(unit)})</span>' if unit else "")
    scale = f'<li aria-hidden="true"><span></span><div class="drawing">{axis.labels()}</div><span></span></li>'
    return f'<figure class="bars"><figcaption>{heading}</figcaption><ul>{items}{scale}</ul></figure>'


def table_section(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A plain table; columns of numbers are set to the right.

    >>> table_section(["set", "share"], [["train", 0.51234]]).count("0.5123")
    1

    Args:
        header: Name of each column.
        rows: Cells as text or numbers; floats are shown with four significant digits, and everything is escaped.

    Returns:
        HTML for a section of `page`.

    Raises:
        BadInput: If a row has more or fewer cells than the header.
    """
    rows = [list(row) for row in rows]
    for number, row in enumerate(rows):
        if len(row) != len(header):
            raise BadInput(
                found=f"row {number} with {len(row)} cells",
                needed=f"{len(header)}, as the header",
                do="correct the row",
            )
    numeric = [bool(rows) and all(_is_number(row[column]) for row in rows) for column in range(len(header))]
    kinds = [' class="number"' if is_number else "" for is_number in numeric]
    head = "".join(f'<th scope="col"{kind}>{escape(name)}</th>' for kind, name in zip(kinds, header, strict=True))
    body = "".join(
        f"<tr>{''.join(f'<td{kind}>{_cell(cell)}</td>' for kind, cell in zip(kinds, row, strict=True))}</tr>" for row in rows
    )
    return f'<div class="plain"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


class _Axis:
    """Places of numbers on a drawing of any width: percentages, so that text keeps its size when the page is narrow."""

    def __init__(self, low: float, high: float):
        self.low, self.high = low, high
        step = 10.0 ** floor(log10((high - low) / _MAX_TICKS))
        step *= next(factor for factor in (1, 2, 5, 10, 20) if (high - low) / (step * factor) < _MAX_TICKS)
        self.ticks = [step * count for count in range(-floor(-low / step), floor(high / step) + 1)]

    def percent(self, value: float) -> float:
        """Distance from the left edge; a margin on both sides keeps the outer labels inside."""
        return 3.0 + 94.0 * (value - self.low) / (self.high - self.low)

    def grid(self) -> str:
        """Upright lines at the ticks."""
        return "".join(
            f'<line class="{"grid" if tick else "zero"}" x1="{x:.2f}%" x2="{x:.2f}%" y1="0" y2="{_ROW_PIXELS}"/>'
            for tick, x in ((tick, self.percent(tick)) for tick in self.ticks)
        )

    def labels(self) -> str:
        """The numbers under the lines."""
        texts = "".join(f'<text x="{self.percent(tick):.2f}%" y="15">{tick:.4g}</text>' for tick in self.ticks)
        return f'<svg height="{_AXIS_PIXELS}">{texts}</svg>'


def _item(axis: _Axis, label: str, mean: float, low: float, high: float) -> str:
    zero, end, first, last = (axis.percent(value) for value in (0.0, mean, low, high))
    middle = _ROW_PIXELS / 2
    caps = "".join(
        f'<line class="interval" x1="{x:.2f}%" x2="{x:.2f}%" y1="{middle - 5}" y2="{middle + 5}"/>' for x in (first, last)
    )
    spread = f'<line class="interval" x1="{first:.2f}%" x2="{last:.2f}%" y1="{middle}" y2="{middle}"/>{caps}'
    is_bare = low == mean == high
    return (
        f'<li><span class="name">{breakable(label)}</span>'
        f'<div class="drawing"><svg height="{_ROW_PIXELS}" aria-hidden="true">{axis.grid()}'
        f'<rect class="{"up" if mean >= 0 else "down"}" x="{min(zero, end):.2f}%" '
        f'width="{abs(end - zero):.2f}%" y="{middle - 8}" height="16" rx="2"/>'
        f"{'' if is_bare else spread}</svg></div>"
        f'<span class="reading"><b>{mean:.3g}</b>{"" if is_bare else f" ({low:.3g} to {high:.3g})"}</span></li>'
    )


def _is_number(cell: object) -> bool:
    return isinstance(cell, int | float) and not isinstance(cell, bool)


def _cell(cell: object) -> str:
    if isinstance(cell, float):
        return f"{cell:.4g}"
    return f"{cell:,}" if _is_number(cell) else escape(str(cell))
