"""An answer to "why did it say this?" in the terminal: the ranking, and where each score comes from."""

from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from whence.report.terminal import plain, print_hits, strength_style
from whence.terminal import show, stdout
from whence.why.html import TOKEN_DEFINITION

if TYPE_CHECKING:
    from whence.report.hits import Hit
    from whence.why.answer import Why

__all__ = ["print_why"]

_PAIRS, _LAYERS = 3, 2


def print_why(why: "Why") -> None:
    """Print the tokens of the completion, the documents on both sides, and for each of them which tokens and layers its score comes from.

    Args:
        why: The answer.
    """
    console = stdout()
    line = Text("completion ", style="dim")
    explained = set(why.asked)
    for number, (text, value) in enumerate(zip(why.completion, why.log_probabilities, strict=True), start=1):
        line.append(f" {number}", style="dim")
        line.append(_visible(text, console), style="bold" if number in explained else "")
        line.append(f" {value:.1f}", style="dim")
    print_hits(why.hits)
    note = Text("           number, token, log-probability in nats; --token NUMBER asks about one of them", style="dim")
    show(console, Text(), line, note, _where(why, console), Text(TOKEN_DEFINITION, style="dim"))


def _where(why: "Why", console: Console) -> Table:
    table = Table(box=box.HORIZONTALS, expand=True, header_style="dim", border_style="dim")
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("document, and what it says for", ratio=3, overflow="fold")
    table.add_column("strongest pairs: completion, document", ratio=2, overflow="fold")
    table.add_column("layers", ratio=2, overflow="fold")
    for hit in (*why.hits.proponents[0], *why.hits.opponents[0]):
        parts = why.parts[hit.id]
        pairs = "\n".join(
            f"{_visible(why.asked_tokens[row], console)}  {_visible(parts.tokens[column], console)}  {score:+.2g}"
            for row, column, score in parts.strongest(_PAIRS)
        )
        order = sorted(parts.layers.items(), key=lambda item: -abs(item[1]))[:_LAYERS]
        layers = "\n".join(f"{plain(name, console)}  {score:+.2g}" for name, score in order)
        table.add_row(f"{hit.score:+#.3g}", _says_for(why, hit, console), Text(pairs), Text(layers))
    return table


def _says_for(why: "Why", hit: "Hit", console: Console) -> Text:
    """The document's name, and the asked tokens shaded by what it does to each."""
    said_for = Text(f"{plain(hit.id, console)}\n", style="")
    parts_A = why.parts[hit.id].scores_AT.sum(1)
    peak = float(parts_A.abs().max()) or 1.0
    for text, part in zip(why.asked_tokens, parts_A.tolist(), strict=True):
        said_for.append(plain(text.replace("\n", " "), console), style=strength_style(part / peak))
    return said_for


def _visible(text: str, console: Console) -> str:
    quote = "'" if console.options.ascii_only else "\N{SINGLE LEFT-POINTING ANGLE QUOTATION MARK}"
    end = "'" if console.options.ascii_only else "\N{SINGLE RIGHT-POINTING ANGLE QUOTATION MARK}"
    shown = plain(text.replace("\n", "\\n"), console)
    return f"{quote}{shown}{end}"
