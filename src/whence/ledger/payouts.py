"""Which periods of a log were paid out, and by which report: so that no period and no amount held back is paid twice."""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from whence.errors import BadInput
from whence.ledger.periods import Period

__all__ = ["PaidOut", "check_payout", "paid_out", "write_payout"]


@dataclass(frozen=True)
class PaidOut:
    """A payout of a log.

    Args:
        period: What it was for.
        seal: Of its report.
        carried: Seal of the report whose amounts held back it took; empty for none.
        held_back: What it held back in all, with the currency; empty for nothing.
    """

    period: Period
    seal: str
    carried: str
    held_back: str


def paid_out(connection: sqlite3.Connection, digest: str) -> list[PaidOut]:
    """The payouts of a store so far, in order of time.

    Args:
        connection: Of the log.
        digest: Of the store; empty for all stores.
    """
    rows = connection.execute(
        "SELECT period, since, until, seal, carried, held FROM payouts WHERE digest = ? OR ? = '' ORDER BY since",
        (digest, digest),
    )
    return [PaidOut(Period(name, since, until), *rest) for name, since, until, *rest in rows]


def write_payout(connection: sqlite3.Connection, digest: str, payout: PaidOut, *, replace: bool) -> None:
    """Note a payout, unless its period or what it carries was paid before. Noting the same one again changes nothing.

    Args:
        connection: Of the log.
        digest: Of the store.
        payout: What is paid.
        replace: Whether it takes the place of the one for the same period.

    Raises:
        BadInput: If it would pay something twice.
    """
    with connection:
        # First of all, so that of two at the same time the later one sees the earlier.
        connection.execute("BEGIN IMMEDIATE")
        check_payout(paid_out(connection, digest), paid_out(connection, ""), payout, replace=replace)
        period = payout.period
        connection.execute(
            "INSERT OR REPLACE INTO payouts VALUES (?, ?, ?, ?, ?, ?, ?)",
            (digest, period.name, period.since, period.until, payout.seal, payout.carried, payout.held_back),
        )


def check_payout(earlier: Sequence[PaidOut], anywhere: Sequence[PaidOut], payout: PaidOut, *, replace: bool) -> None:
    """Refuse to pay something twice.

    Args:
        earlier: Payouts of the same store.
        anywhere: Payouts of all stores of the log.
        payout: The new one; without a seal as long as it is not known.
        replace: As in `write_payout`.

    Raises:
        BadInput: If its period overlaps another's, was paid by another report, or what it carries was carried before.
    """
    span = (payout.period.since, payout.period.until)
    for other in earlier:
        is_same = (other.period.since, other.period.until) == span
        if not is_same and other.period.overlaps(payout.period):
            raise BadInput(
                found=f"the period {payout.period.name}, part of which was paid out as {other.period.name} (seal {other.seal[:12]})",
                needed="a period of which nothing was paid",
                do=f"pass one outside of {other.period.name}",
            )
        if is_same and payout.seal and other.seal != payout.seal and not replace:
            raise BadInput(
                found=f"the period {payout.period.name}, which was paid out by another report (seal {other.seal[:12]})",
                needed="the same records, rule and amounts for the same period, or it would be paid twice",
                do="pass what was passed then, or --replace if that report was never paid",
            )
    for other in anywhere:
        is_same = (other.period.since, other.period.until) == span
        if payout.carried and other.carried == payout.carried and not is_same:
            raise BadInput(
                found=f"a report to carry from whose amounts the payout of {other.period.name} took (seal {other.seal[:12]})",
                needed="amounts held back that nobody took yet",
                do=f"carry from the report of {other.period.name}, or leave --carry out",
            )
