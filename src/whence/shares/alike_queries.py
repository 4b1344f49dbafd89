"""Which queries ask the same, by the documents that speak for them: near-identical questions have near-identical scores.

Axes: Q queries, K scores of one above its noise floor.
"""

from collections.abc import Sequence

import numpy as np

__all__ = ["LEAST_COSINE", "alike_queries", "profile"]

LEAST_COSINE = 0.95
"""Cosine of two queries' scores above the floor from which on they count as one question."""

_ROUNDING = 1e-9
_TOP = 3
_LONGEST = 64


def profile(rows_N: np.ndarray, scores_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What speaks for a query: its 64 highest scores at most, by rising row.

    Args:
        rows_N: Rows of documents.
        scores_N: Positive scores above the noise floor.

    Returns:
        Rows and scores, (K,) each.
    """
    strongest_K = np.sort(np.argsort(-scores_N, kind="stable")[:_LONGEST])
    return rows_N[strongest_K], scores_N[strongest_K]


def alike_queries(profiles: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[int]:
    """The first query whose scores those of each are like; its own place where they are like none.

    Only queries that share one of their three strongest documents are held against each other, each against earlier leaders: against all of
    them at once, then exactly against those that come near.

    >>> import numpy as np
    >>> rows = np.array([4, 7])
    >>> alike_queries([(rows, np.array([2.0, 1.0])), (rows, np.array([0.1, 3.0])), (rows, np.array([4.1, 2.0]))])
    [0, 1, 0]

    Args:
        profiles: Of each query rows of documents, rising, and their positive scores, both (K,), from `profile`.

    Returns:
        One place per query, not above its own. Queries that nothing speaks for lead themselves.
    """
    leaders: list[int] = []
    units: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    leaders_by: dict[int, list[int]] = {}
    nearby = _Profiles(profiles)
    for query, (rows_K, scores_K) in enumerate(profiles):
        length = float(np.sqrt(np.square(scores_K).sum()))
        best, most = query, LEAST_COSINE
        strongest = rows_K[np.argsort(-scores_K, kind="stable")[:_TOP]].tolist() if length > 0 else []
        candidates = sorted({leader for row in strongest for leader in leaders_by.get(row, ())})
        for leader in nearby.near(rows_K, scores_K / length, candidates) if candidates else []:
            other_rows, other = units[leader]
            _, here, there = np.intersect1d(rows_K, other_rows, assume_unique=True, return_indices=True)
            cosine = float((scores_K[here] * other[there]).sum()) / length
            if cosine > most:
                best, most = leader, cosine
        leaders.append(best)
        if best == query and length > 0:
            units[query] = rows_K, scores_K / length
            nearby.add(query, *units[query])
            for row in strongest:
                leaders_by.setdefault(row, []).append(query)
    return leaders


class _Profiles:
    """Leaders' profiles as arrays, by which all that could be like a query are found at once.

    Args:
        profiles: Of all queries.
    """

    def __init__(self, profiles: Sequence[tuple[np.ndarray, np.ndarray]]):
        longest = max((len(rows_K) for rows_K, _ in profiles), default=0)
        last = max((int(rows_K[-1]) for rows_K, _ in profiles if len(rows_K)), default=0)
        # Unused places hold a score of zero for row 0.
        self.rows_QK = np.zeros((len(profiles), longest), dtype=np.int64)
        self.units_QK = np.zeros((len(profiles), longest))
        self.dense_N = np.zeros(last + 1)

    def add(self, query: int, rows_K: np.ndarray, units_K: np.ndarray) -> None:
        """There is one more leader, whose scores have length 1."""
        self.rows_QK[query, : len(rows_K)] = rows_K
        self.units_QK[query, : len(rows_K)] = units_K

    def near(self, rows_K: np.ndarray, units_K: np.ndarray, candidates: Sequence[int]) -> list[int]:
        """Those of the candidates whose cosine with a query's scores, of length 1, may be above the least one."""
        self.dense_N[rows_K] = units_K
        chosen = np.asarray(candidates)
        cosines = np.einsum("qk,qk->q", self.dense_N[self.rows_QK[chosen]], self.units_QK[chosen])
        self.dense_N[rows_K] = 0.0
        # Sums in another order differ by rounding.
        return chosen[cosines > LEAST_COSINE - _ROUNDING].tolist()
