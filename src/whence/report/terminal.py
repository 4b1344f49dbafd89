"""A ranking as tables in the terminal."""

import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.cells import cell_len
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from whence.errors import printable
from whence.methods import ExactMethod, Method
from whence.report.beside import Beside, shared_line, spans_lines
from whence.report.passages import clip, peak_of, pieces, shorten, strongest
from whence.terminal import show, stdout

if TYPE_CHECKING:
    from whence.report.hits import ClassLabel, Hit, Hits

__all__ = [
    "footer",
    "heading",
    "passage",
    "plain",
    "print_hits",
    "print_methods",
    "print_table",
    "shared_text",
    "spans_text",
    "strength_style",
]

_OPPONENTS = 3
# Tokens of the query, those that a document says most for.
_TOKENS = 3
_QUERY_WIDTH = 240
_PASSAGE_WIDTH = 160
# Columns, rules and padding around the passage.
_MARGIN = 22
_WRAP = 14
# Cells of so many characters stay on one line; each has a space on both sides and one to the next.
_ONE_LINE, _GAP = 24, 3
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
        show(console, heading(hits, number, console), _table(hits, number, console))
        if hits.beside:
            show(console, spans_text(hits.beside[number], console))
    show(console, footer(hits, console))


def heading(hits: "Hits", number: int, console: Console) -> Group:
    """What was asked, and its measurement."""
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
    peak = peak_of((*up, *down[:_OPPONENTS]))
    beside = hits.beside[number] if hits.beside else None

    def cell(hit: "Hit") -> Group:
        return _example(hit, peak, console, beside, hits.tokens_of(number))

    _add_side(table, "proponents: more weight raises the measurement", up, up, cell)
    _add_side(table, "opponents: more weight lowers the measurement", down[:_OPPONENTS], down, cell)
    return table


def _add_side(table: Table, title: str, shown: "tuple[Hit, ...]", all_hits, cell: "Callable[[Hit], Group]") -> None:
    if not shown:
        return
    count = f", {len(shown)} of {len(all_hits)} shown" if len(shown) < len(all_hits) else ""
    name, colon, meaning = title.partition(":")
    table.add_row("", "", Text.assemble((name, "bold"), (f"{colon}{meaning}{count}", "dim")))
    for rank, hit in enumerate(shown, start=1):
        style = "deep_sky_blue2" if hit.score >= 0 else "orange1"
        table.add_row(str(rank), Text(f"{hit.score:+#.4g}", style=style), cell(hit))
    table.add_section()


def _example(hit: "Hit", peak: float, console: Console, beside: Beside | None, query_tokens: Sequence[str]) -> Group:
    origin = Text.assemble((plain(hit.source, console), "bold"), "  " if hit.source else "", (plain(hit.id, console), "dim"))
    if hit.label is not None:
        origin.append("  ")
        origin.append(_label(hit.label, console, "label "))
    lines = [origin] if beside is None else [origin, shared_text(hit, beside, console)]
    if hit.query_scores:
        order = sorted(range(len(query_tokens)), key=lambda index: -abs(hit.query_scores[index]))[:_TOKENS]
        parts = ", ".join(f"{query_tokens[index].strip() or '(space)'} {hit.query_scores[index]:+.3g}" for index in order)
        lines.append(Text.assemble(("says for ", "dim"), plain(parts, console)))
    if not hit.text:
        return Group(*lines)
    # Two lines, with some room for the words that wrap.
    width = max(60, min(_PASSAGE_WIDTH, 2 * (console.width - _MARGIN) - _WRAP))
    return Group(*lines, Padding(passage(hit, width, peak, console), (0, 0, 0, 2)))


def shared_text(hit: "Hit", beside: Beside, console: Console) -> Text:
    """What a document has in common with the answer by its words."""
    kind, line = shared_line(beside.hits[hit.row], hit.text, beside.num_documents)
    return Text.assemble((kind, "bold"), (": " + plain(shorten(line, _PASSAGE_WIDTH), console), "dim"))


