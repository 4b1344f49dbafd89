"""Which part of a long text to show first, and how strongly to shade each token."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from whence.report.hits import Hit

__all__ = ["Piece", "clip", "peak_of", "pieces", "question_title", "shorten", "strongest"]

# A passage may start this many characters later, or stop earlier, to keep words whole.
_WORD = 24
# Characters of a question in the tab of its page.
_TITLE = 90


@dataclass(frozen=True)
class Piece:
    """A stretch of a hit's text with one score. The pieces of a hit add up to its whole text.

    Args:
        start: First character.
        stop: One past the last character.
        score: Score of the token there; 0 between tokens.
        strength: Score as a share of the strongest token of all that is shown together, from -1 to 1.
    """

    start: int
    stop: int
    score: float = 0.0
    strength: float = 0.0


def pieces(hit: "Hit", peak: float | None = None) -> tuple[Piece, ...]:
    """The whole text of a hit, cut at its tokens.

    Tokens without characters of their own take no piece: a begin-of-text mark is left out, the later bytes of one
    character count for the piece that holds it.

    Args:
        hit: With or without token scores.
        peak: Score of full strength, see `peak_of`; None for the strongest token of this text.

    Returns:
        In the order of the text, without holes or overlaps; empty for an empty text.
    """
    cut: list[tuple[int, int, float]] = []
    at = 0
    for (first, last), score in zip(hit.token_spans, hit.token_scores, strict=True) if hit.token_scores else ():
        start, stop = max(first, at), min(last, len(hit.text))
        score = score if isfinite(score) else 0.0
        if start < stop:
            if at < start:
                cut.append((at, start, 0.0))
            cut.append((start, stop, score))
            at = stop
        elif first < last and cut:
            cut[-1] = (*cut[-1][:2], cut[-1][2] + score)
    if at < len(hit.text):
        cut.append((at, len(hit.text), 0.0))
    if peak is None:
        peak = max((abs(score) for _, _, score in cut), default=0.0)
    peak = peak or 1.0
    return tuple(Piece(start, stop, score, max(-1.0, min(1.0, score / peak))) for start, stop, score in cut)


def peak_of(hits: Iterable["Hit"]) -> float:
    """Size of the strongest token of an answer, so that all of its documents are shaded alike; 0 without token scores.

    A document that hardly matters is hardly shaded, whichever of its tokens matters most to it.
    """
    return max((abs(part.score) for hit in hits for part in pieces(hit)), default=0.0)


def strongest(hit: "Hit", parts: tuple[Piece, ...], width: int) -> tuple[int, int]:
    """The passage that speaks most for the hit's own side, about `width` characters of the text.

    The passage is the one whose tokens add up to most in the direction of the hit's score. A token counts less the
    further it is from the middle, so that the strongest words stand there.

    Args:
        hit: Whose text to cut.
        parts: Its pieces.
        width: Characters to show at most.

    Returns:
        First character and one past the last; the start of the text if no token has a score.
    """
    text = hit.text
    if len(text) <= width:
        return 0, len(text)
    middle = _middle(parts, width / 2, 1.0 if hit.score >= 0 else -1.0)
    start = min(max(int(middle - width / 2), 0), len(text) - width)
    stop = start + width
    if start > 0 and not text[start - 1].isspace():
        start = next((i + 1 for i in range(start, start + min(_WORD, width // 4)) if text[i].isspace()), start)
    if stop < len(text) and not text[stop].isspace():
        stop = next((i for i in range(stop - 1, stop - min(_WORD, width // 4), -1) if text[i].isspace()), stop)
    return start, stop


def clip(parts: tuple[Piece, ...], start: int, stop: int) -> list[Piece]:
    """The pieces between two characters, the outer ones cut there."""
    inside = (part for part in parts if part.start < stop and start < part.stop)
    return [Piece(max(part.start, start), min(part.stop, stop), part.score, part.strength) for part in inside]


def shorten(text: str, width: int) -> str:
    r"""One line of at most `width` characters.

    >>> shorten("The capital of\n France is Paris", 16)
    'The capital of …'
    """
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1].rsplit(" ", 1)[0] + " …"


def question_title(questions: Sequence[str]) -> str:
    """What the tab of an answer's page says: the question, and how many more there are.

    >>> question_title(["The capital of France is Paris", "b", "c"])
    'The capital of France is Paris and 2 more - whence'
    """
    more = f" and {len(questions) - 1:,} more" if len(questions) > 1 else ""
    return f"{shorten(questions[0], _TITLE)}{more} - whence"


def _middle(parts: tuple[Piece, ...], reach: float, direction: float) -> float:
    scored = [((part.start + part.stop) / 2, direction * part.score) for part in parts if part.score]
    best, middle, first = float("-inf"), 0.0, 0
    for centre, _ in scored:
        while scored[first][0] < centre - reach:
            first += 1
        total = 0.0
        for index in range(first, len(scored)):
            other, score = scored[index]
            if other > centre + reach:
                break
            total += score * (1 - abs(other - centre) / reach)
        if total > best:
            best, middle = total, centre
    return middle
