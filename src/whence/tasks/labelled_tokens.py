"""What tasks share whose model gives logits at every position and whose labels stand at the positions that they are of.

Axes: B examples, T positions, V classes or vocabulary, M scored positions.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from whence.tasks.base import AbstractTask, Batch
from whence.tasks.measures import chosen_measure, mean_log_odds
from whence.tasks.outputs import Outputs
from whence.tasks.token_loss import IGNORED, token_losses

__all__ = ["AbstractTokenTask"]


class AbstractTokenTask(AbstractTask):
    """A loss that is summed over labelled positions; a batch has `labels` (B, T), -100 where nothing is scored.

    Args:
        model: The model.
        measure: What a query asks about: "loss" (the log-probability of its labels), or a function of model and batch that gives one value
            per query, shape (B,).
        unit: What a measurement of one's own is counted in.
        units: Of "loss".
        **options: See `AbstractTask`.
    """

    def __init__(self, model: nn.Module, measure: Any, unit: str | None, units: Mapping[str, str], **options: Any):
        super().__init__(model, **options)
        self.measure, self.unit = chosen_measure(measure, unit, units)

    @abstractmethod
    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits at every position, where its own label stands, shape (B, T, V)."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Summed negative log-likelihood of each example's labels in nats, shape (B,)."""
        logits_BTV = self.logits(model, batch)
        return token_losses(logits_BTV.flatten(0, 1), batch["labels"].flatten()).view(batch["labels"].shape).sum(1)

    def measurement(self, model: nn.Module, batch: Batch) -> Tensor:
        """Log-probability of each query's labels, or what one's own function gives, shape (B,)."""
        return -self.loss(model, batch) if isinstance(self.measure, str) else self.measure(model, batch)

    @property
    def highest_measurement(self) -> float | None:
        """0 for the log-probability, None for any other measurement."""
        return 0.0 if self.measure == "loss" else None

    def output_function(self, model: nn.Module, batch: Batch) -> Tensor:
        """Log-odds of the labels' geometric mean probability, times their number, shape (B,)."""
        return mean_log_odds(self.loss(model, batch), _num_labels(batch))

    def output_weights(self, values_B: Tensor, batch: Batch) -> Tensor:
        """One minus the labels' geometric mean probability, shape (B,)."""
        return torch.sigmoid(-values_B / _num_labels(batch))

    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        """Logits at every labelled position, shape (M, V)."""
        is_scored_BT = batch["labels"] != IGNORED
        values_MV = self.logits(model, batch)[is_scored_BT]
        wide = torch.promote_types(values_MV.dtype, torch.float32)
        return Outputs(values_MV.to(wide), is_scored_BT.nonzero()[:, 0], batch["labels"][is_scored_BT], "categorical")

    def positions(self, batch: Batch) -> Tensor | tuple[Tensor, ...] | None:
        """True at real tokens, shape (B, T)."""
        return batch["attention_mask"].bool()


def _num_labels(batch: Batch) -> Tensor:
    """Labelled positions of each example, shape (B,)."""
    return (batch["labels"] != IGNORED).sum(1)
