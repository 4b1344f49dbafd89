"""Beside an answer: what of it is copied from the corpus and what is alike by words."""

import json
from pathlib import Path

from whence.data import Dataset
from whence.pipeline.stored.prepared import hit_of
from whence.report import Hit, Hits, beside_hits
from whence.score import WordIndex, word_index
from whence.store import Store

__all__ = ["store_words", "with_words"]


def with_words(
    hits: Hits, corpus: Store | Dataset, folder: str | Path, *, completions: list[tuple[str, str]] | None = None
) -> Hits:
    """An answer with its second column: its runs of words that stand in the corpus, and BM25.

    What is copied need not be what the model learned an answer from, and what it learned it from need not share a word with it: hits are said
    to be copied, related or only influential. Words are compared without case and marks, in any language that writes spaces between them.

    Args:
        hits: The answer, of `whence.query` or `whence.why.why`.
        corpus: What was asked: the store, or the training data as the task prepared it; with texts.
        folder: Where the index of the corpus's words is kept; it is made if it is not there, see `whence.score.word_index`.
        completions: Prompt and completion of each query; None takes them from its record.

    Returns:
        The same answer with `beside` for each query.

    >>> with_words(whence.query(store, task, ["a cat sat"]), store, "words").show()  # doctest: +SKIP
    """
    if isinstance(corpus, Store):
        store = corpus
        return beside_hits(hits, store_words(store, folder), lambda row: hit_of(store, row, 0.0), completions)
    examples = corpus.examples
    index = word_index((example.text for example in examples), folder, identity=corpus.fingerprint)
    return beside_hits(
        hits, index, lambda row: Hit(examples[row].id, row, 0.0, examples[row].source, examples[row].text), completions
    )


def store_words(store: Store, folder: str | Path) -> WordIndex:
    """The words of a store's texts, without those of deleted rows.

    Args:
        store: The store.
        folder: Where they are kept.
    """
    identity = json.dumps([store.digest, sorted(store.deleted.items())])
    return word_index((example.get("text", "") for example in store.examples()), folder, identity=identity)
