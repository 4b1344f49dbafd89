"""Choosing a hyper-parameter on some queries and judging it on others, so that nobody fools themselves."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from whence.errors import BadInput
from whence.evaluate.bank import Bank
from whence.evaluate.lds import predicted
from whence.evaluate.ranks import spearman
from whence.records import ScoreTable

__all__ = ["Tuned", "held_out", "judged_queries", "tune"]


@dataclass(frozen=True)
class Tuned:
    """A choice among settings of one method.

    Args:
        label: The setting with the highest LDS on the tuning queries.
        table: Its scores, marked with the queries it was tuned on.
        tuning_lds: LDS on the tuning queries, by setting: what the choice was made from, and no result.
    """

    label: str
    table: ScoreTable
    tuning_lds: Mapping[str, float]


def held_out(query_ids: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Split queries into those to tune on and those to judge on.

    The half is decided by each id's digest: a query never changes sides, whatever else is asked about.

    Returns:
        Ids for tuning, ids for judging, each in the given order.

    >>> tuning, judging = held_out([str(number) for number in range(100)])
    >>> len(tuning), len(judging), len(set(tuning) & set(judging))
    (44, 56, 0)
    """
    is_tuning = [hashlib.sha256(query.encode()).digest()[0] % 2 == 0 for query in query_ids]
    sides = [
        tuple(query for query, side in zip(query_ids, is_tuning, strict=True) if side is wanted) for wanted in (True, False)
    ]
    return sides[0], sides[1]


def tune(candidates: Mapping[str, ScoreTable], bank: Bank) -> Tuned:
    """The best of several settings on the tuning half of the queries; a `Judge` refuses the result on that half.

    Args:
        candidates: Tables by the setting that made them, such as a damping.
        bank: The truth.

    Returns:
        The choice.

    Raises:
        BadInput: If there are no candidates or too few queries to hold some out.
    """
    tuning, judging = held_out(bank.query_ids)
    if not candidates or not tuning or not judging:
        raise BadInput(
            found=f"{len(candidates)} settings and {len(bank.query_ids)} queries",
            needed="a setting or more, and enough queries that both halves have some",
            do="add queries to the bank, or take the damping that is chosen without tuning",
        )
    part = bank.of_queries(tuning)
    agreement_of = {
        label: float(spearman(predicted(table, part).T, part.actual_MQ.T).mean()) for label, table in candidates.items()
    }
    best = max(agreement_of, key=lambda label: agreement_of[label])
    tuned_on = tuple(dict.fromkeys((*candidates[best].tuned_on, *tuning)))
    return Tuned(best, replace(candidates[best], tuned_on=tuned_on), agreement_of)


def judged_queries(tables: Sequence[ScoreTable], bank: Bank) -> tuple[str, ...]:
    """Queries of the bank that no table was tuned on, so that all rows of a comparison stand on the same ones."""
    seen = {query for table in tables for query in table.tuned_on}
    return tuple(query for query in bank.query_ids if query not in seen)
