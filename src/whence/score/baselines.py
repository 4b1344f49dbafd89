"""Scores that any method has to beat: chance, the example's own loss, shared words.

Axes: Q queries, N training examples, B batch.
"""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from whence.capture import frozen, in_halves
from whence.data import Dataset, Example, batches
from whence.errors import BadInput, Unsupported
from whence.progress import meter
from whence.records import ScoreTable
from whence.score.words import bm25_weights, words_of
from whence.tasks import AbstractTask

__all__ = ["bm25", "loss_scores", "random_scores", "tf_idf"]


def random_scores(train: Dataset, queries: Dataset, *, seed: int = 0) -> ScoreTable:
    """Independent standard normal scores: what no information looks like.

    Args:
        train: The training examples.
        queries: The queries.
        seed: The same seed gives the same scores.

    Returns:
        Scores without a meaning.
    """
    generator = torch.Generator().manual_seed(seed)
    scores_QN = torch.randn(len(queries), len(train), generator=generator)
    return ScoreTable(scores_QN, queries.ids, train.ids, "standard normal draws", f"random (seed {seed})", values="random")


def loss_scores(
    task: AbstractTask, train: Dataset, queries: Dataset, *, max_positions: int = 4096, quiet: bool = False
) -> ScoreTable:
    """Each training example's own loss at the present weights, the same for every query.

    A large loss stands for a large gradient, so the examples that the model fits worst come out as the strongest proponents of everything.
    There are no opponents: a loss is not negative. The table knows nothing of the query, which is the point.

    Args:
        task: Model and loss.
        train: The training examples.
        queries: The queries, for their ids only.
        max_positions: Positions per batch.
        quiet: No progress on stderr.

    Returns:
        Losses in the task's unit, summed over an example's positions.
    """
    losses_N = torch.empty(len(train), dtype=torch.float64)

    def run(items: Sequence[int]) -> None:
        chosen = [train.examples[item] for item in items]
        with frozen(task.model), torch.no_grad():
            losses_N[list(items)] = task.loss(task.model, task.collate(chosen)).double().cpu()

    with meter("losses", len(train), quiet=quiet) as progress:
        for batch in batches([example.length for example in train.examples], max_positions=max_positions):
            in_halves(batch, run, task.model)
            progress.advance(len(batch))
    scores_QN = losses_N.expand(len(queries), -1).contiguous()
    return ScoreTable(scores_QN, queries.ids, train.ids, "loss of the training example", "loss", values="loss")


def bm25(train: Dataset, queries: Dataset, *, k1: float = 1.2, b: float = 0.75) -> ScoreTable:
    """Okapi BM25: how many of the query's terms an example has, rare ones counting more (Robertson and Zaragoza 2009).

    score = sum over the query's terms of idf x tf (k1 + 1) / (tf + k1 (1 - b + b length / mean length)), a term counted as often as the
    query has it, with idf = log(1 + (N - n + .5) / (n + .5)) for a term in n of N examples. The 1 inside the logarithm keeps a term that
    most examples have from counting against them. A query's prompt counts like its completion.

    Terms are the words of `text`, in lower case, where every example and query has one; else the token ids in the field `input_ids`.

    Args:
        train: The training examples.
        queries: The queries.
        k1: How soon repetitions of a term stop counting; 0 or more.
        b: How much long examples are marked down, from 0 to 1.

    Returns:
        Scores of 0 and more; 0 where nothing is shared, so there are no opponents.

    Raises:
        BadInput: If k1 or b is out of range.
        Unsupported: If an example or query has neither a text nor token ids.
    """
    if not k1 >= 0 or not 0 <= b <= 1:
        raise BadInput(found=f"k1={k1}, b={b}", needed="k1 of 0 or more and b from 0 to 1", do="leave them out")
    kind, documents, query_terms = _terms(train.examples, queries.examples)
    postings = _Postings.of(documents)
    lengths_N = np.array([len(document) for document in documents])
    num_with = postings.num_with
    idf = np.log1p((len(documents) - num_with + 0.5) / (num_with + 0.5))
    # Without any term the mean length is 0, and so is every score.
    weights = idf[postings.terms] * bm25_weights(postings.counts, lengths_N[postings.examples], lengths_N.mean(), k1, b)
    scores_QN = postings.sums(weights, [Counter(query) for query in query_terms], len(documents))
    return ScoreTable(torch.from_numpy(scores_QN), queries.ids, train.ids, "BM25", f"bm25 over {kind} (k1={k1:g}, b={b:g})")


