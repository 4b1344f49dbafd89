"""A matrix as coloured squares, for a report page."""

from collections.abc import Sequence
from html import escape
from math import isfinite

from whence.errors import BadInput

__all__ = ["heat_section"]

_SIDE, _LEFT, _TOP = 520, 110, 6


def heat_section(
    caption: str, values: Sequence[Sequence[float]], groups: Sequence[tuple[str, int]], *, names: Sequence[str] = ()
) -> str:
    """A square matrix of values from -1 to 1, its rows and columns in groups.

    >>> heat_section("alike?", [[1.0, -0.5], [-0.5, 1.0]], [("a", 1), ("b", 1)]).count("<rect")
    4

    Args:
        caption: What is shown.
        values: Row by row; blue above zero, orange below, the stronger the farther from it.
        groups: Name and number of rows of each group, in order.
        names: Of the rows, shown where the pointer rests; without them the group and the place in it.

    Returns:
        HTML for a section of `page`; every text is escaped.

    Raises:
        BadInput: If the values are not square, not all in range, or the groups or names do not cover them.
    """
    size = len(values)
    named = list(names) or [f"{name} {index + 1}" for name, count in groups for index in range(count)]
    is_square = size > 0 and all(len(row) == size for row in values)
    if not is_square or sum(count for _, count in groups) != size or len(named) != size:
        raise BadInput(
            found=f"{size} rows of {sorted({len(row) for row in values})} values, {sum(count for _, count in groups)} in groups, "
            f"{len(named)} names",
            needed="a square matrix, every row in a group and named",
            do="correct it",
        )
    if not all(isfinite(value) and abs(value) <= 1 for row in values for value in row):
        raise BadInput(found="a value that is not from -1 to 1", needed="correlations", do="leave the heat map out")
    cell = _SIDE / size
    squares = "".join(
        f'<rect class="{"up" if value >= 0 else "down"}" fill-opacity="{abs(value):.2f}" x="{_LEFT + column * cell:.1f}" '
        f'y="{_TOP + row * cell:.1f}" width="{cell:.1f}" height="{cell:.1f}">'
        f"<title>{escape(named[row])}, {escape(named[column])}: {value:.2f}</title></rect>"
        for row, line in enumerate(values)
        for column, value in enumerate(line)
    )
    marks, first = "", 0
    for name, count in groups:
        start, middle = first * cell, (first + count / 2) * cell
        marks += f'<text class="left" x="{_LEFT - 8}" y="{_TOP + middle + 4:.1f}">{escape(name)}</text>'
        marks += f'<text x="{_LEFT + middle:.1f}" y="{_TOP + _SIDE + 18}">{escape(name)}</text>'
        if first:
            marks += f'<line class="zero" x1="{_LEFT}" x2="{_LEFT + _SIDE}" y1="{_TOP + start:.1f}" y2="{_TOP + start:.1f}"/>'
            marks += f'<line class="zero" y1="{_TOP}" y2="{_TOP + _SIDE}" x1="{_LEFT + start:.1f}" x2="{_LEFT + start:.1f}"/>'
        first += count
    return (
        f'<figure class="bars plot heat"><figcaption>{escape(caption)}</figcaption>'
        f'<svg viewBox="0 0 {_LEFT + _SIDE + 10} {_TOP + _SIDE + 26}" role="img" aria-label="{escape(caption)}">'
        f"{squares}{marks}</svg></figure>"
    )
