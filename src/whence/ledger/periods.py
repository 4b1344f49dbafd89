"""The time that a payout is for: a month, a day, a year, or from one moment to another."""

import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from whence.errors import BadInput

__all__ = ["Period", "check_over", "period_of"]

_MONTH, _YEAR = re.compile(r"(\d{4})-(\d{2})"), re.compile(r"(\d{4})")


@dataclass(frozen=True)
class Period:
    """Some time.

    Args:
        name: As people write it.
        since: From then on, in seconds since 1970.
        until: Before then.
    """

    name: str
    since: float
    until: float

    def overlaps(self, other: "Period") -> bool:
        """Whether some moment is in both."""
        return self.since < other.until and other.since < self.until


def period_of(text: str) -> Period:
    """A period as people write it; months, days and years are those of UTC.

    >>> period_of("1970-01"), period_of("1970-01-02/1970-01-03T12:00:00Z").until
    (Period(name='1970-01', since=0.0, until=2678400.0), 216000.0)

    Args:
        text: 2026-10 (a month), 2026-10-05 (a day), 2026 (a year), or FROM/TO in ISO 8601, UTC where it names no zone.

    Raises:
        BadInput: If it is none, or ends before it begins.
    """
    name = text.strip()
    try:
        if "/" in name:
            begin, end = map(_moment, name.split("/"))
        elif parts := _MONTH.fullmatch(name):
            year, month = map(int, parts.groups())
            begin, end = datetime(year, month, 1, tzinfo=UTC), datetime(year + month // 12, month % 12 + 1, 1, tzinfo=UTC)
        elif _YEAR.fullmatch(name):
            begin, end = datetime(int(name), 1, 1, tzinfo=UTC), datetime(int(name) + 1, 1, 1, tzinfo=UTC)
        else:
            begin = datetime.strptime(name, "%Y-%m-%d").replace(tzinfo=UTC)
            end = begin + timedelta(days=1)
        since, until = begin.timestamp(), end.timestamp()
    except (ValueError, OverflowError):
        since, until = 0.0, 0.0
    if since >= until:
        raise BadInput(
            found=f"the period {name[:80]!r}",
            needed="a month such as 2026-10, a day, a year, or FROM/TO in ISO 8601, the end after the beginning",
            do="write it so",
        )
    return Period(name, since, until)


def check_over(period: Period) -> None:
    """Refuse a period in which answers may still be given.

    Raises:
        BadInput: If it is not over.
    """
    if time.time() < period.until:
        end = datetime.fromtimestamp(period.until, UTC).isoformat()
        raise BadInput(
            found=f"the period {period.name}, which is over at {end} only",
            needed="a period that is over, so that no answer comes into it any more",
            do="wait until then, or pass an earlier one",
        )


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text.strip())
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
