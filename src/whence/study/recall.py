"""Whether the strongest documents say what was sought: the answer, and the steps to it.

Axes: Q queries, K documents of a tail, N documents.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whence.evaluate.statistics import Interval, mean_interval
from whence.score import WordIndex
from whence.study.kept_scores import Corpus
from whence.study.questions import Questions

__all__ = ["RECALL_HEADER", "Recall", "first_by_words", "holders_of", "recall_of"]

RECALL_HEADER = ("reading", "set", "sought", "queries", "in the corpus", "in the top k", "BM25", "random")


@dataclass(frozen=True)
class Recall:
    """How much of what was sought is in the top of the queries of a set, mean over queries with a t-interval.

    Args:
        reading: Name of the reading.
        set: Name of the set.
        kind: "answer" or "step".
        queries: Queries of the set that have such a thing.
        in_corpus: The share that any document says.
        top: The share that one of the k documents of highest influence says.
        bm25: The share that one of the first k by BM25 says.
        random: The expected share among k documents drawn at random.
    """

    reading: str
    set: str
    kind: str
    queries: int
    in_corpus: float
    top: Interval
    bm25: Interval
    random: float

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return {
            "reading": self.reading, "set": self.set, "kind": self.kind, "queries": self.queries, "in_corpus": self.in_corpus,
            "top": self.top.to_dict(), "bm25": self.bm25.to_dict(), "random": self.random,
        }  # fmt: skip

    def cells(self) -> tuple[str, ...]:
        """Text, to go under `RECALL_HEADER`."""
        means = (value.brief for value in (self.top, self.bm25))
        return (self.reading, self.set, self.kind, str(self.queries), f"{self.in_corpus:.0%}", *means, f"{self.random:.2g}")


def holders_of(corpus: Corpus, questions: Questions) -> list[list[set[int]]]:
    """Rows of the documents that say each thing sought, by query; one pass over the texts."""
    holders: list[list[set[int]]] = [[set() for _ in sought] for sought in questions.sought]
    for row, document in enumerate(corpus.documents()):
        text = str(document.get("text", ""))
        for query, sought in enumerate(questions.sought):
            for number, each in enumerate(sought):
                if each.pattern.search(text):
                    holders[query][number].add(row)
    return holders


def first_by_words(questions: Questions, index: WordIndex, k: int) -> list[set[int]]:
    """Rows of the first k documents by BM25, for each query of which something is sought; no rows for the others."""
    return [
        set(np.argsort(-index.bm25(example.text), kind="stable")[:k].tolist()) if sought else set()
        for example, sought in zip(questions.queries.examples, questions.sought, strict=True)
    ]


def recall_of(
    reading: str,
    high_QK: Tensor,
    questions: Questions,
    holders: Sequence[Sequence[set[int]]],
    by_words: Sequence[set[int]],
    documents: int,
) -> list[Recall]:
    """Recall in the top tails of one reading, by set and kind of thing sought.

    Args:
        reading: Its name.
        high_QK: Rows of the documents of highest influence.
        questions: The queries.
        holders: Of `holders_of`.
        by_words: Of `first_by_words`, as many documents as a tail has.
        documents: Of the corpus.

    Returns:
        One for each set and kind that has some.
    """
    k = high_QK.shape[1]
    recalls: list[Recall] = []
    for name, rows in questions.rows_of_set.items():
        for kind in ("answer", "step"):
            shares: dict[int, tuple[float, ...]] = {}
            for query in rows:
                some = [
                    each for each, sought in zip(holders[query], questions.sought[query], strict=True) if sought.kind == kind
                ]
                if some:
                    top, first = set(high_QK[query].tolist()), by_words[query]
                    shares[query] = tuple(
                        sum(values) / len(some)
                        for values in (
                            [bool(each) for each in some],
                            [bool(each & top) for each in some],
                            [bool(each & first) for each in some],
                            [_by_chance(len(each), k, documents) for each in some],
                        )
                    )
            if shares:
                means = torch.tensor(list(shares.values()), dtype=torch.float64)
                recalls.append(
                    Recall(
                        reading, name, kind, len(shares), float(means[:, 0].mean()), mean_interval(means[:, 1]),
                        mean_interval(means[:, 2]), float(means[:, 3].mean()),
                    )
                )  # fmt: skip
    return recalls


def _by_chance(holders: int, k: int, documents: int) -> float:
    """Probability that k documents without repetition hold one of so many: 1 - C(N - n, k) / C(N, k)."""
    return 1.0 - math.prod((documents - holders - drawn) / (documents - drawn) for drawn in range(min(k, documents)))
