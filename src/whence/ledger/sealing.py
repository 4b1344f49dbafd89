"""Which answers of a log have a receipt yet: a number is given with the answer, in one transaction, and the receipt comes after it."""

import hashlib
import sqlite3
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from whence.errors import BadInput
from whence.ledger.receipts import Chain, Sealed
from whence.strict_json import parse_json

__all__ = ["check_chain", "next_receipts", "sealed_answer", "unsealed_answers"]

# Answers that are sealed at once where a process left many without a receipt.
_AT_ONCE = 256


def next_receipts(connection: sqlite3.Connection, chain: Chain | None, count: int) -> Sequence[int | None]:
    """Numbers of the receipts that the next answers will get; None each without a chain.

    Args:
        connection: Of the log, in a transaction.
        chain: The receipts.
        count: How many answers.
    """
    if chain is None:
        return [None] * count
    (following,) = connection.execute("SELECT coalesce(max(receipt) + 1, 0) FROM queries").fetchone()
    first = max(following, chain.count)
    return range(first, first + count)


def unsealed_answers(connection: sqlite3.Connection, count: int) -> list[Sealed]:
    """Answers that should have a receipt and have none, in order, some hundreds at most.

    Args:
        connection: Of the log.
        count: Receipts that there are.
    """
    rows = connection.execute(
        "SELECT answer, credit FROM queries LEFT JOIN credits ON credits.query = queries.id WHERE receipt >= ? ORDER BY receipt LIMIT ?",
        (count, _AT_ONCE),
    ).fetchall()
    return [
        sealed_answer(parse_json(answer, any_number=True), None if credit is None else zlib.decompress(credit))
        for answer, credit in rows
    ]


def sealed_answer(content: Mapping[str, Any], credit: bytes | None) -> Sealed:
    """What is sealed of an answer.

    Args:
        content: As the log keeps it.
        credit: Its credit, as `Credit.line` writes it; None without one.
    """
    return Sealed(
        kind="answer",
        id=content["id"],
        time=content["time"],
        store=content["digest"],
        token=content.get("token"),
        content=content,
        credit=None if credit is None else hashlib.sha256(credit).hexdigest(),
    )


def check_chain(connection: sqlite3.Connection, chain: Chain) -> None:
    """Refuse a chain that has lost receipts, so that those of the answers that follow would not fit.

    Raises:
        BadInput: If it has.
    """
    (first,) = connection.execute("SELECT min(receipt) FROM queries WHERE receipt >= ?", (chain.count,)).fetchone()
    if first is not None and first != chain.count:
        raise BadInput(
            found=f"{chain.lines.path} with {chain.count:,} receipts, and a log whose answers without one begin at number {first:,}",
            needed="the chain that belongs to the log, whole",
            do="restore it from a copy, or pass a new --log with it",
        )
