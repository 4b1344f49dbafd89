"""The page of a mask file: the documents at the top with their marked tokens, and which tokens are marked most."""

from collections import Counter
from html import escape
from pathlib import Path

from whence.data import Example
from whence.guide.choose_tokens import TokenSelection
from whence.guide.marks import Marked, Marks
from whence.guide.token_scores import TokenScores
from whence.report import table_section, write_page

__all__ = ["write_guide_page"]

_DOCUMENTS = 40
_TOKENS = 20


def write_guide_page(path: Path, scores: TokenScores, selection: TokenSelection, marks: Marks) -> Path:
    """Write the page.

    Args:
        path: The file.
        scores: Of all tokens.
        selection: What was chosen.
        marks: The same as it is written to the mask file.

    Returns:
        The path written.
    """
    examples = {row: scores.train.examples[row] for row in selection.marked}
    shown = list(examples.values())[:_DOCUMENTS]
    documents = "".join(_document(number, example, marks.examples[example.id]) for number, example in enumerate(shown, 1))
    share = len(marks) / selection.scored
    facts = table_section(
        ["", ""],
        [
            ["training examples", f"{len(scores.train):,}"],
            ["scored tokens", f"{selection.scored:,}"],
            ["marked tokens", f"{len(marks):,} ({share:.2%}), in {len(marks.examples):,} examples"],
            ["threshold", f"{selection.threshold:.4g}"],
            ["quantile, window, budget", ", ".join(f"{marks.about[name]:g}" for name in ("quantile", "window", "budget"))],
            ["why no more are marked", selection.stopped],
            ["method", scores.method],
            *[["note", note] for note in scores.notes],
        ],
    )
    return write_page(
        path,
        "Which training tokens does the behaviour come from?",
        [
            (f"The first {len(shown)} of {len(marks.examples):,} documents", f'<div class="whence">{documents}</div>'),
            ("Tokens marked most often", _frequent(list(examples.values()), marks)),
            ("How they were found", facts),
        ],
        intro=f"{selection.stopped[0].upper()}{selection.stopped[1:]}. Marked are {len(marks):,} of {selection.scored:,} tokens: training "
        "on them raises the harmful completions over the safe ones. Read some before you train with them: marks on harmless words say "
        "that the two sets of queries differ in more than the behaviour.",
    )


def _document(number: int, example: Example, marked: Marked) -> str:
    tokens = f"{marked.above:,} tokens above the threshold · {len(marked.positions):,} of {marked.length:,} marked"
    name = f'<b class="source">{number}</b> <code class="id">{escape(example.id)}</code>'
    head = f'<div class="query"><div class="origin">{name} <span class="muted">rank {marked.rank:.3f} · {tokens}</span></div>'
    return f'{head}<pre class="whole" dir="auto">\n{_text(example, marked)}</pre></div>'


def _text(example: Example, marked: Marked) -> str:
    if example.token_spans is None:
        return f'<span class="muted">tokens {", ".join(map(str, marked.positions))}; their text is not known</span>'
    parts, at, text = [], 0, example.text
    for position in marked.positions:
        start, stop = (int(edge) for edge in example.token_spans[position])
        start = max(start, at)
        # The space before a word belongs to its token, but shading it would glue the words together.
        start += len(text[start:stop]) - len(text[start:stop].lstrip(" "))
        if stop > start:  # the later bytes of one character have its span again
            parts += [escape(text[at:start]), f'<mark class="n5">{escape(text[start:stop])}</mark>']
            at = stop
    return "".join([*parts, escape(text[at:])]).replace("\r", "&#13;")


def _frequent(examples: list[Example], marks: Marks) -> str:
    counts: Counter[str] = Counter()
    for example in examples:
        marked = marks.examples[example.id]
        for position, token in zip(marked.positions, marked.tokens, strict=True):
            start, stop = (0, 0) if example.token_spans is None else example.token_spans[position]
            counts[repr(example.text[start:stop])[1:-1] if stop > start else f"token {token}"] += 1
    return table_section(["token", "times marked"], [[text, count] for text, count in counts.most_common(_TOKENS)])
