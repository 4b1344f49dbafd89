"""How much of a data set is kept, and how that is shared out among its groups.

Axes: N examples.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from whence.errors import BadInput
from whence.settings import Amount

__all__ = ["Budget", "allot", "soft_weights"]

_HALVINGS = 200


@dataclass(frozen=True)
class Budget:
    """An amount of data.

    Args:
        amount: How much, in the unit.
        unit: "share" of all examples, from 0 to 1; "examples"; or "tokens".
    """

    amount: float
    unit: Literal["share", "examples", "tokens"]

    @classmethod
    def read(cls, amount: Amount) -> "Budget":
        """From what people write.

        Args:
            amount: A whole number of examples, a share between 0 and 1 as a float, or a text: "500", "0.5", "50%" or "20000 tokens".

        Returns:
            The budget.

        Raises:
            BadInput: If it is none of these.

        >>> Budget.read("50%"), Budget.read(30).unit, Budget.read("20000 tokens").unit
        (Budget(amount=0.5, unit='share'), 'examples', 'tokens')
        """
        if isinstance(amount, str):
            parts = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%|tokens)?\s*", amount)
            number, unit = (float(parts[1]), parts[2]) if parts else (-1.0, None)
            if unit is None and "." in amount:  # as typed on a command line: 0.5 is a share and 500 a number of examples
                return cls.read(number)
            if unit == "%" and 0 < number <= 100:
                return cls(number / 100, "share")
            if unit != "%" and number >= 1 and number.is_integer():
                return cls(number, "tokens" if unit else "examples")
        elif isinstance(amount, int) and not isinstance(amount, bool) and amount >= 1:
            return cls(amount, "examples")
        elif isinstance(amount, float) and 0 < amount <= 1:
            return cls(amount, "share")
        raise BadInput(
            found=f"the amount {amount!r}",
            needed="a number of examples, a share, or a number of tokens",
            do="write such as 500, 0.5, '50%' or '20000 tokens'",
        )

    def units(self, total_examples: int) -> int:
        """The budget in whole examples, or in tokens."""
        return round(self.amount * (total_examples if self.unit == "share" else 1))


def allot(amount: int, weights: Sequence[float], caps: Sequence[int]) -> list[int]:
    """Share an amount out in proportion to weights, no group getting more than it can take.

    What a full group leaves over goes to the others, again in proportion; the last few units go to the largest remainders.

    Args:
        amount: To share out; what is more than all groups of positive weight can take is left.
        weights: One per group, 0 or more.
        caps: The most that each can take.

    Returns:
        Whole numbers, one per group.

    >>> allot(9, [1, 1, 1], [1, 10, 10])
    [1, 4, 4]
    """
    given = [0] * len(weights)
    waiting = [group for group, weight in enumerate(weights) if weight > 0 and caps[group] > 0]
    left = min(amount, sum(caps[group] for group in waiting))
    while waiting:
        level = left / sum(weights[group] for group in waiting)
        full = [group for group in waiting if caps[group] <= level * weights[group]]
        if not full:
            break
        for group in full:
            given[group] = caps[group]
            left -= caps[group]
        waiting = [group for group in waiting if group not in full]
    if waiting:
        exact = {group: level * weights[group] for group in waiting}
        given = [int(exact.get(group, already)) for group, already in enumerate(given)]
        by_remainder = sorted(waiting, key=lambda group: (given[group] - exact[group], group))
        for group in by_remainder[: left - sum(given[group] for group in waiting)]:
            given[group] += 1
    return given


def soft_weights(values_N: Tensor, effective: float) -> Tensor:
    """Weights of mean 1 that raise the sum of weight x value as far as a given evenness allows.

    Of all weights w >= 0 with mean 1 and an effective number (sum w)^2 / sum w^2 (Kish 1965) of at least `effective`, those with the largest
    sum of w x value: w = s (value - t)+. The value is the predicted change when the weight goes from 1 to 2, so the sum of
    (w - 1) x value is the predicted change of all. t is found by halving: the effective number falls as t rises.

    Args:
        values_N: Higher is better.
        effective: How many examples of equal weight would be as uneven; from 1 to N.

    Returns:
        Shape (N,), float64. If more examples than `effective` share the highest value, these share the weight.

    >>> soft_weights(torch.tensor([1.0, -1.0]), 1.6)
    tensor([1.5000, 0.5000], dtype=torch.float64)
    """
    values_N = values_N.double()
    top = float(values_N.max())
    spread = top - float(values_N.min())
    if spread == 0 or effective >= len(values_N):
        return torch.ones_like(values_N)
    # With t so far below, weights differ by a millionth.
    low, high = top - 1e6 * spread, top
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        above_N = (values_N - middle).clamp_min(0)
        total = above_N.sum()
        if float(total) > 0 and float(total.square() / above_N.square().sum()) >= effective:
            low = middle
        else:
            high = middle
    above_N = (values_N - low).clamp_min(0)
    return above_N * (len(values_N) / above_N.sum())
