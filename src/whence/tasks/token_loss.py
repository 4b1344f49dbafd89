"""Cross-entropy over a large vocabulary without copies of the logits.

Axes: N positions, V vocabulary.

PyTorch's own keeps the log-probabilities, fills a second tensor of that size with zeros on the way back and makes a third. With a small
model and a large vocabulary these are most of a pass's memory and a good part of its time (benchmarks/build_speed.py).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["IGNORED", "token_losses"]

IGNORED = -100
# Logits worked on at a time: they should stay in cache on a processor, and fill a device with work.
_CHUNK_BYTES = {"cpu": 2 << 20}
_DEVICE_CHUNK_BYTES = 256 << 20


def token_losses(logits_NV: Tensor, labels_N: Tensor) -> Tensor:
    """Negative log-likelihood of each label in nats, 0 where the label is -100.

    Can be differentiated twice.

    Args:
        logits_NV: The logits, in any floating type; the arithmetic is float32 or wider.
        labels_N: The labels.

    Returns:
        Shape (N,), float32 or wider.

    >>> token_losses(torch.zeros(2, 4), torch.tensor([1, -100]))
    tensor([1.3863, 0.0000])
    """
    return _TokenLosses.apply(logits_NV, labels_N)


class _TokenLosses(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(logits_NV: Tensor, labels_N: Tensor) -> Tensor:
        losses = []
        for logits, labels in _chunks(logits_NV, labels_N):
            log_p = torch.log_softmax(logits.to(_wide(logits)), -1)
            loss = -log_p.gather(1, labels.clamp_min(0)[:, None])[:, 0]
            losses.append(loss.masked_fill(labels == IGNORED, 0.0))
        return torch.cat(losses)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor, None]:
        return _TokenGradients.apply(*ctx.saved_tensors, grad_N), None


class _TokenGradients(torch.autograd.Function):
    """The gradient by the logits: grad (p - one-hot) of each row."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits_NV: Tensor, labels_N: Tensor, grad_N: Tensor) -> Tensor:
        grad_N = grad_N.masked_fill(labels_N == IGNORED, 0.0)
        result_NV = torch.empty_like(logits_NV)
        at = 0
        for logits, labels in _chunks(logits_NV, labels_N):
            rows = slice(at, at + len(labels))
            p = _errors(logits, labels)
            if p.dtype == result_NV.dtype:
                torch.mul(p, grad_N[rows, None], out=result_NV[rows])
            else:
                result_NV[rows] = p.mul_(grad_N[rows, None])
            at += len(labels)
        return result_NV

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, rows_NV: Tensor) -> tuple[Tensor, None, Tensor]:
        logits_NV, labels_N, grad_N = ctx.saved_tensors
        grad_N = grad_N.masked_fill(labels_N == IGNORED, 0.0)
        by_logits, by_grad = [], []
        at = 0
        for logits, labels in _chunks(logits_NV, labels_N):
            chosen = slice(at, at + len(labels))
            rows, p = rows_NV[chosen].to(_wide(logits)), torch.softmax(logits.to(_wide(logits)), -1)
            mean = (p * rows).sum(-1, keepdim=True)
            by_logits.append((p * (rows - mean) * grad_N[chosen, None]).to(logits.dtype))
            own = rows.gather(1, labels.clamp_min(0)[:, None])
            by_grad.append((mean - own)[:, 0].masked_fill(labels == IGNORED, 0.0))
            at += len(labels)
        return torch.cat(by_logits), None, torch.cat(by_grad).to(grad_N.dtype)


def _errors(logits: Tensor, labels: Tensor) -> Tensor:
    """Probabilities less the one-hot label."""
    p = torch.softmax(logits.to(_wide(logits)), -1)
    return p.scatter_add_(1, labels.clamp_min(0)[:, None], p.new_full((len(labels), 1), -1.0))


def _wide(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)


def _chunks(logits_NV: Tensor, labels_N: Tensor) -> Any:
    size = _CHUNK_BYTES.get(logits_NV.device.type, _DEVICE_CHUNK_BYTES)
    rows = max(1, size // (4 * logits_NV.shape[1]))
    return zip(logits_NV.split(rows), labels_N.split(rows), strict=True)
