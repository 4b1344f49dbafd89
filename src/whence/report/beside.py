"""Beside influence: which words of an answer stand in the corpus as they are, and which documents are alike by words.

So a reader sees what is copied, what is related and what is only influential.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from html import escape
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from whence.report.hits import Hit, Hits
    from whence.score.words import Span, WordIndex

__all__ = [
    "LEAST_WORDS",
    "Beside",
    "Document",
    "Shared",
    "beside_hits",
    "beside_of",
    "shared_line",
    "spans_html",
    "spans_lines",
]

LEAST_WORDS = 4
# Related is who is among the first of BM25: so many, or this share of the corpus.
_RELATED, _SHARE = 10, 0.01
_SPANS, _DOCUMENTS = 5, 5
_MEANING = {"copied": "copied", "related": "related", "influential": "only influential"}


@dataclass(frozen=True)
class Shared:
    """What a document and an answer have in common by their words.

    Args:
        kind: "copied" where they share a run of four words or more, "related" where the document is among the first by BM25 (ten, or one in
            a hundred), else "influential".
        words: Words of the longest run that they share.
        span: Its characters in the document.
        bm25: BM25 of the document for prompt and answer.
        bm25_rank: Its rank by that among all documents, from 1.
    """

    kind: Literal["copied", "related", "influential"]
    words: int
    span: tuple[int, int]
    bm25: float
    bm25_rank: int


@dataclass(frozen=True)
class Document:
    """A document that words find.

    Args:
        id: Its id.
        source: Where it comes from.
        row: Its row.
        bm25: As in `Shared`.
        is_hit: Whether influence found it, too.
    """

    id: str
    source: str
    row: int
    bm25: float
    is_hit: bool


@dataclass(frozen=True)
class Beside:
    """The second column of an answer.

    Args:
        completion: What was asked about.
        spans: Its longest runs of words that stand in the corpus, longest first.
        covered: Share of its words that are in one of them.
        holders: Of the documents that `spans` names, by row.
        hits: Of each document that influence found, by row.
        related: The first documents by BM25.
        num_documents: Of the corpus.
    """

    completion: str
    spans: "tuple[Span, ...]"
    covered: float
    holders: Mapping[int, Document]
    hits: Mapping[int, Shared]
    related: tuple[Document, ...]
    num_documents: int

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], completion: str, num_documents: int) -> "Beside":
        """The column that `to_dict` gave, as a service sends it.

        Args:
            content: The plain values.
            completion: What was asked about.
            num_documents: Of the corpus.

        Raises:
            KeyError: If a part is missing.
            TypeError: If one is of another type.
            ValueError: If a document's kind is none, or a span is none.
        """
        from whence.score.words import Span  # with torch, which a report of what is there does without

        holders = {entry["row"]: Document(**entry) for span in content["spans"] for entry in span["documents"]}
        spans = []
        for entry in content["spans"]:
            start, stop = entry["span"]
            rows = tuple(document["row"] for document in entry["documents"])
            spans.append(Span(int(start), int(stop), int(entry["words"]), int(entry["count"]), rows))
        hits: dict[int, Shared] = {}
        for entry in content["hits"]:
            kind, (start, stop) = entry["kind"], entry["span"]
            if kind not in _MEANING:
                raise ValueError(f"the kind {kind!r}")
            hits[entry["row"]] = Shared(
                kind, int(entry["words"]), (int(start), int(stop)), float(entry["bm25"]), int(entry["bm25_rank"])
            )
        related = tuple(Document(**entry) for entry in content["related"])
        return cls(completion, tuple(spans), float(content["covered"]), holders, hits, related, num_documents)

    def run(self, span: "Span") -> str:
        """The words of a run, as the completion has them."""
        return " ".join(self.completion[span.start : span.stop].split())

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON has them; what the hits share stands there by id of the row."""
        return {
            "covered": self.covered,
            "spans": [
                {
                    "span": [span.start, span.stop], "text": self.completion[span.start : span.stop], "words": span.words,
                    "count": span.count, "documents": [asdict(self.holders[row]) for row in span.rows],
                }
                for span in self.spans
            ],
            "hits": [{"row": row, **asdict(shared), "span": list(shared.span)} for row, shared in self.hits.items()],
            "related": [asdict(document) for document in self.related],
        }  # fmt: skip


