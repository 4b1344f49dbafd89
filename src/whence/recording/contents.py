"""What a loop gives its model for an example, in a few numbers: enough to see whether attribution has the same tokens and labels."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whence.tasks.token_loss import IGNORED

__all__ = ["Content", "contents_of"]


@dataclass(frozen=True)
class Content:
    """An example as the model saw it, without padding.

    Args:
        tokens: Digest of its token ids.
        num_tokens: How many they are.
        labels: Digest of its labels and where they stand; of a text without the first token's, which nothing predicts; 0 if not known.
        num_labels: How many they are; -1 if not known.
    """

    tokens: int
    num_tokens: int
    labels: int
    num_labels: int

    def numbers(self) -> tuple[int, ...]:
        """As they lie in a file."""
        return astuple(self)


def contents_of(inputs: Mapping[str, Any], count: int, rows: Sequence[int] | None = None) -> list[Content]:
    """Contents of a batch's examples; none where the inputs do not say which tokens are whose.

    Args:
        inputs: What the model gets by keyword: `input_ids` (B, T), and where there are, `attention_mask` (B, T) and `labels`, (B, T) or (B,).
        count: Examples in it.
        rows: Which of them; None for all.
    """
    ids, mask, labels = (_numbers(inputs.get(name)) for name in ("input_ids", "attention_mask", "labels"))
    if ids is None or ids.ndim != 2 or len(ids) != count:
        return []
    if labels is not None and len(labels) != count:
        labels = None
    if mask is None or mask.shape != ids.shape:
        if labels is not None and labels.ndim == 2 and bool((labels[:, -1] == IGNORED).any()):
            return []  # perhaps padding, which nothing tells from a text
        mask = torch.ones_like(ids)
    own_ids, real = ids.detach().cpu().numpy(), mask.bool().cpu().numpy()
    wanted = None if labels is None else labels.detach().cpu().numpy()
    return [_content(own_ids[row], real[row], None if wanted is None else wanted[row]) for row in rows or range(count)]


def _numbers(value: Any) -> Tensor | None:
    """Whole numbers, one or a row for each example; None for anything else."""
    fits = isinstance(value, Tensor) and value.ndim in (1, 2) and not value.is_floating_point() and value.shape[-1] > 0
    return value if fits else None


def _content(ids_T: np.ndarray, real_T: np.ndarray, labels: np.ndarray | None) -> Content:
    tokens = ids_T[real_T]
    if labels is None:
        return Content(_digest(tokens), len(tokens), 0, -1)
    if labels.ndim == 0:
        return Content(_digest(tokens), len(tokens), _digest(labels), 1)
    scored = np.flatnonzero(labels != IGNORED)
    first = int(real_T.argmax()) if labels.shape == ids_T.shape else 0  # of a text that is padded on the left
    scored = scored[scored != first]
    return Content(_digest(tokens), len(tokens), _digest(np.stack([scored - first, labels[scored]])), len(scored))


def _digest(values: np.ndarray) -> int:
    content = np.ascontiguousarray(values, np.int64).tobytes()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little", signed=True)
