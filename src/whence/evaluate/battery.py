"""Tests of a table of scores that need no retraining (Bareeva et al. 2024, "Quanda"): cheap, and necessary at most.

Axes: Q queries, N training examples, K strongest of them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from whence.errors import BadInput
from whence.evaluate.ranks import average_precision, spearman
from whence.evaluate.statistics import Interval, mean_interval
from whence.records import ScoreTable

__all__ = ["battery", "flagged_precision", "same_field", "topk_overlap"]

_DETECTED = (("class", "label"), ("subclass", "subclass"))


def battery(
    table: ScoreTable,
    train: Sequence[Mapping[str, Any]],
    queries: Sequence[Mapping[str, Any]],
    *,
    flags: Sequence[str] = (),
    randomised: ScoreTable | None = None,
    k: int = 10,
) -> dict[str, Interval]:
    """All tests that the records have fields for.

    - "class", "subclass": how often a query's strongest proponent has its `label`, its `subclass` (Hanawa et al. 2021, section 3; a subclass
      is what labels were merged from for training, so that the model was never told).
    - "flag FIELD": of training examples with that field set, the average precision by score, over queries that have it set. With examples
      that carry a shortcut it is shortcut detection, with those of a foreign data set that all got one label it is the mixed-data test.
    - "overlap": how much the queries' K strongest proponents are the same examples; low where answers are specific.
    - "randomised": rank correlation with the scores of the same model with random weights; low where scores depend on what was learnt.

    Args:
        table: The scores.
        train: Records of the training examples, in the order of the table.
        queries: The same of the queries.
        flags: Fields that mark examples.
        randomised: The table of the same method for a model with random weights.
        k: Strongest proponents.

    Returns:
        By test, the mean over queries with its 95 % interval.

    Raises:
        BadInput: If there are not as many records as the table has rows or columns, or a flag or a second table does not fit.
    """
    if table.scores.shape != (len(queries), len(train)) or k < 1:
        raise BadInput(
            found=f"{len(queries):,} queries and {len(train):,} training records for a table of {tuple(table.scores.shape)}, k={k}",
            needed="a record for each row and column, and k of 1 or more",
            do="pass the files that the table was made from",
        )
    results = {
        name: same_field(table.scores, train, queries, field)
        for name, field in _DETECTED
        if all(field in record for record in (*train, *queries))
    }
    for flag in flags:
        results[f"flag {flag}"] = flagged_precision(table.scores, train, queries, flag)
    if len(queries) > 1:
        results["overlap"] = topk_overlap(table.scores, k)
    if randomised is not None:
        if randomised.scores.shape != table.scores.shape:
            raise BadInput(
                found=f"a randomised table of {tuple(randomised.scores.shape)} beside one of {tuple(table.scores.shape)}",
                needed="the same queries and training examples",
                do="make it with the same files and a model that was not trained",
            )
        results["randomised"] = mean_interval(spearman(table.scores.double(), randomised.scores.double()))
    return results


def same_field(
    scores_QN: Tensor, train: Sequence[Mapping[str, Any]], queries: Sequence[Mapping[str, Any]], field: str
) -> Interval:
    """How often a query's strongest proponent has the same value of a field.

    >>> print(same_field(torch.tensor([[1.0, 2.0]]), [{"label": 0}, {"label": 1}], [{"label": 1}], "label"))
    1 (one run, no interval)
    """
    best = scores_QN.argmax(1).tolist()
    alike = [float(train[row][field] == query[field]) for row, query in zip(best, queries, strict=True)]
    return mean_interval(torch.tensor(alike))


def flagged_precision(
    scores_QN: Tensor, train: Sequence[Mapping[str, Any]], queries: Sequence[Mapping[str, Any]], flag: str
) -> Interval:
    """Average precision with which scores find the training examples that have a field set, over queries that have it set.

    Raises:
        BadInput: If no query has it, or all or none of the training examples.
    """
    is_flagged_N = torch.tensor([bool(record.get(flag)) for record in train])
    rows = [row for row, record in enumerate(queries) if record.get(flag)]
    if not rows or bool(is_flagged_N.all()) or not bool(is_flagged_N.any()):
        raise BadInput(
            found=f"{len(rows):,} queries and {int(is_flagged_N.sum()):,} of {len(train):,} training records with {flag!r} set",
            needed="one or more queries, and some of the training records but not all",
            do="set the field where the shortcut, or the foreign data, is",
        )
    return mean_interval(torch.tensor([average_precision(scores_N, is_flagged_N) for scores_N in scores_QN[rows]]))


def topk_overlap(scores_QN: Tensor, k: int) -> Interval:
    """Share of a query's K strongest proponents that are also among another query's, on average over the others.

    Raises:
        BadInput: If there are no others.
    """
    if len(scores_QN) < 2:
        raise BadInput(found=f"{len(scores_QN)} queries", needed="two or more, to be compared", do="pass more queries")
    count = min(k, scores_QN.shape[1])
    inside_QN = torch.zeros(scores_QN.shape, dtype=torch.float64)
    inside_QN.scatter_(1, scores_QN.topk(count, dim=1).indices, 1.0)
    shared_QQ = inside_QN @ inside_QN.T / count
    queries = len(scores_QN)
    return mean_interval((shared_QQ.sum(1) - 1) / (queries - 1))
