"""What every way to shrink a gradient has in common: it takes the pairs of a batch and gives rows of numbers.

Axes: B batch, T positions, P x R one stored unit of a row.
"""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from whence.records import Pair, Unit

__all__ = ["Encoder", "RowConsumer"]


class RowConsumer(Protocol):
    """Adds up one batch's pairs; passed to `capture` as its consumer."""

    def __call__(self, index: int, pair: Pair) -> None:
        """Add one pair of the plan's unit `index`."""
        ...

    def finished(self) -> list[Tensor]:
        """Per stored unit the encoded gradients, shape (B, P, R), float32 or wider; zeros where the loss did not reach."""
        ...


class Encoder(Protocol):
    """A linear map from an example's gradient, all units of the plan, to the units of a stored row.

    Linear, so that several uses of a weight add up before or after it, and a score splits over positions. Stored units may be fewer than the
    plan's: a method that shrinks the whole gradient at once has a single one.
    """

    @property
    def units(self) -> tuple[Unit, ...]:
        """The stored units: their names, and which parameters each is made from."""
        ...

    def shapes(self) -> list[tuple[int, int]]:
        """(P, R) of every stored unit."""
        ...

    def gains(self) -> list[float]:
        """Mean diagonal of E E^T per stored unit, E its map; an absolute damping has to be multiplied by it."""
        ...

    def rows(self, num_examples: int) -> RowConsumer:
        """A fresh consumer for a batch."""
        ...

    def position_scores(self, index: int, pair: Pair, queries: Sequence[Tensor]) -> Tensor:
        """Each position's part of the inner product of one example's row with a query.

        Args:
            index: Unit of the plan.
            pair: One pair of it, of a single example.
            queries: Per stored unit, shape (P, R).

        Returns:
            Shape (T,), in the queries' type.
        """
        ...
