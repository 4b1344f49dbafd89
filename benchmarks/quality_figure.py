"""LDS against bytes per example, as one SVG that follows the reader's light or dark theme."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

__all__ = ["Curve", "Panel", "draw"]

_WIDTH, _HEIGHT = 980, 430
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 290, 40, 52
# Dark enough for white, light enough for black.
_COLOURS = ("#d9402f", "#2f7fd0", "#2f9e57", "#a35fcf", "#c78100", "#16989e", "#d1569a", "#7a8b1f", "#8c6d5a", "#6f7bd8")
_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #24292f; } .title { font-weight: 600; font-size: 15px; }
.back { fill: #ffffff; } .grid { stroke: #d8dee4; } .level { stroke: #57606a; stroke-dasharray: 6 4; } .hollow { fill: #ffffff; }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3; } .back { fill: #0d1117; } .grid { stroke: #30363d; } .level { stroke: #9198a1; } .hollow { fill: #0d1117; } }
"""


@dataclass(frozen=True)
class Curve:
    """One method.

    Args:
        name: In the legend; systems other than ours get hollow squares and broken lines.
        points: Bytes, LDS and the ends of its interval, in rising order of bytes.
    """

    name: str
    points: Sequence[tuple[float, float, float, float]]


@dataclass(frozen=True)
class Panel:
    """One setting.

    Args:
        name: Above it.
        curves: Its lines.
        levels: LDS of what keeps no store, by name: horizontal lines.
    """

    name: str
    curves: Sequence[Curve]
    levels: Mapping[str, float]


def draw(panels: Sequence[Panel]) -> str:
    """The panels below each other.

    Args:
        panels: One per setting; a method has one colour in all of them.

    Returns:
        SVG.
    """
    names = list(dict.fromkeys(curve.name for panel in panels for curve in panel.curves))
    drawn = [f'<g transform="translate(0 {place * _HEIGHT})">{_panel(panel, names)}</g>' for place, panel in enumerate(panels)]
    height = _HEIGHT * len(panels)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" role="img">\n'
        f"<title>LDS against bytes per example</title><style>{_STYLE}</style>"
        f'<rect class="back" width="{_WIDTH}" height="{height}"/>\n' + "\n".join(drawn) + "\n</svg>\n"
    )


def _panel(panel: Panel, names: list[str]) -> str:
    points = [point for curve in panel.curves for point in curve.points]
    first, last = min(point[0] for point in points) / 1.4, max(point[0] for point in points) * 1.4
    low = min(0.0, floor(min(point[2] for point in points) * 10) / 10)
    high = ceil(max(*(point[3] for point in points), *panel.levels.values()) * 10) / 10
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM

    def x(size: float) -> float:
        return _LEFT + (right - _LEFT) * log10(size / first) / log10(last / first)

    def y(value: float) -> float:
        return bottom - (bottom - _TOP) * (value - low) / (high - low)

    parts = [_text(_LEFT, 22, panel.name, kind="title"), _text((_LEFT + right) / 2, bottom + 40, "bytes per example", "middle")]
    parts.append(f'<text transform="translate(16 {(_TOP + bottom) / 2:.0f}) rotate(-90)" text-anchor="middle">LDS</text>')
    for count in range(round((high - low) * 10) + 1):
        value = low + count / 10
        parts += [_line(_LEFT, y(value), right, y(value), "grid"), _text(_LEFT - 8, y(value) + 4, f"{value:.1f}", "end")]
    for power in range(ceil(log10(first) / log10(4)), floor(log10(last) / log10(4)) + 1):
        size = 4.0**power
        parts += [_line(x(size), _TOP, x(size), bottom, "grid")]
        parts += [_text(x(size), bottom + 18, f"{size:,.0f}" if size < 1024 else f"{size / 1024:,.0f} K", "middle")]
    label = -1e9
    for name, value in sorted(panel.levels.items(), key=lambda item: -item[1]):
        label = max(label + 13, y(value) - 4)  # so that labels do not overlap
        parts += [_line(_LEFT, y(value), right, y(value), "level"), _text(right - 4, label, f"{name} {value:.3f}", "end")]
    for place, curve in enumerate(panel.curves):
        at = [(x(size), y(value), y(one), y(other)) for size, value, one, other in curve.points]
        parts.append(_curve(curve.name, names.index(curve.name), at))
        height = _TOP + 8 + 18 * place
        parts.append(_curve(curve.name, names.index(curve.name), [(right + 24, height, height, height)]))
        parts.append(_text(right + 38, height + 4, curve.name))
    return "\n".join(parts)


def _curve(name: str, number: int, at: list[tuple[float, float, float, float]]) -> str:
    colour, is_peer = _COLOURS[number % len(_COLOURS)], name.split()[0] in ("bergson", "dattri", "traker")
    width = 2.6 if name.startswith("aligned") else 1.6
    dash = "5 4" if is_peer else "2 3" if "axes from" in name else "none"
    parts = [
        f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in at)}" fill="none" stroke="{colour}" stroke-width="{width}" '
        f'stroke-dasharray="{dash}"/>'
    ]
    for x, y, low, high in at:
        parts.append(f'<line x1="{x:.1f}" y1="{low:.1f}" x2="{x:.1f}" y2="{high:.1f}" stroke="{colour}" stroke-opacity=".45"/>')
        if is_peer:
            parts.append(
                f'<rect class="hollow" x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8" stroke="{colour}" stroke-width="1.8"/>'
            )
        elif number < len(_COLOURS):
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>')
        else:
            corners = f"{x:.1f},{y - 5:.1f} {x + 5:.1f},{y + 4:.1f} {x - 5:.1f},{y + 4:.1f}"
            parts.append(f'<polygon points="{corners}" fill="{colour}"/>')
    return "".join(parts)


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str = "start", *, kind: str = "") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