def beside_of(index: "WordIndex", prompt: str, completion: str, hits: Iterable["Hit"], named: Callable[[int], "Hit"]) -> Beside:
    """Hold one answer's words against the corpus.

    Args:
        index: The words of the corpus.
        prompt: What came before; it counts for BM25 only.
        completion: What was asked about.
        hits: The documents that influence found, with their texts.
        named: What is known of a row.

    Returns:
        What there is to say of the answer and of each of these documents.
    """
    from whence.score.words import words_of  # with torch, which a report of what is there does without

    spans = tuple(sorted(index.spans(completion, least=LEAST_WORDS), key=lambda span: -span.words))
    words, characters = words_of(completion)
    covered = sum(any(span.start <= start and stop <= span.stop for span in spans) for start, stop in characters)
    scores_N = index.bm25(f"{prompt} {completion}" if prompt else completion)
    most = max(_RELATED, int(_SHARE * len(scores_N)))
    by_row = {hit.row: _shared(words, hit, scores_N, most) for hit in hits}

    def document(row: int) -> Document:
        example = named(row)
        return Document(example.id, example.source, row, float(scores_N[row]), row in by_row)

    first = np.argsort(-scores_N, kind="stable")[:_DOCUMENTS].tolist()
    return Beside(
        completion, spans, covered / max(1, len(words)), {row: document(row) for span in spans for row in span.rows}, by_row,
        tuple(document(row) for row in first if scores_N[row] > 0), len(scores_N),
    )  # fmt: skip


def beside_hits(
    hits: "Hits", index: "WordIndex", named: Callable[[int], "Hit"], completions: Sequence[tuple[str, str]] | None = None
) -> "Hits":
    """An answer with its second column.

    Args:
        hits: The answer.
        index: The words of the corpus that was searched.
        named: What is known of a row.
        completions: Prompt and completion of each query; None takes them from its record, or the whole text where it has none.
    """
    pairs = completions or [_prompt_and_completion(hits, query) for query in range(len(hits.queries))]
    columns = tuple(
        beside_of(index, prompt, completion, (*hits.proponents[query], *hits.opponents[query]), named)
        for query, (prompt, completion) in enumerate(pairs)
    )
    return replace(hits, beside=columns)


def shared_line(shared: Shared, text: str, num_documents: int) -> tuple[str, str]:
    """What a document shares with the answer: its kind, and the rest of the line."""
    run = " ".join(text[slice(*shared.span)].split())
    words = "shares no word with it" if not shared.words else f"shares {shared.words} word{'s'[: shared.words > 1]}: {run}"
    rank = f"BM25 rank {shared.bm25_rank:,} of {num_documents:,}" if shared.bm25 > 0 else "BM25 0"
    return _MEANING[shared.kind], f"{words}; {rank}"


def spans_lines(beside: Beside) -> list[str]:
    """The second column in lines of text."""
    lines = [
        f"{beside.covered:.0%} of its words stand in the corpus in runs of {LEAST_WORDS} or more, {len(beside.spans)} runs"
        + (f", the longest {_SPANS}:" if len(beside.spans) > _SPANS else ":" if beside.spans else "")
    ]
    for span in beside.spans[:_SPANS]:
        lines.append(
            f"  {span.words} words, {span.count:,} times: {beside.run(span)} ({_names(beside.holders[row] for row in span.rows)})"
        )
    lines.append(f"most alike by words (BM25): {_names(beside.related) or 'none shares a word'}")
    return lines


def spans_html(beside: Beside) -> str:
    """The second column as HTML."""
    rows = "".join(
        f'<tr><td class="number">{span.words}</td><td class="number">{span.count:,}</td><td>{escape(beside.run(span))}</td>'
        f'<td><code class="id">{escape(_names(beside.holders[row] for row in span.rows))}</code></td></tr>'
        for span in beside.spans[:_SPANS]
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("words", "times", "in the corpus word for word", "documents"))
    table = f'<table class="pairs"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>' if rows else ""
    first, *_, last = spans_lines(beside)
    return f'<div class="beside"><p class="muted">{escape(first)}</p>{table}<p class="muted">{escape(last)}</p></div>'


def _shared(words: Sequence[str], hit: "Hit", scores_N: np.ndarray, most: int) -> Shared:
    from whence.score.words import longest_shared, words_of

    theirs, characters = words_of(hit.text)
    _, at, length = longest_shared(words, theirs)
    span = (characters[at][0], characters[at + length - 1][1]) if length else (0, 0)
    score = float(scores_N[hit.row])
    rank = 1 + int((scores_N > score).sum())
    kind = "copied" if length >= LEAST_WORDS else "related" if score > 0 and rank <= most else "influential"
    return Shared(kind, length, span, score, rank)


def _prompt_and_completion(hits: "Hits", query: int) -> tuple[str, str]:
    record = hits.facts[query].record if hits.facts else {}
    prompt, completion = record.get("prompt"), record.get("completion")
    return (prompt, completion) if isinstance(prompt, str) and isinstance(completion, str) else ("", hits.queries[query])


def _names(documents: Iterable[Document]) -> str:
    return ", ".join(document.id + (" (found by influence, too)" if document.is_hit else "") for document in documents)
