"""What a service answered in some time, as the scores that shares come from.

Axes: N training examples, K of them above the noise floor, L lines of the report.
"""

import sqlite3
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from whence.errors import BadInput, StoreMismatch
from whence.ledger import Credit, Period, check_over, existing_log, period_of, read_credit
from whence.shares.rules import Rule
from whence.shares.sources import Lines
from whence.store import Store, parse_json

__all__ = ["Answers", "Per", "answers_of", "checked_answers"]

Per = Literal["answer", "token", "price"]
"""What an answer counts: as much as any other, its completion's tokens, or a price that is given."""

_DAY = 86_400.0
_IN_PERIOD = "FROM queries LEFT JOIN credits ON credits.query = queries.id WHERE digest = ? AND time >= ? AND time < ?"


@dataclass(frozen=True)
class Answers:
    """Answers of a store in some time, each with the scores of all training examples.

    Args:
        store: Digest of the store.
        period: When they were given.
        train_ids: Ids of the store's examples.
        credits: Of each answer, in order of time.
        single: Answers about one token of a completion, which are not among them: they are questions about an answer that counts already.
        notes: What is known of the scores.
    """

    store: str
    period: Period
    train_ids: tuple[str, ...] = field(repr=False)
    credits: tuple[Credit, ...] = field(repr=False)
    single: int
    notes: tuple[str, ...] = ()
    num_models: int = 1
    several: None = None
    folders: Mapping[str, Path] = field(default_factory=dict)

    @property
    def query_ids(self) -> tuple[str, ...]:
        """Ids of the answers."""
        return tuple(credit.id for credit in self.credits)

    @property
    def method(self) -> str:
        """What made the scores."""
        return self.credits[0].method

    @property
    def unit(self) -> str:
        """Of the scores."""
        return self.credits[0].unit

    def weights(self, per: Per) -> dict[str, float]:
        """By id what each answer counts.

        Raises:
            BadInput: If an answer has no tokens to count, or prices have to be given.
        """
        if per == "answer":
            return dict.fromkeys(self.query_ids, 1.0)
        if per == "price":
            raise BadInput(
                found="answers that count by price, without prices",
                needed="what each one earned",
                do="pass --weights with a file of id and weight, or weights in Python",
            )
        without = [credit.id for credit in self.credits if not credit.tokens]
        if without:
            raise BadInput(
                found=f"{len(without):,} answers without a token, such as {without[0]}, to count by tokens",
                needed="completions of a language model",
                do="count by answer, or give prices",
            )
        return {credit.id: float(credit.tokens) for credit in self.credits}

    def placed(self, query: int, rule: Rule, lines: Lines) -> tuple[np.ndarray, np.ndarray, float]:
        """Scores of an answer, the line that each counts on, and the noise floor; as a table of all scores would place them.

        What lies below the floor that it was logged with stands as two sums on the line of noise.

        Raises:
            BadInput: If the rule looks at single scores below that floor.
        """
        credit = self.credits[query]
        floor = credit.floor if rule.floor is None else 0.0 if isinstance(rule.floor, str) else rule.floor
        if rule.name == "softmax" or floor < credit.floor:
            raise BadInput(
                found=f"the rule {rule.name}" + (f" with the noise floor {rule.floor}" if rule.name != "softmax" else ""),
                needed=f"single scores below the floor of {credit.floor:.3g}, which a log has as two sums only",
                do="take the rule positive or signed with the default floor or a higher one, or score the queries into a table",
            )
        of_examples = np.where(np.abs(credit.scores_K) < floor, lines.noise, lines.of_examples[credit.rows_K])
        scores = np.concatenate([credit.scores_K, np.array(credit.below)])
        return scores, np.concatenate([of_examples, np.full(2, lines.noise)]), floor

    def without(self, model: int, query: int, rule: Rule, lines: Lines) -> tuple[np.ndarray, np.ndarray, float]:
        """Never asked for: a service has one model."""
        raise NotImplementedError

    def rows(self, query: int) -> np.ndarray:
        """The training example of each score of `placed`; -1 for the two sums."""
        return np.concatenate([self.credits[query].rows_K, np.full(2, -1)])


def answers_of(log: str | Path, store: Store, *, period: str) -> Answers:
    """What a service answered from a store in some time.

    Args:
        log: Its query log, written with credits.
        store: The store, as it was served.
        period: 2026-10 (a month of UTC), 2026-10-05 (a day), 2026, or FROM/TO in ISO 8601.

    Returns:
        The answers, for `whence.shares.shares`.

    Raises:
        BadInput: If the log cannot be read, the period is not over, or nothing was answered in it; if answers of it were deleted, or have no
            credits.
        StoreMismatch: If the answers are of another store or version of it.
    """
    span = period_of(period)
    check_over(span)
    with existing_log(log) as connection:
        return _answers(connection, Path(log), store, span)


