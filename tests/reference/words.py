"""Words in common, by trying everything."""

import re


def words(text):
    return [word.lower() for word in re.findall(r"\w+", text)]


def occurrences(run, documents):
    """Row of the document of each place where a run of words stands."""
    size = len(run)
    return [
        row
        for row, document in enumerate(documents)
        for at in range(len(document) - size + 1)
        if document[at : at + size] == run
    ]


def longest_runs(text, documents, least):
    """Every run of the text's words that stands in a document, is as long as it can be, and is not inside of another one.

    Returns first word, number of words, occurrences, and the different rows.
    """
    found = []
    for start in range(len(text)):
        length = 0
        while start + length < len(text) and occurrences(text[start : start + length + 1], documents):
            length += 1
        if length >= least and not any(a <= start and start + length <= a + n for a, n, _, _ in found):
            rows = occurrences(text[start : start + length], documents)
            found.append((start, length, len(rows), sorted(set(rows))))
    return found


def shared(first, second):
    """Length of the longest run of two lists of words."""
    runs = [first[a:b] for a in range(len(first)) for b in range(a + 1, len(first) + 1)]
    return max((len(run) for run in runs if occurrences(run, [second])), default=0)