def tf_idf(train: Dataset, queries: Dataset) -> ScoreTable:
    """Cosine of TF-IDF vectors: counts of terms, each times 1 + log((1 + N) / (1 + n)) for a term in n of N training examples.

    Terms are those of `bm25`; a query's terms that no training example has are left out of it, as scikit-learn's TfidfVectorizer does.

    Args:
        train: The training examples.
        queries: The queries.

    Returns:
        Scores from 0 to 1; 0 where nothing is shared, so there are no opponents.

    Raises:
        Unsupported: If an example or query has neither a text nor token ids.
    """
    kind, documents, query_terms = _terms(train.examples, queries.examples)
    postings = _Postings.of(documents)
    idf = 1 + np.log((1 + len(documents)) / (1 + postings.num_with))
    weights = idf[postings.terms] * postings.counts.astype(np.float64)
    norms_N = np.sqrt(np.bincount(postings.examples, weights**2, minlength=len(documents)))
    vectors = [
        {term: count * idf[postings.number_of[term]] for term, count in Counter(query).items() if term in postings.number_of}
        for query in query_terms
    ]
    norms_Q = np.array([np.sqrt(sum(weight**2 for weight in vector.values())) for vector in vectors])
    scores_QN = postings.sums(weights, vectors, len(documents))
    scores_QN /= np.where(norms_Q > 0, norms_Q, 1)[:, None] * np.where(norms_N > 0, norms_N, 1)
    return ScoreTable(torch.from_numpy(scores_QN), queries.ids, train.ids, "cosine", f"tf-idf over {kind}")


@dataclass(frozen=True)
class _Postings:
    """Which terms which examples have, one entry per term and example that has it, sorted by term.

    Args:
        number_of: A term's number.
        terms: Number of each entry's term.
        examples: Number of its example.
        counts: How often the example has the term.
        num_with: By term, how many examples have it.
    """

    number_of: Mapping[Hashable, int]
    terms: NDArray[np.int64]
    examples: NDArray[np.int64]
    counts: NDArray[np.int64]
    num_with: NDArray[np.int64]

    @classmethod
    def of(cls, documents: Sequence[Sequence[Hashable]]) -> "_Postings":
        """Those of documents, each a list of its terms."""
        number_of: dict[Hashable, int] = {}
        numbers = [number_of.setdefault(term, len(number_of)) for document in documents for term in document]
        owners = np.repeat(np.arange(len(documents)), [len(document) for document in documents])
        entries, counts = np.unique(np.array(numbers, dtype=np.int64) * len(documents) + owners, return_counts=True)
        terms, examples = np.divmod(entries, len(documents))
        return cls(number_of, terms, examples, counts, np.bincount(terms, minlength=len(number_of)))

    def sums(
        self, weights: NDArray[np.float64], vectors: Sequence[Mapping[Hashable, float]], count: int
    ) -> NDArray[np.float64]:
        """Inner products of queries with all examples, shape (queries, examples).

        Args:
            weights: Of each entry.
            vectors: By query, what its terms weigh.
            count: Of the examples.
        """
        ends = np.cumsum(self.num_with)
        scores_QN = np.zeros((len(vectors), count))
        for row_N, vector in zip(scores_QN, vectors, strict=True):
            for term, weight in vector.items():
                number = self.number_of.get(term)
                if number is not None:
                    span = slice(ends[number] - self.num_with[number], ends[number])
                    row_N[self.examples[span]] += weight * weights[span]
        return scores_QN


def _terms(train: Sequence[Example], queries: Sequence[Example]) -> tuple[str, list[list[Any]], list[list[Any]]]:
    """What the terms are, and those of each training example and of each query.

    Raises:
        Unsupported: If there are none.
    """
    examples = [*train, *queries]
    if all(example.text for example in examples):
        terms: list[list[Any]] = [list(words_of(example.text)[0]) for example in examples]
        return "words", terms[: len(train)], terms[len(train) :]
    without = next((example for example in examples if "input_ids" not in example.fields), None)
    if without is not None:
        raise Unsupported(
            found=f"the example {without.id!r} without token ids, and not every example with a text",
            needed="'text' in every record, or 'input_ids' in every record",
            do="compare with representation_similarity instead, which needs no words",
        )
    terms = [np.asarray(example.fields["input_ids"]).ravel().tolist() for example in examples]
    return "token ids", terms[: len(train)], terms[len(train) :]
