"""Rows of tokens for models that predict the next one, and what each row's labels cost.

Axes: R rows, T positions, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from whence.tasks.outputs import output_of
from whence.tasks.token_loss import IGNORED, token_losses

__all__ = ["next_token_losses", "token_rows"]


def token_rows(rows: Sequence[Mapping[str, Any]], padding: int, device: torch.device) -> dict[str, Tensor]:
    """Token ids, labels and mask, right-padded, each of shape (R, T).

    Args:
        rows: Each with `input_ids` and as many `labels`.
        padding: The token that fills up rows.
        device: Where they go.
    """
    shape = len(rows), max(len(row["input_ids"]) for row in rows)
    batch = {
        "input_ids": torch.full(shape, padding),
        "labels": torch.full(shape, IGNORED),
        "attention_mask": torch.zeros(shape, dtype=torch.long),
    }
    for number, row in enumerate(rows):
        length = len(row["input_ids"])
        batch["input_ids"][number, :length] = torch.as_tensor(row["input_ids"])
        batch["labels"][number, :length] = torch.as_tensor(row["labels"])
        batch["attention_mask"][number, :length] = 1
    return {name: value.to(device) for name, value in batch.items()}


def next_token_losses(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Summed negative log-likelihood of each row's labels in nats, each predicted at the position before it; shape (R,)."""
    logits_RTV = output_of(model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]))
    # The labels move instead of the logits: a slice of those would copy the largest tensor of the whole pass.
    labels_RT = nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)
    per_token = token_losses(logits_RTV.flatten(0, 1), labels_RT.flatten())
    return per_token.view(labels_RT.shape).sum(1)
