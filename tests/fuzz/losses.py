"""How a loss calls a model, and what it makes of the values: right ones, and mistakes that mix the examples of a batch.

Axes: B examples, C outputs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["CALLS", "CLASSES", "LOSSES", "Loss", "logits_of"]

CLASSES = 3


def logits_of(found) -> Tensor:
    """The logits among what a model gives."""
    if isinstance(found, dict):
        return found["logits"]
    return found[0] if isinstance(found, tuple | list) else getattr(found, "logits", found)


CALLS: dict[str, Callable] = {
    "model(x)": lambda m, x: logits_of(m(**x)),
    "model.predict(x)": lambda m, x: m.predict(**x),
    "model.head(model.encode(x))": lambda m, x: m.head(m.encode(**x)),
    "model(x) * model.scale": lambda m, x: logits_of(m(**x)) * m.scale,
    "model(x) * parts.scale": lambda m, x: logits_of(m(**x)) * m.extras["scale"],
    "model(x) twice": lambda m, x: logits_of(m(**x)) + logits_of(m(**x)).tanh(),
    "model(x) and model.encode(x)": lambda m, x: logits_of(m(**x)) + m.encode(**x).mean(-1, keepdim=True),
}


@dataclass(frozen=True)
class Loss:
    """What is made of the values.

    Args:
        value: From values (B, C), targets and what all examples share to one loss per example.
        target: What kind of target it takes.
        mixes_examples: Whether a loss depends on the rest of the batch, or is not one per example.
        is_random: Whether it changes from call to call.
        likelihood: If its Gauss-Newton matrix is known.
    """

    value: Callable[[Tensor, Tensor, dict[str, Tensor]], Tensor]
    target: str = "class"
    mixes_examples: bool = False
    is_random: bool = False
    likelihood: str = ""


def _each(values, targets, shared=None):
    return F.cross_entropy(values, targets, reduction="none")


def _squares(values, targets, shared):
    return 0.5 * (values - targets).square().sum(1)


def _prototypes(values, targets, shared):
    """A mixture around points that all examples share; as many as there may be examples in a batch."""
    distances = (values[:, None] - shared["prototypes"][None]).square().sum(-1)
    return -(-distances).logsumexp(-1)


def _negatives(values, targets, shared):
    unit = F.normalize(values, dim=-1, eps=1e-3)
    return torch.diagonal(-(5 * unit @ unit.T).log_softmax(-1)) + values.square().sum(1)


def _negatives_of_other_classes(values, targets, shared):
    unit = F.normalize(values, dim=-1, eps=1e-3)
    other = targets[:, None] != targets[None]
    return torch.log1p(((5 * unit @ unit.T).exp() * other).sum(1)) + values.square().sum(1)


LOSSES: dict[str, Loss] = {
    "cross-entropy": Loss(_each, likelihood="categorical"),
    "label smoothing": Loss(lambda v, t, s: F.cross_entropy(v, t, reduction="none", label_smoothing=0.1)),
    "class weights": Loss(lambda v, t, s: F.cross_entropy(v, t, reduction="none", weight=s["class_weights"])),
    "one-hot targets": Loss(lambda v, t, s: -(F.one_hot(t, CLASSES) * v.log_softmax(-1)).sum(-1)),
    "focal": Loss(lambda v, t, s: _each(v, t) * (1 - (-_each(v, t)).exp()).square()),
    "hinge": Loss(lambda v, t, s: F.multi_margin_loss(v, t, reduction="none")),
    "squares": Loss(_squares, "real", likelihood="gaussian"),
    "mean of squares": Loss(lambda v, t, s: F.mse_loss(v, t, reduction="none").mean(1), "real"),
    "Huber": Loss(lambda v, t, s: F.huber_loss(v, t, reduction="none", delta=0.3).sum(1), "real"),
    "cosine": Loss(lambda v, t, s: 1 - F.cosine_similarity(v, t, dim=-1), "real"),
    "binary": Loss(lambda v, t, s: F.binary_cross_entropy_with_logits(v, t, reduction="none").sum(1), "bits"),
    "prototypes": Loss(_prototypes),
    "penalty of the values": Loss(lambda v, t, s: _each(v, t) + 0.1 * v.square().sum(-1)),
    "weights of examples": Loss(lambda v, t, s: _each(v, t) * (1.0 + t)),
    "mean": Loss(lambda v, t, s: F.cross_entropy(v, t), mixes_examples=True),
    "sum": Loss(lambda v, t, s: F.cross_entropy(v, t, reduction="sum"), mixes_examples=True),
    "mean of squares over the batch": Loss(lambda v, t, s: F.mse_loss(v, t), "real", True),
    "one column": Loss(lambda v, t, s: _each(v, t)[:, None], mixes_examples=True),
    "divided by the batch": Loss(lambda v, t, s: _each(v, t) / len(v), mixes_examples=True),
    "mean for everybody": Loss(lambda v, t, s: _each(v, t).mean().expand(len(v)), mixes_examples=True),
    "weights relative to the batch's": Loss(
        lambda v, t, s: _each(v, t) * s["class_weights"][t] / s["class_weights"][t].sum(), mixes_examples=True
    ),
    "centred": Loss(lambda v, t, s: (v - v.mean(0)).square().sum(1), mixes_examples=True),
    "in-batch negatives": Loss(_negatives, mixes_examples=True),
    "in-batch negatives of other classes": Loss(_negatives_of_other_classes, mixes_examples=True),
    "largest of the batch": Loss(lambda v, t, s: _each(v, t) / (1 + v.detach().abs().max()), mixes_examples=True),
    "place in the batch": Loss(lambda v, t, s: _each(v, t) * (1 + torch.arange(len(v))), mixes_examples=True),
    "neighbours in the batch": Loss(lambda v, t, s: _each(v + v.roll(1, 0), t), mixes_examples=True),
    "dropout in the loss": Loss(lambda v, t, s: F.dropout(_each(v, t), 0.5), is_random=True),
}
