"""What a service answered in some time, as the scores that shares come from.

Axes: N training examples, K of them above the noise floor, L lines of the report.
"""

import json
import sqlite3
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from whence.errors import BadInput, StoreMismatch
from whence.ledger import (
    Credit,
    Period,
    check_over,
    existing_log,
    known_versions,
    period_of,
    read_credit,
    rows_of_versions,
)
from whence.shares.rules import Rule
from whence.shares.sources import Lines
from whence.store import Store, parse_json

__all__ = ["Answers", "Per", "answers_of", "checked_answers"]

Per = Literal["answer", "token", "price"]
"""What an answer counts: as much as any other, its completion's tokens, or a price that is given."""

_DAY = 86_400.0
_OF_VERSIONS = "digest IN (SELECT value FROM json_each(?))"
_IN_PERIOD = f"FROM queries LEFT JOIN credits ON credits.query = queries.id WHERE {_OF_VERSIONS} AND time >= ? AND time < ?"


@dataclass(frozen=True)
class Answers:
    """Answers of a store in some time, each with the scores of all training examples.

    Args:
        versions: By digest of each version of the store the place in `train_ids` of each of its rows; documents came and went.
        period: When they were given.
        train_ids: Ids of the examples of all versions.
        credits: Of each answer, in order of time; its rows are those of its version.
        single: Answers about one token of a completion, which are not among them: they are questions about an answer that counts already.
        notes: What is known of the scores.
        former: By id the source of examples that the store at hand lacks, as the log has it; not written into reports.
        disputed: Ids that had different sources in different versions; likewise.
    """

    versions: Mapping[str, np.ndarray] = field(repr=False)
    period: Period
    train_ids: tuple[str, ...] = field(repr=False)
    credits: tuple[Credit, ...] = field(repr=False)
    single: int
    notes: tuple[str, ...] = ()
    former: Mapping[str, str] = field(default_factory=dict, repr=False)
    disputed: frozenset[str] = frozenset()
    num_models: int = 1
    several: None = None
    folders: Mapping[str, Path] = field(default_factory=dict)

    @property
    def stores(self) -> tuple[str, ...]:
        """Digests of the versions of the store."""
        return tuple(self.versions)

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many examples each version had."""
        return tuple(map(len, self.versions.values()))

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
        of_examples = np.where(np.abs(credit.scores_K) < floor, lines.noise, lines.of_examples[self.examples_at(credit)])
        scores = np.concatenate([credit.scores_K, np.array(credit.below)])
        return scores, np.concatenate([of_examples, np.full(2, lines.noise)]), floor

    def without(self, model: int, query: int, rule: Rule, lines: Lines) -> tuple[np.ndarray, np.ndarray, float]:
        """Never asked for: a service has one model."""
        raise NotImplementedError

    def rows(self, query: int) -> np.ndarray:
        """The training example of each score of `placed`; -1 for the two sums."""
        return np.concatenate([self.examples_at(self.credits[query]), np.full(2, -1)])

    def examples_at(self, credit: Credit) -> np.ndarray:
        """The training example of each score of a credit, as a place in `train_ids`."""
        return self.versions[credit.store][credit.rows_K]


def answers_of(log: str | Path, store: Store, *, period: str) -> Answers:
    """What a service answered from a store in some time, in all versions of it that the service had.

    Args:
        log: Its query log, written with credits.
        store: The store, as it was served last or at any time of the period.
        period: 2026-10 (a month of UTC), 2026-10-05 (a day), 2026, or FROM/TO in ISO 8601.

    Returns:
        The answers, for `whence.shares.shares`.

    Raises:
        BadInput: If the log cannot be read, the period is not over, or nothing was answered in it; if answers of it were deleted, or have no
            credits.
        StoreMismatch: If the answers are of another store, or of a version of which the log does not know the examples.
    """
    span = period_of(period)
    check_over(span)
    with existing_log(log) as connection:
        return _answers(connection, Path(log), store, span)


def _answers(connection: sqlite3.Connection, path: Path, store: Store, period: Period) -> Answers:
    digests, related = _versions_in(connection, store, period)
    within = (json.dumps(digests), period.since, period.until)
    count, without, single = connection.execute(
        f"SELECT count(*), total(credit IS NULL), total(json_extract(answer, '$.token') IS NOT NULL) {_IN_PERIOD}", within
    ).fetchone()
    _check_all_there(connection, path, related, period)
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
    mine = [(example["id"], example.get("source", "")) for example in store.examples()]
    versions = rows_of_versions(connection, digests, (store.digest, mine))
    former = {name: versions.sources[name] for name in versions.ids[len(mine) :]}
    answers = Answers(
        versions.rows, period, versions.ids, tuple(credit for credit in credits if credit.token is None), int(single),
        _common_notes(connection, within, count), former, versions.disputed,
    )  # fmt: skip
    if len(digests) > 1:
        note = (
            f"answers of {len(digests)} versions of the store, in which documents came and went; {len(former):,} of {len(versions.ids):,} "
            "are not in the one at hand, whose texts and gradients are not looked at"
        )
        answers = replace(answers, notes=(*answers.notes, note))
    return checked_answers(answers)


def checked_answers(answers: Answers) -> Answers:
    """The same, if they belong together.

    Raises:
        BadInput: If one is of another store, time, method or unit, has rows that the store has not, or is there twice.
    """
    first, why = answers.credits[0], ""
    for credit in answers.credits:
        if credit.store not in answers.versions or (credit.method, credit.unit) != (first.method, first.unit):
            why = "is of another store, method or unit than the others"
        elif not answers.period.since <= credit.time < answers.period.until or credit.token is not None:
            why = "is of another time, or about one token"
        elif len(credit.rows_K) and credit.rows_K[-1] >= len(answers.versions[credit.store]):
            why = f"has a score for row {credit.rows_K[-1]:,} of {len(answers.versions[credit.store]):,}"
        if why:
            raise BadInput(found=f"an answer {credit.id} that {why}", needed="answers of one store", do="restore the file")
    if len(set(answers.query_ids)) < len(answers.credits):
        raise BadInput(found="an answer that is there twice", needed="every answer once", do="restore the file from a copy")
    return answers


def _versions_in(connection: sqlite3.Connection, store: Store, period: Period) -> tuple[list[str], set[str]]:
    """Digests of the versions of a store that answered in some time, that of the store at hand first; and of all versions that are known.

    Versions of one store are those that came out of each other while it was served, and those of the same model that were served under the
    same name.

    Raises:
        StoreMismatch: If one answered under that name whose examples are not known.
    """
    answered = connection.execute(
        "SELECT store, digest, count(*) FROM queries WHERE time >= ? AND time < ? GROUP BY 1, 2 ORDER BY min(time), 2",
        (period.since, period.until),
    ).fetchall()
    before = known_versions(connection, store.blueprint.model)
    root = _root_of(store.digest, before)
    related = {digest for digest in (store.digest, *before) if _root_of(digest, before) == root}
    names = {name for (name, digest) in connection.execute("SELECT DISTINCT store, digest FROM queries") if digest in related}
    digests = [store.digest]
    for name, digest, count in answered:
        if digest in related or (name in names and digest in before):
            digests += [] if digest in digests else [digest]
        elif name in names or not names:
            raise StoreMismatch(
                found=f"{count:,} answers of {period.name} by a store of digest {digest[:12]}, and {store.folder} of {store.digest[:12]}",
                needed="the store that answered, or versions of it whose examples are in the log: a service with --credits notes them",
                do="pass the store that was served, or a copy of it; if it changed otherwise meanwhile, make a report of each part (FROM/TO)",
            )
    roots = {_root_of(digest, before) for digest in digests}
    return digests, {*digests, *(digest for digest in before if _root_of(digest, before) in roots)}


def _root_of(digest: str, before: Mapping[str, str]) -> str:
    """The version that one goes back to."""
    passed = set()
    while before.get(digest) and digest not in passed:
        passed.add(digest)
        digest = before[digest]
    return digest


def _check_all_there(connection: sqlite3.Connection, path: Path, digests: set[str], period: Period) -> None:
    """Refuse a period of which the log has lost answers.

    Raises:
        BadInput: If it has.
    """
    (removed,) = connection.execute(
        f"SELECT total(answers) FROM removed WHERE {_OF_VERSIONS} AND day >= ? AND day < ?",
        (json.dumps(sorted(digests)), period.since // _DAY, period.until / _DAY),
    ).fetchone()
    if removed:
        raise BadInput(
            found=f"{int(removed):,} answers of {period.name} that are not in {path} any more",
            needed="all of them: the log deletes what is older than --retention-days, and the oldest where it is too large",
            do="take a copy of the log from before, or split what is left with FROM/TO; then serve with a longer --retention-days",
        )


def _common_notes(connection: sqlite3.Connection, within: tuple[str, float, float], count: int) -> tuple[str, ...]:
    """Notes that all answers have."""
    rows = connection.execute(f"SELECT json_extract(answer, '$.notes') {_IN_PERIOD} ORDER BY time", within)
    counts: dict[str, int] = {}
    for (text,) in rows:
        for note in dict.fromkeys(parse_json(text)):
            counts[note] = counts.get(note, 0) + 1
    return tuple(note for note, times in counts.items() if times == count)