def _answers(connection: sqlite3.Connection, path: Path, store: Store, period: Period) -> Answers:
    within = (store.digest, period.since, period.until)
    count, without, single = connection.execute(
        f"SELECT count(*), total(credit IS NULL), total(json_extract(answer, '$.token') IS NOT NULL) {_IN_PERIOD}", within
    ).fetchone()
    _check_all_there(connection, path, store, period)
    if without:
        raise BadInput(
            found=f"{int(without):,} of {count:,} answers of {period.name} without credits",
            needed="a log of a service that was started with --credits for all of that time",
            do="score their queries into a table (`whence score`) and make shares of that, and serve with --credits from now on",
        )
    if count == single:
        raise BadInput(
            found=f"no answer of this store in {period.name}" + (f" but {count:,} about single tokens" if count else ""),
            needed="a period in which it was asked",
            do="check the period, the log and the store",
        )
    rows = connection.execute(f"SELECT queries.id, credit {_IN_PERIOD} ORDER BY time, queries.id", within)
    credits = [read_credit(parse_json(zlib.decompress(content))) for _, content in rows]
    return checked_answers(
        Answers(
            store.digest, period, store.ids(), tuple(credit for credit in credits if credit.token is None), int(single),
            _common_notes(connection, within, count),
        )
    )  # fmt: skip


def checked_answers(answers: Answers) -> Answers:
    """The same, if they belong together.

    Raises:
        BadInput: If one is of another store, time, method or unit, has rows that the store has not, or is there twice.
    """
    first, why = answers.credits[0], ""
    for credit in answers.credits:
        if (credit.store, credit.method, credit.unit) != (answers.store, first.method, first.unit):
            why = "is of another store, method or unit than the others"
        elif not answers.period.since <= credit.time < answers.period.until or credit.token is not None:
            why = "is of another time, or about one token"
        elif len(credit.rows_K) and credit.rows_K[-1] >= len(answers.train_ids):
            why = f"has a score for row {credit.rows_K[-1]:,} of {len(answers.train_ids):,}"
        if why:
            raise BadInput(found=f"an answer {credit.id} that {why}", needed="answers of one store", do="restore the file")
    if len(set(answers.query_ids)) < len(answers.credits):
        raise BadInput(found="an answer that is there twice", needed="every answer once", do="restore the file from a copy")
    return answers


def _check_all_there(connection: sqlite3.Connection, path: Path, store: Store, period: Period) -> None:
    """Refuse a period of which the log has lost answers, or in which another version of the store answered.

    Raises:
        BadInput: If answers were deleted.
        StoreMismatch: If there are answers of another version.
    """
    (removed,) = connection.execute(
        "SELECT total(answers) FROM removed WHERE digest = ? AND day >= ? AND day < ?",
        (store.digest, period.since // _DAY, period.until / _DAY),
    ).fetchone()
    if removed:
        raise BadInput(
            found=f"{int(removed):,} answers of {period.name} that are not in {path} any more",
            needed="all of them: the log deletes what is older than --retention-days, and the oldest where it is too large",
            do="take a copy of the log from before, or split what is left with FROM/TO; then serve with a longer --retention-days",
        )
    names = [name for (name,) in connection.execute("SELECT DISTINCT store FROM queries WHERE digest = ?", (store.digest,))]
    others = connection.execute(
        "SELECT store, digest, count(*) FROM queries WHERE digest != ? AND time >= ? AND time < ? GROUP BY 1, 2 ORDER BY 3 DESC",
        (store.digest, period.since, period.until),
    ).fetchall()
    versions = [(digest, count) for name, digest, count in others if name in names or not names]
    if versions:
        digest, count = versions[0]
        raise StoreMismatch(
            found=f"{count:,} answers of {period.name} by a store of digest {digest[:12]}, and {store.folder} of {store.digest[:12]}",
            needed="the store as it was when it answered; one that was appended to or deleted from since is another one",
            do="pass the store that was served, or a copy of it; where it changed within the period, make a report of each part (FROM/TO)",
        )


def _common_notes(connection: sqlite3.Connection, within: tuple[str, float, float], count: int) -> tuple[str, ...]:
    """Notes that all answers have."""
    rows = connection.execute(f"SELECT json_extract(answer, '$.notes') {_IN_PERIOD} ORDER BY time", within)
    counts: dict[str, int] = {}
    for (text,) in rows:
        for note in dict.fromkeys(parse_json(text)):
            counts[note] = counts.get(note, 0) + 1
    return tuple(note for note, times in counts.items() if times == count)
