"""An answer to "why did it say this?" as HTML: the text behind each token of the completion, and the heat map over both."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import TYPE_CHECKING

from whence.report.beside import spans_html
from whence.report.html import escaped, folded, footer, origin, shaded, shared_html, style, whole_text
from whence.report.passages import clip, peak_of, pieces, shorten, strongest

if TYPE_CHECKING:
    from whence.report.hits import Hit
    from whence.why.answer import DocumentParts, Why

__all__ = ["TOKEN_DEFINITION", "why_fragment"]

TOKEN_DEFINITION = (
    "A document token's part is that of the position where the model had to predict it: all of the document's loss that flows through that "
    "position, the loss of this token and, through attention, of later ones. Norm scales and lone biases have no positions; their part is "
    "spread evenly."
)
_PROMPT_WIDTH = 400
# What a completion token's own view shows of the document.
_PASSAGE_WIDTH = 700
# Documents beyond these start folded.
_OPEN = 2
_CELL, _ROW = 9, 20
# Cells fainter than this share of the strongest are left out of the drawing.
_FAINTEST = 1 / 32
_LAYERS = 12
_SIDES = (
    ("Proponents", "more weight on these raises the measurement"),
    ("Opponents", "more weight on these lowers the measurement"),
)


def why_fragment(why: "Why") -> str:
    """The answer as HTML that carries its own style, loads nothing and runs nothing.

    The tokens of the completion are radio buttons, so that the arrow keys walk through them.

    Args:
        why: The answer. All of its text is escaped.

    Returns:
        A `<div>` for a notebook cell or a section of a page.
    """
    hits, peaks = why.hits, _Peaks.of(why)
    parts = []
    for (name, meaning), side in zip(_SIDES, (hits.proponents[0], hits.opponents[0]), strict=True):
        heading = f'<p class="side"><b>{name}</b> <span class="muted">{meaning}</span></p>'
        none = f'<p class="muted none">No {name.lower()} were asked for or found.</p>'
        documents = "".join(_document(why, hit, peaks, number < _OPEN) for number, hit in enumerate(side))
        parts.append(heading + (documents or none))
    words = spans_html(hits.beside[0]) if hits.beside else ""
    definition = f'<dl class="facts"><div><dt>Tokens</dt><dd>{escape(TOKEN_DEFINITION)}</dd></div></dl>'
    return f'<div class="whence why">{style()}{_head(why)}{"".join(parts)}{words}{footer(hits)}{definition}</div>'


def _head(why: "Why") -> str:
    numbers = set(why.asked)
    tokens = "".join(
        f'<li{" class=asked" if number in numbers else ""}><span class="muted">{number}</span> <code>{_visible(text)}</code> {value:.2f}</li>'
        for number, (text, value) in enumerate(zip(why.completion, why.log_probabilities, strict=True), start=1)
    )
    words = "".join(
        f"<b>{escaped(text)}</b>" if number in numbers else escaped(text) for number, text in enumerate(why.completion, start=1)
    )
    unit = escape(why.hits.measurement_unit)
    foil = (
        ""
        if why.foil is None
        else f'<p class="ask" dir="auto"><span class="muted">and not</span> {escaped("".join(why.foil.tokens))}</p>'
    )
    return (
        f'<p class="ask" dir="auto"><span class="muted">{escape(shorten(why.prompt, _PROMPT_WIDTH))}</span>'
        f'<span class="said">{words}</span></p>{foil}'
        f'<p class="measured">Measurement of {_question(why)} <b>{why.hits.measurements[0]:.4g}</b> {unit}</p>'
        + folded(f"Its {len(why.completion)} tokens and their log-probabilities", f'<ol class="tokens">{tokens}</ol>')
    )


def _question(why: "Why") -> str:
    if len(why.asked) == 1 < len(why.completion) + (0 if why.foil is None else len(why.foil.tokens)):
        return f"token {why.asked[0]} alone"
    return "the whole completion" if why.foil is None else "the completion less its foil"


@dataclass(frozen=True)
class _Peaks:
    """The strongest part in each view over all documents, so that they are shaded alike.

    Args:
        whole: Of a token's part of its document's score.
        tokens: Of its part of each completion token's.
    """

    whole: float
    tokens: tuple[float, ...]

    @classmethod
    def of(cls, why: "Why") -> "_Peaks":
        """Those of an answer."""
        sizes = [parts.scores_AT.abs() for parts in why.parts.values() if parts.scores_AT.numel()]
        tokens = tuple(max((float(size[row].max()) for size in sizes), default=0.0) for row in range(len(why.asked)))
        return cls(peak_of((*why.hits.proponents[0], *why.hits.opponents[0])), tokens)


def _document(why: "Why", hit: "Hit", peaks: _Peaks, is_open: bool) -> str:
    parts = why.parts[hit.id]
    name = (
        "w"
        + hashlib.sha256(
            repr((why.prompt, why.completion, *([] if why.foil is None else [why.foil.tokens]), why.asked, hit.id)).encode()
        ).hexdigest()[:12]
    )
    views = [
        (
            "all" if len(why.asked) > 1 else _visible(why.asked_tokens[0]),
            _question(why),
            hit.score,
            _view(hit, hit.token_scores, peaks.whole, whole=True),
        )
    ]
    if len(why.asked) > 1:
        for row, (number, text) in enumerate(zip(why.asked, why.asked_tokens, strict=True)):
            scores = tuple(parts.scores_AT[row].tolist())
            views.append((_visible(text), f"token {number}", sum(scores), _view(hit, scores, peaks.tokens[row], whole=False)))
    choices = "".join(
        f'<input type="radio" name="{name}" id="{name}-{index}"{" checked" if index == 0 else ""}>'
        f'<label for="{name}-{index}" title="{title} {score:+.3g}">{label}</label>'
        f'<div class="view"><p class="muted">Part of {title}: <b>{score:+#.4g}</b></p>{content}</div>'
        for index, (label, title, score, content) in enumerate(views)
    )
    return (
        f'<details class="query"{" open" if is_open else ""}><summary><span class="value">{hit.score:+#.4g}</span> {origin(hit)}</summary>'
        f'{shared_html(hit, why.hits.beside[0] if why.hits.beside else None)}<fieldset class="views">'
        f'<legend class="muted">What it says for</legend>{choices}</fieldset>'
        + folded("Heat map, completion by document", _heat(why, parts, max(peaks.tokens)))
        + folded("By layer", _layers("layer", parts.layers))
        + folded("By module", _layers("module", parts.modules))
        + (folded("By attention head", _layers("head", parts.heads)) if parts.heads else "")
        + "</details>"
    )


def _view(hit: "Hit", scores: Sequence[float], peak: float, *, whole: bool) -> str:
    """The document's text with each token's part of one measurement."""
    shown = replace(hit, token_scores=tuple(scores), score=sum(scores))
    passages = pieces(shown, peak)
    if whole:
        return whole_text(shaded(shown, passages))
    start, stop = strongest(shown, passages, _PASSAGE_WIDTH)
    before, after = "… " if start > 0 else "", " …" if stop < len(hit.text) else ""
    return f'<p class="passage" dir="auto">{before}{shaded(shown, clip(passages, start, stop))}{after}</p>'


def _heat(why: "Why", parts: "DocumentParts", peak: float) -> str:
    rows, columns = parts.scores_AT.shape
    peak = peak or 1.0
    cells = []
    for row, line in enumerate(parts.scores_AT.tolist()):
        for column, score in enumerate(line):
            share = abs(score) / peak
            if share >= _FAINTEST:
                label = f"{_visible(why.asked_tokens[row])} from {_visible(parts.tokens[column])}: {score:+.3g}"
                cells.append(
                    f'<rect class="{"up" if score > 0 else "down"}" x="{column * _CELL}" y="{row * _ROW}" width="{_CELL}" '
                    f'height="{_ROW - 2}" fill-opacity="{share:.2f}"><title>{label}</title></rect>'
                )
    names = "".join(f"<li><code>{_visible(text)}</code></li>" for text in why.asked_tokens)
    pairs = "".join(
        f'<tr><td><span class="muted">{why.asked[row]}</span> <code>{_visible(why.asked_tokens[row])}</code></td>'
        f'<td><span class="muted">{column + 1}</span> <code>{_visible(parts.tokens[column])}</code></td>'
        f'<td class="number">{score:+.3g}</td></tr>'
        for row, column, score in parts.strongest(10)
    )
    width, height = columns * _CELL, rows * _ROW
    return (
        '<p class="muted">Across: tokens of the document, in order. Down: tokens of the completion. Blue raises, orange lowers. '
        "Rows add up to the part of a completion token, columns to the shading of the text.</p>"
        f'<div class="heat"><ol>{names}</ol><div class="scroll" tabindex="0" role="region" aria-label="heat map">'
        f'<svg width="{width}" height="{height}" role="img" aria-label="parts of {rows} by {columns} pairs; the strongest follow as a table">'
        f"{''.join(cells)}</svg></div></div>"
        '<table class="pairs"><thead><tr><th scope="col">completion</th><th scope="col">document</th><th scope="col" class="number">part</th>'
        f"</tr></thead><tbody>{pairs}</tbody></table>"
    )


def _layers(kind: str, by_name: Mapping[str, float]) -> str:
    order = sorted(by_name.items(), key=lambda item: -abs(item[1]))
    rest = sum(score for _, score in order[_LAYERS:])
    shown = order[:_LAYERS] + ([(f"{len(order) - _LAYERS} others", rest)] if len(order) > _LAYERS else [])
    rows = "".join(
        f'<tr><td><code>{escape(name)}</code></td><td class="number">{score:+.3g}</td></tr>' for name, score in shown
    )
    head = f'<thead><tr><th scope="col">{kind}</th><th scope="col" class="number">part</th></tr></thead>'
    return f'<table class="pairs">{head}<tbody>{rows}</tbody></table>'


def _visible(text: str) -> str:
    """A token with its spaces and line breaks to be seen."""
    return escape(text.replace(" ", "\N{OPEN BOX}").replace("\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}")) or "(no text)"
