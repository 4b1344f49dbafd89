"""A ranking as a self-contained piece of HTML, for notebooks and for the report page."""

import re
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING

from whence.report.beside import Beside, shared_line, spans_html
from whence.report.passages import Piece, clip, peak_of, pieces, shorten, strongest
from whence.report.pictures import picture

if TYPE_CHECKING:
    from whence.report.hits import ClassLabel, Hit, Hits

__all__ = [
    "breakable",
    "escaped",
    "folded",
    "footer",
    "hits_fragment",
    "origin",
    "shaded",
    "shared_html",
    "style",
    "whole_text",
]

_QUERY_WIDTH = 280
_PASSAGE_WIDTH = 260
# Queries beyond these start folded.
_OPEN_QUERIES = 3
# Names of so many characters fit into a line of a phone.
_WHOLE_NAME = 28
# A query of more tokens is folded beside each hit.
_SHORT_QUERY = 40
# Steps of shading; as many classes stand in page.css.
_SHADES = 8
_SIDES = (
    ("Proponents", "more weight on these raises the measurement"),
    ("Opponents", "more weight on these lowers the measurement"),
)


def hits_fragment(hits: "Hits") -> str:
    """A ranking as HTML that carries its own style and loads nothing.

    Args:
        hits: The ranking. All of its text is escaped.

    Returns:
        A `<div>` for a notebook cell or a section of a page.
    """
    queries = "".join(_query(hits, query) for query in range(len(hits.queries)))
    return f'<div class="whence">{style()}{queries}{footer(hits)}</div>'


@cache
def style() -> str:
    """The `<style>` element that fragments and pages share."""
    return f"<style>\n{files('whence.report').joinpath('page.css').read_text('utf-8')}</style>"


def _query(hits: "Hits", query: int) -> str:
    text = hits.queries[query]
    short = shorten(text, _QUERY_WIDTH)
    count = f"Query {query + 1} of {len(hits.queries)}" if len(hits.queries) > 1 else "Query"
    image = hits.query_images[query] if hits.query_images else ""
    shown = f'<div class="query-image">{picture(image)}</div>' if image else ""
    whole = "" if short == text else folded(f"Whole query, {len(text):,} characters", whole_text(escaped(text)))
    unit = f" {escape(hits.measurement_unit)}" if hits.measurement_unit else ""
    both_sides = (hits.proponents[query], hits.opponents[query])
    peak = max((abs(hit.score) for side in both_sides for hit in side), default=0.0) or 1.0
    strongest_token = peak_of(hit for side in both_sides for hit in side)
    beside = hits.beside[query] if hits.beside else None
    strongest_part = max((abs(score) for side in both_sides for hit in side for score in hit.query_scores), default=0.0)
    shading = _Shading(peak, strongest_token, hits.tokens_of(query), strongest_part or 1.0)
    tables = "".join(_table(*words, side, shading, beside) for words, side in zip(_SIDES, both_sides, strict=True))
    return (
        f'<details class="query"{" open" if query < _OPEN_QUERIES else ""}>'
        f'<summary><span class="label">{count}</span> <span class="ask" dir="auto">{escape(short)}</span></summary>'
        f'{_asked_label(hits, query)}<p class="measured">Measurement <b>{hits.measurements[query]:.4g}</b>{unit}</p>'
        f"{shown}{whole}{tables}{spans_html(beside) if beside is not None else ''}</details>"
    )


@dataclass(frozen=True)
class _Shading:
    """What all hits of a query are shaded against.

    Args:
        score: The largest score.
        token: The strongest token of a document.
        query_tokens: Texts of the query's tokens.
        query_token: The strongest part of one.
    """

    score: float
    token: float
    query_tokens: tuple[str, ...]
    query_token: float


def _table(name: str, meaning: str, side: "tuple[Hit, ...]", shading: _Shading, beside: Beside | None) -> str:
    if not side:
        return f'<p class="muted none">No {name.lower()} were asked for or found.</p>'
    rows = "".join(_row(rank, hit, shading, beside) for rank, hit in enumerate(side, start=1))
    return (
        f'<table class="hits"><caption><b>{name}</b> <span class="muted">{meaning}</span></caption>'
        '<thead><tr><th scope="col" class="rank">#</th><th scope="col" class="score">Score</th>'
        f'<th scope="col">Training example</th></tr></thead><tbody>{rows}</tbody></table>'
    )


def _row(rank: int, hit: "Hit", shading: _Shading, beside: Beside | None) -> str:
    share = min(abs(hit.score) / shading.score, 1.0) * 50
    left, kind = (50.0, "up") if hit.score >= 0 else (50.0 - share, "down")
    fill = f'<i class="{kind}" style="left:{left:.1f}%;width:{share:.1f}%"></i>'
    return (
        f'<tr><td class="rank">{rank}</td>'
        f'<td class="score"><span class="value">{hit.score:+#.4g}</span>'
        f'<span class="bar" aria-hidden="true">{fill}</span></td>'
        f"<td>{origin(hit)}{shared_html(hit, beside)}{_says_for(hit, shading)}{_example(hit, shading.token)}</td></tr>"
    )


