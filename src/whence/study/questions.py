"""The queries of a study: in sets, some with foils to be held against, some with what their documents should say.

Axes: Q queries, A texts that are asked about (the queries, then their foils), S documents of a shard.
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

__all__ = ["Questions", "Sought", "against_foils", "questions_in"]

_FIELDS = ("foil", "answer", "steps")


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
        texts: The queries and behind them all foils, which are asked like them.
        weights_QA: What each text counts for in each query: its own 1, each of n foils -1/n.
        sought: What the documents of each query should say.
    """

    queries: Dataset
    rows_of_set: Mapping[str, range]
    texts: Dataset
    weights_QA: Tensor
    sought: tuple[tuple[Sought, ...], ...]


def questions_in(task: AbstractTask, sets: Mapping[str, Dataset | Iterable[Any]]) -> Questions:
    """Read the sets.

    A record may have a `foil`, why this and not that: another completion, several of them, or mappings with a prompt of their own. The query
    is then about the completion's measurement minus the mean of theirs. It may have `answer` and `steps`, strings or lists of them, that
    documents are searched for: words in any case, or between slashes a regular expression.

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
    foils: list[tuple[int, dict[str, Any]]] = []
    for name, records in sets.items():
        records = records if isinstance(records, Dataset) else list(records)
        fields = [] if isinstance(records, Dataset) else [_fields_of(record) for record in records]
        plain = records if isinstance(records, Dataset) else [_without(record) for record in records]
        some = as_dataset(task, plain).examples
        if any(fields) and len(fields) != len(some):
            raise BadInput(
                found=f"{len(fields)} records of the set {name!r} that became {len(some)} queries",
                needed="one query a record, where records have foils or say what is sought",
                do="leave out those that are too long or cannot be used",
            )
        first = len(examples)
        rows_of_set[name] = range(first, first + len(some))
        examples += [replace(example, id=f"{name}/{example.id}") for example in some]
        for row, given in enumerate(fields or [{}] * len(some)):
            sought.append(tuple(_sought(given)))
            foils += [(first + row, text) for text in _foils(records, row, given)]
    queries = Dataset(examples)
    others = as_dataset(task, [{"id": f"foil {number}", **text} for number, (_, text) in enumerate(foils)]) if foils else None
    weights_QA = torch.eye(len(examples), len(examples) + len(foils), dtype=torch.float64)
    for number, (row, _) in enumerate(foils):
        weights_QA[row, len(examples) + number] = -1.0 / sum(owner == row for owner, _ in foils)
    texts = queries if others is None else Dataset([*examples, *others.examples])
    return Questions(queries, rows_of_set, texts, weights_QA, tuple(sought))


def against_foils(corpus: Corpus, weights_QA: Tensor) -> Corpus:
    """A corpus whose scores of a query are its own minus the mean of its foils'.

    Raises:
        BadInput: If the method divides every score by the query's norm, so that scores do not add up.
    """
    if weights_QA.shape[0] == weights_QA.shape[1]:
        return corpus
    if not corpus.norm:
        raise BadInput(
            found=f"foils for {corpus.method}, whose scores are cosines",
            needed="scores that add up over queries",
            do="study another store, or the data itself",
        )

    def score(number: int, progress: Meter) -> tuple[Tensor, Tensor | None]:
        scores_AS, norms_S = corpus.score(number, progress)
        return (weights_QA.to(scores_AS) @ scores_AS), norms_S

    note = "of queries with foils, the measurement is the completion's minus the mean of theirs; nats are the completion's"
    identity = {**corpus.identity, "weights": weights_QA.tolist()}
    return replace(corpus, score=score, notes=(*corpus.notes, note), identity=identity)


def _fields_of(record: Any) -> dict[str, Any]:
    """What a record says beside the query.

    Raises:
        BadInput: If it has a field of an earlier version.
    """
    if not isinstance(record, Mapping):
        return {}
    if record.get("wrong"):
        raise BadInput(found="a query with 'wrong'", needed="'foil', as it is called everywhere", do="rename the field")
    return {name: record[name] for name in _FIELDS if record.get(name)}


def _without(record: Any) -> Any:
    return {name: value for name, value in record.items() if name not in _FIELDS} if isinstance(record, Mapping) else record


def _foils(records: Any, row: int, fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The other texts of a query, as records.

    Raises:
        BadInput: If one is no text.
    """
    texts = fields.get("foil", ())
    texts = [texts] if isinstance(texts, str | Mapping) else texts
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str | Mapping) for text in texts):
        raise BadInput(
            found=f"a query with the foil {texts!r:.60}", needed="a text, several, or records", do="correct it, or leave it out"
        )
    own = {name: records[row][name] for name in ("prompt", "text") if texts and name in records[row]}
    field = "text" if "text" in own else "completion"
    return [dict(text) if isinstance(text, Mapping) else {**own, field: text} for text in texts]


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
