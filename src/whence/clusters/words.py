"""Words that set a part of a corpus apart."""

import math
import re
from collections import Counter
from collections.abc import Sequence

__all__ = ["distinctive_words", "words_of"]

# Strength of the prior, in words: what a word that hardly occurs has to be shown against.
_PRIOR_WORDS = 100.0
# One in 40 words of noise would pass 2.
_LEAST_Z = 2.0


def words_of(text: str) -> set[str]:
    """The words of a text, in lower case; numbers and single letters left out.

    >>> sorted(words_of("The 2 cats: a cat_walk"))
    ['cat_walk', 'cats', 'the']
    """
    return set(re.findall(r"[^\W\d]\w+", text.lower()))


def distinctive_words(counts: Sequence[Counter[str]], limit: int) -> list[list[tuple[str, float]]]:
    """For each part the words that it has more often than all other parts together.

    The log-odds ratio of a word under a Dirichlet prior in proportion to the whole corpus, over its standard error (Monroe, Colaresi and
    Quinn 2008, "Fightin' Words"): neither common words that every part has nor rare ones that chance put into one come out on top.

    Args:
        counts: Per part, in how many of its texts each word is; a text that repeats a word says it once.
        limit: Words of each part at most.

    Returns:
        Per part words with their z, highest first; only those above 2.
    """
    everywhere = sum(counts, Counter())
    total = sum(everywhere.values())
    words: list[list[tuple[str, float]]] = []
    if len(everywhere) < 2:  # of a single word there are no odds against others
        return [[] for _ in counts]
    for part in counts:
        inside, outside = sum(part.values()), total - sum(part.values())
        scored = []
        for word, count in part.items():
            prior = _PRIOR_WORDS * everywhere[word] / total
            here, there = count + prior, everywhere[word] - count + prior
            odds_here, odds_there = here / (inside + _PRIOR_WORDS - here), there / (outside + _PRIOR_WORDS - there)
            z = (math.log(odds_here) - math.log(odds_there)) / math.sqrt(1 / here + 1 / there)
            if z > _LEAST_Z:
                scored.append((word, z))
        words.append(sorted(scored, key=lambda pair: (-pair[1], pair[0]))[:limit])
    return words