def _says_for(hit: "Hit", shading: _Shading) -> str:
    """The query's tokens, each shaded by the part of the score that is about it."""
    if not hit.query_scores:
        return ""
    words = "".join(
        _token(text, Piece(0, len(text), score, score / shading.query_token))
        for text, score in zip(shading.query_tokens, hit.query_scores, strict=True)
    )
    line = f'<p class="says" dir="auto"><span class="muted">says for</span> {words}</p>'
    return line if len(hit.query_scores) <= _SHORT_QUERY else folded("What it says for each token of the query", line)


def origin(hit: "Hit") -> str:
    """Where a hit comes from: source, id, characters."""
    source = f'<b class="source">{breakable(hit.source)}</b> ' if hit.source else ""
    span = f' <span class="muted">characters {hit.span[0]:,} to {hit.span[1]:,}</span>' if hit.span else ""
    label = "" if hit.label is None else f" {_label(hit.label)}"
    return f'<div class="origin">{source}<code class="id">{breakable(hit.id)}</code>{span}{label}</div>'


def shared_html(hit: "Hit", beside: Beside | None) -> str:
    """What a document has in common with the answer by its words; empty if nobody looked."""
    if beside is None:
        return ""
    kind, line = shared_line(beside.hits[hit.row], hit.text, beside.num_documents)
    return f'<p class="muted shared"><b>{kind}</b>: {escape(line)}</p>'


def breakable(name: str) -> str:
    """A name, escaped, that breaks behind its separators where a line is too narrow for it, and nowhere else."""
    if len(name) <= _WHOLE_NAME:
        return escape(name)
    return "<wbr>".join(escape(part) for part in re.split(r"(?<=[/._#:-])(?=[^/._#:-])", name))


def _label(label: "ClassLabel") -> str:
    """A label, marked where the model sees another class."""
    name = f'<span class="label-name">label <b>{escape(label.label)}</b></span>'
    return f'{name} <b class="disputed">the model says {escape(label.predicted)}</b>' if label.is_disputed else name


def _asked_label(hits: "Hits", query: int) -> str:
    label = hits.label_of(query)
    return "" if label is None else f'<p class="measured">Asked about the {_label(label)}</p>'


def _example(hit: "Hit", strongest_token: float) -> str:
    shown = _text(hit, strongest_token)
    return picture(hit.image) + (shown if hit.text else "") if hit.image else shown


def _text(hit: "Hit", strongest_token: float) -> str:
    if not hit.text:
        return '<p class="muted none">The store keeps no text for this example.</p>'
    parts = pieces(hit, strongest_token)
    whole = whole_text(shaded(hit, parts))
    start, stop = strongest(hit, parts, _PASSAGE_WIDTH)
    if (start, stop) == (0, len(hit.text)):
        return whole
    before, after = "… " if start > 0 else "", " …" if stop < len(hit.text) else ""
    passage = f'<p class="passage" dir="auto">{before}{shaded(hit, clip(parts, start, stop))}{after}</p>'
    return passage + folded(f"Whole text, {len(hit.text):,} characters", whole)


def shaded(hit: "Hit", parts: "tuple[Piece, ...] | list[Piece]") -> str:
    """Pieces of a hit's text, each marked by its strength."""
    return "".join(_token(hit.text[part.start : part.stop], part) for part in parts)


def _token(text: str, part: Piece) -> str:
    step = round(abs(part.strength) * _SHADES)
    if step == 0:
        return escaped(text)
    side = "p" if part.score > 0 else "n"
    # The space before a word belongs to its token, but shading it would glue the words together.
    word = text.lstrip(" ") or text
    space = " " * (len(text) - len(word))
    return f'{space}<mark class="{side}{step}" title="{part.score:+.3g}">{escaped(word)}</mark>'


def whole_text(content: str) -> str:
    """A whole text, its line breaks kept."""
    # The newline right after <pre> is dropped by browsers, so that one of the text's own must not stand there.
    return f'<pre class="whole" dir="auto">\n{content}</pre>'


def escaped(text: str) -> str:
    """Text of users, made harmless."""
    # A bare carriage return would reach the reader as a newline.
    return escape(text).replace("\r", "&#13;")


def folded(summary: str, content: str) -> str:
    """Content behind a summary, opened by mouse or keyboard."""
    return f'<details class="more"><summary>{summary}</summary>{content}</details>'


def footer(hits: "Hits") -> str:
    """What the numbers mean."""
    facts = [("Score in", hits.unit), ("Method", hits.method), ("Searched", f"{hits.num_examples:,} examples")]
    facts += [("Note", note) for note in hits.notes]
    rows = "".join(f"<div><dt>{name}</dt><dd>{escape(text)}</dd></div>" for name, text in facts if text)
    if any(hit.token_scores for side in (*hits.proponents, *hits.opponents) for hit in side):
        rows += (
            '<div><dt>Shading</dt><dd><mark class="p6">raises</mark> <mark class="n6">lowers</mark> the measurement: '
            "each token's part of its example's score, against the strongest token of all examples of the answer</dd></div>"
        )
    return f'<dl class="facts">{rows}</dl>'