def spans_text(beside: Beside, console: Console) -> Text:
    """The runs of the answer that stand in the corpus, and what is most alike by words."""
    return Text("\n".join(plain(line, console) for line in spans_lines(beside)), style="dim")


def _label(label: "ClassLabel", console: Console, name: str) -> Text:
    """A label, marked where the model sees another class."""
    line = Text.assemble((name, "dim"), (plain(label.label, console), "bold"))
    if label.is_disputed:
        line.append(f"  ! the model says {plain(label.predicted, console)}", style="bold red")
    return line


def passage(hit: "Hit", width: int, peak: float, console: Console) -> Text:
    """The part of a hit's text that matters, shaded; see `whence.report.passages`."""
    parts = pieces(hit, peak)
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


def footer(hits: "Hits", console: Console) -> Group:
    """What the numbers mean."""
    facts = {"score in": hits.unit, "method": hits.method, "searched": f"{hits.num_examples:,} examples"}
    lines = [(name, text) for name, text in facts.items() if text] + [("note", note) for note in hits.notes]
    return Group(Text(), *(Text.assemble((f"{name:<9} ", "dim"), plain(text, console)) for name, text in lines))


def plain(text: str, console: Console) -> str:
    """User text that cannot steer the terminal and that its encoding can print."""
    text = printable(text)
    if console.options.ascii_only:
        text = text.replace("…", "...")
    return text.encode(console.encoding, "replace").decode(console.encoding)


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "", keys: int = 1) -> None:
    """A plain table on stdout; cells are shown as they are, never read as markup.

    Columns that do not fit side by side without breaking words stand in a table of their own below, with the first ones again.

    Args:
        header: Name of each column.
        rows: Cells.
        title: A line above.
        keys: So many of the first columns name a row.
    """
    console = stdout()
    cells = [[plain(str(cell), console) for cell in row] for row in rows]
    if title:
        show(console, Text(f"\n{title}", style="bold"))
    widths = [_width(name, [row[column] for row in cells]) for column, name in enumerate(header)]
    for columns in _side_by_side(widths, keys, console.width):
        table = Table(box=box.SIMPLE_HEAD)
        for column in columns:
            is_short = max((len(row[column]) for row in cells), default=0) <= _ONE_LINE
            name = "\n".join(textwrap.wrap(header[column], widths[column], break_long_words=False))
            table.add_column(Text(name), no_wrap=is_short, min_width=widths[column])
        for row in cells:
            table.add_row(*(row[column] for column in columns))
        show(console, table)


def _width(name: str, cells: Sequence[str]) -> int:
    """The least width of a column: of its longest word, and of whole cells where these are short."""
    words = [word for text in (name, *(cell for cell in cells if len(cell) > _ONE_LINE)) for word in text.split()]
    return max((cell_len(text) for text in (*words, *(cell for cell in cells if len(cell) <= _ONE_LINE))), default=1)


def _side_by_side(widths: Sequence[int], keys: int, room: int) -> list[list[int]]:
    """Columns of each table, so that none is wider than there is room, if that can be."""
    first = list(range(min(keys, len(widths))))
    tables = [list(first)]
    for column in range(len(first), len(widths)):
        if len(tables[-1]) > len(first) and sum(widths[each] + _GAP for each in (*tables[-1], column)) >= room:
            tables.append(list(first))
        tables[-1].append(column)
    return tables


def print_methods(stored: Iterable[Method], exact: Iterable[ExactMethod]) -> None:
    """The tables of methods on stdout: those of stores, and those that go through the training data for every set of queries."""
    header = ("method", "what it does", "passes", "paper")
    for methods, title in (
        (stored, "With a store: whence build, whence query"),
        (exact, "Exact, without a store: whence attribute"),
    ):
        print_table(header, ((method.name, method.summary, method.passes, method.paper) for method in methods), title=title)
