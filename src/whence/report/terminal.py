"""A ranking as tables in the terminal."""

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from whence.errors import printable
from whence.methods import ExactMethod, Method
from whence.report.passages import clip, pieces, shorten, strongest
from whence.terminal import show, stdout

if TYPE_CHECKING:
    from whence.report.hits import ClassLabel, Hit, Hits

__all__ = ["plain", "print_hits", "print_methods", "print_table", "strength_style"]

_OPPONENTS = 3
_QUERY_WIDTH = 240
_PASSAGE_WIDTH = 160
# Columns, rules and padding around the passage.
_MARGIN = 22
_WRAP = 14
# Least strength of a token and the style from there on; blue and orange stay apart for colour-blind readers.
_STYLES = {
    1: ((0.66, "bold white on dodger_blue3"), (0.33, "bold deep_sky_blue2"), (0.2, "deep_sky_blue3")),
    -1: ((0.66, "bold white on dark_orange3"), (0.33, "bold orange1"), (0.2, "dark_orange3")),
}


def print_hits(hits: "Hits") -> None:
    """Print one table per query on stdout: proponents, the strongest opponents, and the passage that matters in each.

    Args:
        hits: The ranking.
    """
    console = stdout()
    for number in range(len(hits.queries)):
        show(console, _heading(hits, number, console), _table(hits, number, console))
    show(console, _footer(hits, console))


def _heading(hits: "Hits", number: int, console: Console) -> Group:
    count = f"query {number + 1} of {len(hits.queries)}" if len(hits.queries) > 1 else "query"
    query = Text.assemble((f"{count}  ", "dim"), (plain(shorten(hits.queries[number], _QUERY_WIDTH), console), "bold"))
    unit = f" {hits.measurement_unit}" if hits.measurement_unit else ""
    value = Text.assemble(("measurement  ", "dim"), f"{hits.measurements[number]:.4g}", plain(unit, console))
    label = hits.label_of(number)
    lines = [] if label is None else [_label(label, console, "label asked about  ")]
    return Group(Text(), query, *lines, value)


def _table(hits: "Hits", number: int, console: Console) -> Table:
    table = Table(box=box.HORIZONTALS, expand=True, show_edge=True, header_style="dim", border_style="dim")
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("training example", ratio=1, overflow="fold")
    up, down = hits.proponents[number], hits.opponents[number]
    _add_side(table, "proponents", "more weight raises the measurement", up, up, console)
    _add_side(table, "opponents", "more weight lowers the measurement", down[:_OPPONENTS], down, console)
    return table


def _add_side(table: Table, name: str, meaning: str, shown: "tuple[Hit, ...]", all_hits, console: Console) -> None:
    if not shown:
        return
    count = f", {len(shown)} of {len(all_hits)} shown" if len(shown) < len(all_hits) else ""
    table.add_row("", "", Text.assemble((name, "bold"), (f": {meaning}{count}", "dim")))
    for rank, hit in enumerate(shown, start=1):
        style = "deep_sky_blue2" if hit.score >= 0 else "orange1"
        table.add_row(str(rank), Text(f"{hit.score:+#.4g}", style=style), _example(hit, console))
    table.add_section()


def _example(hit: "Hit", console: Console) -> Group:
    origin = Text.assemble((plain(hit.source, console), "bold"), "  " if hit.source else "", (plain(hit.id, console), "dim"))
    if hit.label is not None:
        origin.append("  ")
        origin.append(_label(hit.label, console, "label "))
    if not hit.text:
        return Group(origin)
    # Two lines, with some room for the words that wrap.
    width = max(60, min(_PASSAGE_WIDTH, 2 * (console.width - _MARGIN) - _WRAP))
    return Group(origin, Padding(_passage(hit, width, console), (0, 0, 0, 2)))


def _label(label: "ClassLabel", console: Console, name: str) -> Text:
    """A label, marked where the model sees another class."""
    line = Text.assemble((name, "dim"), (plain(label.label, console), "bold"))
    if label.is_disputed:
        line.append(f"  ! the model says {plain(label.predicted, console)}", style="bold red")
    return line


def _passage(hit: "Hit", width: int, console: Console) -> Text:
    parts = pieces(hit)
    start, stop = strongest(hit, parts, width)
    dots = plain("…", console)
    line = Text(f"{dots} " if start > 0 else "")
    for part in clip(parts, start, stop):
        words = plain(re.sub(r"\s+", " ", hit.text[part.start : part.stop]), console)
        word = words.lstrip()
        # The space before a word belongs to its token, but a background there would glue the words together.
        if word != words and not line.plain.endswith(" "):
            line.append(" ")
        line.append(word, style=strength_style(part.strength))
    if stop < len(hit.text):
        line.append(f" {dots}")
    return line


def strength_style(strength: float) -> str:
    """How to show a token of some strength, from -1 to 1."""
    steps = _STYLES[1 if strength > 0 else -1]
    return next((style for least, style in steps if abs(strength) >= least), "")


def _footer(hits: "Hits", console: Console) -> Group:
    facts = {"score in": hits.unit, "method": hits.method, "searched": f"{hits.num_examples:,} examples"}
    lines = [(name, text) for name, text in facts.items() if text] + [("note", note) for note in hits.notes]
    return Group(Text(), *(Text.assemble((f"{name:<9} ", "dim"), plain(text, console)) for name, text in lines))


def plain(text: str, console: Console) -> str:
    """User text that cannot steer the terminal and that its encoding can print."""
    text = printable(text)
    if console.options.ascii_only:
        text = text.replace("…", "...")
    return text.encode(console.encoding, "replace").decode(console.encoding)


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "") -> None:
    """A plain table on stdout; cells are shown as they are, never read as markup."""
    console = stdout()
    table = Table(box=box.SIMPLE_HEAD)
    for name in header:
        table.add_column(Text(name))
    for row in rows:
        table.add_row(*(plain(str(cell), console) for cell in row))
    if title:
        show(console, Text(f"\n{title}", style="bold"))
    show(console, table)


def print_methods(stored: Iterable[Method], exact: Iterable[ExactMethod]) -> None:
    """The tables of methods on stdout: those of stores, and those that go through the training data for every set of queries."""
    header = ("method", "what it does", "passes", "paper")
    for methods, title in (
        (stored, "With a store: whence build, whence query"),
        (exact, "Exact, without a store: whence attribute"),
    ):
        print_table(header, ((method.name, method.summary, method.passes, method.paper) for method in methods), title=title)
