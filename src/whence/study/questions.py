"""The queries of a study: in sets, some with wrong answers to be held against, some with what their documents should say.

Axes: Q queries, A texts that are asked about (the queries, then the wrong answers), S documents of a shard.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from whence.data import Dataset, Example
from whence.errors import BadInput
from whence.pipeline.inputs import as_dataset
from whence.progress import Meter
from whence.study.kept_scores import Corpus
from whence.tasks import AbstractTask

__all__ = ["Questions", "Sought", "against_wrong", "questions_in"]

_FIELDS = ("wrong", "answer", "steps")


@dataclass(frozen=True)
class Sought:
    """Something that a document may say.

    Args:
        kind: "answer" or "step".
        pattern: What is looked for.
    """

    kind: str
    pattern: re.Pattern[str]


@dataclass(frozen=True)
class Questions:
    """All queries of a study.

    Args:
        queries: Named set/id.
        rows_of_set: Rows of the queries of each set.
        texts: The queries and behind them all wrong answers, which are asked like them.
        weights_QA: What each text counts for in each query: the right answer 1, each of n wrong ones -1/n.
        sought: What the documents of each query should say.
    """

    queries: Dataset
    rows_of_set: Mapping[str, range]
    texts: Dataset
    weights_QA: Tensor
    sought: tuple[tuple[Sought, ...], ...]


def questions_in(task: AbstractTask, sets: Mapping[str, Dataset | Iterable[Any]]) -> Questions:
    """Read the sets.

    A record may have `wrong`, one or more other completions (or mappings with a prompt of their own): the query is then about the right one's
    measurement minus the mean of theirs. It may have `answer` and `steps`, strings or lists of them, that documents are searched for: words
    in any case, or between slashes a regular expression.

    Args:
        task: Says what a record is.
        sets: Queries by name of their set.

    Returns:
        The queries.

    Raises:
        BadInput: If there are no sets, or records with such fields are split or left out.
    """
    if not isinstance(sets, Mapping) or not sets:
        raise BadInput(
            found="no sets of queries", needed="one or more by name", do="such as sets={'facts': [...], 'code': [...]}"
        )
    examples: list[Example] = []
    rows_of_set: dict[str, range] = {}
    sought: list[tuple[Sought, ...]] = []
    wrong: list[tuple[int, dict[str, Any]]] = []
    for name, records in sets.items():
        records = records if isinstance(records, Dataset) else list(records)
        fields = [] if isinstance(records, Dataset) else [_fields_of(record) for record in records]
        plain = records if isinstance(records, Dataset) else [_without(record) for record in records]
        some = as_dataset(task, plain).examples
        if any(fields) and len(fields) != len(some):
            raise BadInput(
                found=f"{len(fields)} records of the set {name!r} that became {len(some)} queries",
                needed="one query a record, where records say what is wrong or what is sought",
                do="leave out those that are too long or cannot be used",
            )
        first = len(examples)
        rows_of_set[name] = range(first, first + len(some))
        examples += [replace(example, id=f"{name}/{example.id}") for example in some]
        for row, given in enumerate(fields or [{}] * len(some)):
            sought.append(tuple(_sought(given)))
            wrong += [(first + row, text) for text in _wrong(records, row, given)]
    queries = Dataset(examples)
    others = as_dataset(task, [{"id": f"wrong {number}", **text} for number, (_, text) in enumerate(wrong)]) if wrong else None
    weights_QA = torch.eye(len(examples), len(examples) + len(wrong), dtype=torch.float64)
    for number, (row, _) in enumerate(wrong):
        weights_QA[row, len(examples) + number] = -1.0 / sum(owner == row for owner, _ in wrong)
    texts = queries if others is None else Dataset([*examples, *others.examples])
    return Questions(queries, rows_of_set, texts, weights_QA, tuple(sought))


def against_wrong(corpus: Corpus, weights_QA: Tensor) -> Corpus:
    """A corpus whose scores of a query are those of the right answer minus the mean of the wrong ones'.

    Raises:
        BadInput: If the method divides every score by the query's norm, so that scores do not add up.
    """
    if weights_QA.shape[0] == weights_QA.shape[1]:
        return corpus
    if not corpus.norm:
        raise BadInput(
            found=f"wrong answers for {corpus.method}, whose scores are cosines",
            needed="scores that add up over queries",
            do="study another store, or the data itself",
        )

    def score(number: int, progress: Meter) -> tuple[Tensor, Tensor | None]:
        scores_AS, norms_S = corpus.score(number, progress)
        return (weights_QA.to(scores_AS) @ scores_AS), norms_S

    note = (
        "of queries with wrong answers, the measurement is the right one's minus the mean of theirs; nats are the right one's"
    )
    identity = {**corpus.identity, "weights": weights_QA.tolist()}
    return replace(corpus, score=score, notes=(*corpus.notes, note), identity=identity)


def _fields_of(record: Any) -> dict[str, Any]:
    return {name: record[name] for name in _FIELDS if record.get(name)} if isinstance(record, Mapping) else {}


def _without(record: Any) -> Any:
    return {name: value for name, value in record.items() if name not in _FIELDS} if isinstance(record, Mapping) else record


def _wrong(records: Any, row: int, fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    texts = fields.get("wrong", ())
    texts = [texts] if isinstance(texts, str | Mapping) else texts
    return [
        {"prompt": records[row].get("prompt", ""), "completion": text} if isinstance(text, str) else dict(text)
        for text in texts
    ]


def _sought(fields: Mapping[str, Any]) -> Iterable[Sought]:
    """The patterns of a record.

    Yields:
        One by one.

    Raises:
        BadInput: If one is no regular expression.
    """
    for name, kind in (("answer", "answer"), ("steps", "step")):
        texts: Sequence[Any] = fields.get(name, ())
        for text in [texts] if isinstance(texts, str) else texts:
            is_pattern = len(text) > 2 and text[0] == text[-1] == "/"
            words = r"\s+".join(map(re.escape, text.split()))
            try:
                yield Sought(kind, re.compile(text[1:-1] if is_pattern else rf"(?<!\w){words}(?!\w)", re.IGNORECASE))
            except re.error as error:
                raise BadInput(
                    found=f"{text!r}, which is no regular expression ({error})", needed="one between slashes", do="correct it"
                ) from error
