"""Which texts nearly repeat an earlier one, by the word triples that they share: exact, without chance, the same every time."""

import re
from collections import Counter
from collections.abc import Collection

from whence.progress import meter

__all__ = ["LEAST_SHARED", "leaders_of"]

LEAST_SHARED = 0.3
"""Part of the word triples of two texts together that both have, from which on they count as one (Jaccard; Broder 1997)."""

_WORDS = re.compile(r"\w+")
_TRIPLE = 3
# A triple in more texts than this, no two of which are alike, is a phrase of the language; copies never get there, since they have a leader.
_COMMON = 1000


def leaders_of(texts: Collection[str], *, quiet: bool = False) -> list[int]:
    """The first text that each one nearly repeats; its own place where it repeats none.

    Every text is held against earlier leaders only, and joins the one of which it shares most; so all of a set are near their leader, and
    chains do not grow. Case, punctuation and white space do not count.

    >>> leaders_of(["a cat sat on the mat today", "something else altogether now", "A cat sat on the mat, today!"])
    [0, 1, 0]

    Args:
        texts: In order.
        quiet: No progress on stderr.

    Returns:
        One place per text, not above its own. Texts without a word lead themselves.
    """
    leaders: list[int] = []
    sizes: dict[int, int] = {}
    leaders_with: dict[tuple[str, ...], list[int]] = {}
    with meter("near-duplicates", len(texts), quiet=quiet) as progress:
        for number, text in enumerate(texts):
            triples = _triples(text)
            shared = Counter(
                leader for triple in triples if len(holders := leaders_with.get(triple, ())) <= _COMMON for leader in holders
            )
            best, part = number, 0.0
            for leader, count in sorted(shared.items()):
                similarity = count / (len(triples) + sizes[leader] - count)
                if similarity >= LEAST_SHARED and similarity > part:
                    best, part = leader, similarity
            leaders.append(best)
            if best == number:
                sizes[number] = len(triples)
                for triple in triples:
                    leaders_with.setdefault(triple, []).append(number)
            progress.advance()
    return leaders


def _triples(text: str) -> set[tuple[str, ...]]:
    """Three words in a row, each once; of a shorter text all of its words."""
    words = _WORDS.findall(text.lower())
    if not words:
        return set()
    return {tuple(words[start : start + _TRIPLE]) for start in range(max(1, len(words) - _TRIPLE + 1))}
