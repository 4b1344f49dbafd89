"""An answer to "why did it say this?" in the terminal: the documents on both sides, and where each score comes from."""

from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from whence.report.passages import peak_of
from whence.report.terminal import footer, heading, passage, plain, shared_text, spans_text, strength_style
from whence.terminal import show, stdout
from whence.why.html import TOKEN_DEFINITION

if TYPE_CHECKING:
    from whence.report.hits import Hit
    from whence.why.answer import Why

__all__ = ["print_why"]

_TOKENS, _PAIRS, _LAYERS = 3, 3, 4
# Characters of a document's text, and columns beside it.
_PASSAGE_WIDTH, _MARGIN = 160, 16
_SIDES = (
    ("proponents", "more weight raises the measurement"),
    ("opponents", "more weight lowers the measurement"),
)


def print_why(why: "Why", *, layers: bool = False) -> None:
    """Print the tokens of the completion, and the documents on both sides: their text, what they say for each token, the strongest pairs.

    Args:
        why: The answer.
        layers: Whether to print through which layers each score comes, too.
    """
    console = stdout()
    line = Text("completion ", style="dim")
    explained = set(why.asked)
    for number, (text, value) in enumerate(zip(why.completion, why.log_probabilities, strict=True), start=1):
        line.append(f" {number}", style="dim")
        line.append(_visible(text, console), style="bold" if number in explained else "")
        line.append(f" {value:.1f}", style="dim")
    if why.foil is not None:
        line.append("\nand not ", style="dim")
        for number, text in enumerate(why.foil.tokens, start=len(why.completion) + 1):
            line.append(f" {number}", style="dim")
            line.append(_visible(text, console), style="bold" if number in explained else "")
            line.append(f" {why.foil.log_probabilities[number - len(why.completion) - 1]:.1f}", style="dim")
    note = Text("number, token, log-probability in nats; --token NUMBER asks about one of them", style="dim")
    show(console, heading(why.hits, 0, console), line, note, _documents(why, layers, console))
    if why.hits.beside:
        show(console, spans_text(why.hits.beside[0], console))
    show(console, Text(TOKEN_DEFINITION, style="dim"), footer(why.hits, console))


def _documents(why: "Why", layers: bool, console: Console) -> Table:
    table = Table(box=box.HORIZONTALS, expand=True, header_style="dim", border_style="dim")
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("document, and the strongest pairs: completion, document", ratio=1, overflow="fold")
    sides = (why.hits.proponents[0], why.hits.opponents[0])
    strongest_token = peak_of((*sides[0], *sides[1]))
    strongest_part = max((float(parts.scores_AT.sum(1).abs().max()) for parts in why.parts.values()), default=0.0) or 1.0
    for (name, meaning), side in zip(_SIDES, sides, strict=True):
        if side:
            table.add_row("", Text.assemble((name, "bold"), (f": {meaning}", "dim")))
        for hit in side:
            style = "deep_sky_blue2" if hit.score >= 0 else "orange1"
            beside = [shared_text(hit, why.hits.beside[0], console)] if why.hits.beside else []
            lines = [
                _origin(hit, console),
                *beside,
                *_text(hit, strongest_token, console),
                _says_for(why, hit, strongest_part, console),
            ]
            lines += [*_pairs(why, hit, console), *(_layers(why, hit, console) if layers else [])]
            table.add_row(Text(f"{hit.score:+#.4g}", style=style), Group(*lines))
        table.add_section()
    return table


def _origin(hit: "Hit", console: Console) -> Text:
    return Text.assemble((plain(hit.source, console), "bold"), "  " if hit.source else "", (plain(hit.id, console), "dim"))


def _text(hit: "Hit", peak: float, console: Console) -> list[Text]:
    width = max(60, min(_PASSAGE_WIDTH, 2 * (console.width - _MARGIN)))
    return [passage(hit, width, peak, console)] if hit.text else []


def _says_for(why: "Why", hit: "Hit", peak: float, console: Console) -> Text:
    """The tokens of the completion that the document does most to, strongest first, shaded by it. All of them are on the page."""
    line = Text("says for: ", style="dim")
    parts = zip(why.asked_tokens, why.parts[hit.id].scores_AT.sum(1).tolist(), strict=True)
    for number, (text, part) in enumerate(sorted(parts, key=lambda pair: -abs(pair[1]))[:_TOKENS]):
        line.append("  " if number else "")
        line.append(_visible(text, console), style=f"not dim {strength_style(part / peak)}".strip())
        line.append(f" {part:+.2g}", style="not dim")
    return line


def _pairs(why: "Why", hit: "Hit", console: Console) -> list[Text]:
    parts = why.parts[hit.id]
    return [
        Text.assemble(
            ("pair: ", "dim"),
            f"{_visible(why.asked_tokens[row], console)} {_visible(parts.tokens[column], console)} {score:+.2g}",
        )
        for row, column, score in parts.strongest(_PAIRS)
    ]


def _layers(why: "Why", hit: "Hit", console: Console) -> list[Text]:
    parts, lines = why.parts[hit.id], []
    for kind, by_name in (("layer", parts.layers), ("module", parts.modules), ("head", parts.heads)):
        order = sorted(by_name.items(), key=lambda item: -abs(item[1]))[:_LAYERS]
        lines += [Text.assemble((f"{kind}: ", "dim"), f"{plain(name, console)} {score:+.2g}") for name, score in order]
    return lines


def _visible(text: str, console: Console) -> str:
    quote = "'" if console.options.ascii_only else "\N{SINGLE LEFT-POINTING ANGLE QUOTATION MARK}"
    end = "'" if console.options.ascii_only else "\N{SINGLE RIGHT-POINTING ANGLE QUOTATION MARK}"
    shown = plain(text.replace("\n", "\\n"), console)
    return f"{quote}{shown}{end}"
