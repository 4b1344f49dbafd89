"""Which answers of a log have a receipt yet: a number is given with the answer, in one transaction, and the receipt comes after it.

The receipt's head is in that transaction too. So the chain need not be on the disk when the answer goes out: what a stop of the machine takes
from it is made again from the log, byte for byte.
"""

import hashlib
import sqlite3
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from whence.errors import BadInput
from whence.ledger.receipts import Chain, Draft, Sealed, head_of
from whence.strict_json import parse_json

__all__ = ["check_chain", "next_receipts", "note_heads", "sealed_answer", "unsealed_answers", "unsure_receipts"]

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


def note_heads(connection: sqlite3.Connection, chain: Chain, drafts: Sequence[Draft]) -> None:
    """Note which receipts are about to be added, in place of those before, which are on the disk.

    Args:
        connection: Of the log, in a transaction.
        chain: The receipts.
        drafts: The new ones.
    """
    connection.execute("DELETE FROM heads")
    lines = ((draft.head.number, chain.lines.size, draft.head_text.decode()) for draft in drafts)
    connection.executemany("INSERT INTO heads VALUES (?, ?, ?)", lines)


def unsure_receipts(connection: sqlite3.Connection) -> tuple[int, list[Draft]]:
    """Receipts that the chain may have lost when the machine stopped, and the byte where the first began."""
    rows = connection.execute(
        "SELECT at, head, answer FROM heads JOIN queries ON queries.receipt = heads.number ORDER BY heads.number"
    ).fetchall()
    drafts = []
    for _, head, answer in rows:
        draft = Draft(head=head_of(parse_json(head)), content=answer.encode())
        is_next = not drafts or draft.head.previous == drafts[-1].hash
        if not is_next or hashlib.sha256(draft.content).hexdigest() != draft.head.digest:
            break
        drafts.append(draft)
    return (rows[0][0] if rows else 0), drafts


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
