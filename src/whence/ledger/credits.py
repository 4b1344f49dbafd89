"""What an answer owes to each training example, compactly and exactly: all that shares are made from, for any division into sources.

Scores below the noise floor go to one line of a report, whoever they are of, so of them two sums are enough. What is left is some per cent of
the scores where the floor is high, and all of them where there are too few to tell chance from influence.

Axes: N training examples, K of them above the floor.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from whence.errors import BadInput
from whence.ledger.canonical import canonical
from whence.score import spread_floor
from whence.strict_json import fitted

__all__ = ["Credit", "credit_of", "read_credit"]

_TYPES: dict[str, Any] = {
    "id": str, "time": float, "store": str, "method": str, "unit": str, "tokens": int, "token": int | None, "floor": float,
}  # fmt: skip
_ARRAYS = ("below", "rows", "scores")
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Credit:
    """Scores of one answer.

    Args:
        id: Of the answer.
        time: When it was given, in seconds since 1970.
        store: Digest of the store, `Store.digest`, whose rows are numbered.
        method: What made the scores.
        unit: Of the scores.
        tokens: Scored tokens of the completion; 0 where it has none, as an image's label.
        token: The only token that was asked about, counted from 1; None for the whole completion.
        floor: Noise floor: scores nearer to zero are only in the sums.
        below: Sum of the positive and of the negative scores below the floor.
        rows_K: Rows of the others but those of score 0, ascending.
        scores_K: Their scores, float64 that hold the float32 of a table.
    """

    id: str
    time: float
    store: str
    method: str
    unit: str
    tokens: int
    token: int | None
    floor: float
    below: tuple[float, float]
    rows_K: np.ndarray = field(repr=False)
    scores_K: np.ndarray = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """As it is written; its digest is that of these."""
        return {name: getattr(self, name) for name in _TYPES} | {
            "below": list(self.below),
            "rows": self.rows_K.tolist(),
            "scores": self.scores_K.tolist(),
        }

    def line(self) -> bytes:
        """As a line of JSON, without its break."""
        return canonical(self.to_json())


def credit_of(scores_N: np.ndarray, facts: Mapping[str, Any]) -> Credit:
    """What is written down of an answer's scores.

    >>> facts = {"id": "a", "time": 0.0, "store": "", "method": "", "unit": "nats", "tokens": 1, "token": None}
    >>> credit = credit_of(np.array([0.5, -1.0, 0.0], np.float32), facts)
    >>> credit.floor, credit.rows_K.tolist(), credit.scores_K.tolist()
    (0.0, [0, 1], [0.5, -1.0])

    Args:
        scores_N: Of all training examples.
        facts: The other fields of `Credit`.
    """
    # As a table has them: float32 on disk, float64 in sums.
    narrow_N = scores_N.astype(np.float32)
    floor = spread_floor(narrow_N)
    wide_N = narrow_N.astype(np.float64)
    rows_K = np.flatnonzero((np.abs(wide_N) >= floor) & (wide_N != 0))
    scores_K = wide_N[rows_K]
    wide_N[rows_K] = 0.0
    # One after another, as the rules of shares add up.
    negative, positive = np.bincount((wide_N > 0).view(np.int8), weights=wide_N, minlength=2).tolist()
    return Credit(**facts, floor=floor, below=(positive, negative), rows_K=rows_K, scores_K=scores_K)


def read_credit(content: Any) -> Credit:
    """A credit from what `Credit.to_json` gave.

    Raises:
        BadInput: If it is no such line.
    """
    try:
        return _read(content)
    except (ValueError, TypeError, KeyError) as error:
        raise BadInput(
            found=f"a credit of an answer that cannot be read ({error})",
            needed="what a service with --credits writes",
            do="restore the file from a copy",
        ) from error


def _read(content: Any) -> Credit:
    """The same, with whatever is raised.

    Raises:
        ValueError: If it holds something else.
    """
    if not isinstance(content, dict) or content.keys() != {*_TYPES, *_ARRAYS}:
        raise ValueError("other fields than a credit's")
    facts = {name: fitted(kind, content[name], name) for name, kind in _TYPES.items()}
    below, rows_K, scores_K = (_numbers(content[name], name) for name in _ARRAYS)
    if len(below) != 2 or len(rows_K) != len(scores_K) or (rows_K[1:] <= rows_K[:-1]).any() or (rows_K[:1] < 0).any():
        raise ValueError("rows and scores that do not belong together")
    if not (below[0] >= 0 >= below[1] and facts["floor"] >= 0 and (np.abs(scores_K) >= facts["floor"]).all()):
        raise ValueError("scores on the wrong side of its floor")
    if (np.abs(scores_K) > _LARGEST).any() or (scores_K.astype(np.float32) != scores_K).any():
        raise ValueError("scores that no table has")
    return Credit(**facts, below=(below[0], below[1]), rows_K=rows_K, scores_K=scores_K)


def _numbers(values: Any, name: str) -> Any:
    """A list of numbers, of whole ones if they are rows.

    Raises:
        TypeError: If it is another list.
    """
    kinds = {int} if name == "rows" else {int, float}
    if not isinstance(values, list) or set(map(type, values)) - kinds:
        raise TypeError(f"{name} are no list of numbers")
    return (
        [float(value) for value in values] if name == "below" else np.array(values, np.int64 if name == "rows" else np.float64)
    )
