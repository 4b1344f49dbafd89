"""What of a study's queries is copied from the corpus, and which documents of their tails are related by words.

Axes: Q queries.
"""

from collections.abc import Mapping, Sequence

from whence.data import Example
from whence.report import Beside, beside_of
from whence.score import WordIndex
from whence.study.kept_scores import Corpus
from whence.study.readouts import Tails

__all__ = ["COPIED_HEADER", "beside_tails", "copied_cells"]

COPIED_HEADER = ("set", "words copied", "documents copied", "related", "only influential")


def beside_tails(corpus: Corpus, queries: Sequence[Example], tails: Sequence[Tails], index: WordIndex) -> tuple[Beside, ...]:
    """The second column of every query, for all documents of its tails.

    Args:
        corpus: The documents.
        queries: The queries, with texts.
        tails: Of every reading.
        index: The words of the corpus.
    """
    columns = []
    for number, query in enumerate(queries):
        rows = {int(row) for some in tails for side in (some.high_QK, some.low_QK) for row in side[number]}
        hits = [corpus.document(row, 0.0) for row in sorted(rows)]
        question = (query.text[: query.prompt], query.text[query.prompt :])
        columns.append(beside_of(index, *question, hits, lambda row: corpus.document(row, 0.0)))
    return tuple(columns)


def copied_cells(beside: Sequence[Beside], tails: Tails, sets: Mapping[str, range]) -> list[tuple[str, ...]]:
    """One row of text per set, to go under `COPIED_HEADER`: of the words of its queries, and of the documents of their top tails."""
    rows = []
    for name, queries in sets.items():
        kinds = [beside[query].hits[int(row)].kind for query in queries for row in tails.high_QK[query]]
        covered = sum(beside[query].covered for query in queries) / len(queries)
        shares = (kinds.count(kind) / len(kinds) for kind in ("copied", "related", "influential"))
        rows.append((name, f"{covered:.0%}", *(f"{share:.0%}" for share in shares)))
    return rows
