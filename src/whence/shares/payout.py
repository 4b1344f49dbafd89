"""An amount of money split by shares: whole cents, added up exactly, small sums held back."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from math import lcm

from whence.errors import BadInput

__all__ = ["Payout", "Settled", "apportion", "settle"]

# Whatever else Python takes for a number (1e9, 1_000, digits of other scripts) may be misread where money is at stake.
_AMOUNT = re.compile(r"[0-9]{1,18}(\.[0-9]{0,9})?")
# Digits after the point where they are not two (ISO 4217, list one).
_WITHOUT = (
    "BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG", "RWF", "UGX", "UYI", "VND", "VUV", "XAF", "XOF", "XPF",
)  # fmt: skip
_THREE = ("BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND")
_DIGITS: dict[str, int] = {**dict.fromkeys(_WITHOUT, 0), **dict.fromkeys(_THREE, 3)}


@dataclass(frozen=True)
class Payout:
    """What is to be paid out, in whole units of the currency's smallest coin.

    >>> Payout.read("1000.00 EUR", minimum="5")
    Payout(total=100000, currency='EUR', minimum=500)

    Args:
        total: The amount.
        currency: Three letters, as in ISO 4217.
        minimum: Who is due less is not paid but held back.
    """

    total: int
    currency: str
    minimum: int = 0

    @classmethod
    def read(cls, text: str, *, minimum: str | None = None) -> "Payout":
        """From amounts as people write them.

        Args:
            text: Amount and currency, such as "1000.00 EUR".
            minimum: An amount in the same currency; None for no minimum.

        Raises:
            BadInput: If it is no such text.
        """
        parts = text.split()
        if len(parts) != 2 or not re.fullmatch("[A-Z]{3}", parts[1]):
            raise BadInput(
                found=f"the payout {text!r}",
                needed="an amount and the three capital letters of its currency",
                do="write it as '1000.00 EUR'",
            )
        empty = cls(0, parts[1])
        return cls(empty.units(parts[0]), parts[1], 0 if minimum is None else empty.units(minimum))

    @property
    def digits(self) -> int:
        """Digits after the point."""
        return _DIGITS.get(self.currency, 2)

    def units(self, text: str) -> int:
        """An amount, written with a decimal point, in units of the smallest coin.

        Raises:
            BadInput: If it is no amount, is negative, is finer than the smallest coin, or has more than 18 digits.
        """
        amount = Decimal(text).scaleb(self.digits) if _AMOUNT.fullmatch(text) else None
        if amount is None or amount != amount.to_integral_value():
            raise BadInput(
                found=f"the amount {text[:80]!r}",
                needed=f"a number of {self.currency} that is not negative, with {self.digits} digits after the point at most, 18 before",
                do="write it with a decimal point and without separators, such as 1234.5" if self.digits else "round it",
            )
        return int(amount)

    def text(self, units: int) -> str:
        """An amount as it is written, with a decimal point and no separators."""
        return f"{Decimal(units).scaleb(-self.digits):.{self.digits}f}"


@dataclass(frozen=True)
class Settled:
    """What becomes of one line's part of a payout, in units of the smallest coin; `amount + carried == paid + held + kept`.

    Args:
        amount: Its part of this payout.
        carried: What was held back for it before.
        paid: To be paid now.
        held: Held back, being less than the minimum: to be carried into the next payout.
        kept: Not anybody's: of a line without a known source.
    """

    amount: int
    carried: int = 0
    paid: int = 0
    held: int = 0
    kept: int = 0


def apportion(total: int, parts: Sequence[int | float]) -> list[int]:
    """Split a whole number in proportion to numbers, into whole numbers that add up to it exactly.

    The method of largest remainders (Hamilton 1792; Balinski and Young, Fair Representation, 1982, chapter 2), in integers throughout: a
    float is the fraction that its bits say. Everyone gets the exact share rounded down; what is left goes, one each, to the largest
    remainders, and among equal ones to those that come first. So nobody is a whole unit away from the exact share.

    >>> apportion(100, [1, 1, 1])
    [34, 33, 33]

    Args:
        total: What to split, not negative.
        parts: Not negative, finite, not all zero.

    Returns:
        One whole number per part.

    Raises:
        BadInput: If the parts cannot be split by.
    """
    if total < 0 or any(not 0 <= part < float("inf") for part in parts) or not any(parts):
        raise BadInput(
            found=f"{total} to be split by {len(parts)} parts",
            needed="an amount that is not negative, and finite parts that are not negative, one of them above zero",
            do="check the amount and the weights",
        )
    ratios = [part.as_integer_ratio() for part in parts]
    whole = lcm(*(below for _, below in ratios))
    weights = [above * (whole // below) for above, below in ratios]
    weight = sum(weights)
    given = [total * part // weight for part in weights]
    # Sorting keeps the order of equals, so ties go to the first.
    order = sorted(range(len(weights)), key=lambda index: -(total * weights[index] % weight))
    for index in order[: total - sum(given)]:
        given[index] += 1
    return given


def settle(payout: Payout, names: Sequence[str | None], parts: Sequence[int], carried: Mapping[str, int]) -> list[Settled]:
    """Split a payout over lines and say who is paid.

    Args:
        payout: What to split.
        names: Of each line; None for one without a known source, which is never paid.
        parts: Each line's share, in any unit.
        carried: By name, what was held back before; of lines that are there.

    Returns:
        One per line; parts add up to the payout, and nothing is lost to the minimum.
    """
    settled = []
    for name, amount in zip(names, apportion(payout.total, parts), strict=True):
        before = 0 if name is None else carried.get(name, 0)
        due = amount + before
        if name is None:
            settled.append(Settled(amount, kept=amount))
        elif due < payout.minimum:
            settled.append(Settled(amount, before, held=due))
        else:
            settled.append(Settled(amount, before, paid=due))
    return settled
