"""Which periods of a log were paid out, and by which report: so that no period and no amount held back is paid twice."""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from whence.errors import BadInput
from whence.ledger.periods import Period
from whence.strict_json import parse_json

__all__ = ["PaidOut", "check_payout", "paid_out", "write_payout"]


@dataclass(frozen=True)
class PaidOut:
    """A payout of a log.

    Args:
        stores: Digests of the versions of the store whose answers it is of.
        period: What it was for.
        seal: Of its report; empty as long as it is not known.
        carried: Seal of the report whose amounts held back it took; empty for none.
        held_back: What it held back in all, with the currency; empty for nothing.
    """

    stores: tuple[str, ...]
    period: Period
    seal: str
    carried: str
    held_back: str

    def is_place_of(self, other: "PaidOut") -> bool:
        """Whether both are of answers of one store in the very same time, so that one takes the other's place."""
        return bool(set(self.stores) & set(other.stores)) and self.span == other.span

    @property
    def span(self) -> tuple[float, float]:
        """The ends of its period."""
        return self.period.since, self.period.until


def paid_out(connection: sqlite3.Connection) -> list[PaidOut]:
    """The payouts of a log so far, of all stores, in order of time."""
    rows = connection.execute(
        "SELECT json_group_array(digest), period, since, until, seal, carried, held FROM "
        "(SELECT * FROM payouts ORDER BY digest) GROUP BY since, until, seal ORDER BY since, until, seal"
    )
    return [
        PaidOut(tuple(parse_json(digests)), Period(name, since, until), *rest) for digests, name, since, until, *rest in rows
    ]


def write_payout(connection: sqlite3.Connection, payout: PaidOut, *, replace: bool) -> None:
    """Note a payout, unless its period or what it carries was paid before. Noting the same one again changes nothing.

    Args:
        connection: Of the log.
        payout: What is paid.
        replace: Whether it takes the place of the one for the same period.

    Raises:
        BadInput: If it would pay something twice.
    """
    with connection:
        # First of all, so that of two at the same time the later one sees the earlier.
        connection.execute("BEGIN IMMEDIATE")
        earlier = paid_out(connection)
        check_payout(earlier, payout, replace=replace)
        connection.executemany(
            "DELETE FROM payouts WHERE digest = ? AND since = ? AND until = ?",
            [(store, *other.span) for other in earlier if other.is_place_of(payout) for store in other.stores],
        )
        period = payout.period
        connection.executemany(
            "INSERT INTO payouts VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                (store, period.name, period.since, period.until, payout.seal, payout.carried, payout.held_back)
                for store in payout.stores
            ],
        )


def check_payout(earlier: Sequence[PaidOut], payout: PaidOut, *, replace: bool) -> None:
    """Refuse to pay something twice.

    Args:
        earlier: Payouts of all stores of the log.
        payout: The new one.
        replace: As in `write_payout`.

    Raises:
        BadInput: If its period overlaps another's of the same store, was paid by another report, or what it carries was carried before; or if
            it takes the place of a report from which another payout has carried.
    """
    for other in earlier:
        is_same = other.is_place_of(payout)
        is_of_store = bool(set(other.stores) & set(payout.stores))
        if is_of_store and not is_same and other.period.overlaps(payout.period):
            raise BadInput(
                found=f"the period {payout.period.name}, part of which was paid out as {other.period.name} (seal {other.seal[:12]})",
                needed="a period of which nothing was paid",
                do=f"pass one outside of {other.period.name}",
            )
        is_other = is_same and payout.seal not in ("", other.seal)
        if is_other and not replace:
            raise BadInput(
                found=f"the period {payout.period.name}, which was paid out by another report (seal {other.seal[:12]})",
                needed="the same records, rule and amounts for the same period, or it would be paid twice",
                do="pass what was passed then, or --replace if that report was never paid",
            )
        later = next((each for each in earlier if each.carried == other.seal), None)
        if is_other and later is not None:
            raise BadInput(
                found=f"a report to be replaced (seal {other.seal[:12]}) whose amounts held back the payout of {later.period.name} took",
                needed="a report that nothing was carried from, or these amounts would be paid although they are held back no more",
                do=f"replace the payout of {later.period.name} first, by one that does not carry them",
            )
        if payout.carried and other.carried == payout.carried and not is_same:
            raise BadInput(
                found=f"a report to carry from whose amounts the payout of {other.period.name} took (seal {other.seal[:12]})",
                needed="amounts held back that nobody took yet",
                do=f"carry from the report of {other.period.name}, or leave --carry out",
            )
