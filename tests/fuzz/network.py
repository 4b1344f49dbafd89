"""A random model: a stem, parts, a pool, a head, and the form in which it gives its logits."""

from collections import namedtuple
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.fuzz.formula import WIDTH, Formula, Part, parameter
from tests.fuzz.losses import CLASSES, logits_of
from tests.fuzz.positionwise import POSITIONWISE, VECTOR
from tests.fuzz.sequential import SEQUENCE
from tests.fuzz.spatial import IMAGE, SIGNAL
from tests.fuzz.tokens import BAG, TABLE

__all__ = ["FORMS", "HEADS", "KINDS", "Kind", "Network"]


@dataclass(frozen=True)
class Kind:
    """A kind of input.

    Args:
        shape: Of one example; empty for token ids.
        stems: What may come first; "" for nothing.
        parts: What may follow.
    """

    shape: tuple[int, ...]
    stems: dict[str, Part]
    parts: dict[str, Part]


_NOTHING = {"": Part(nn.Identity)}
KINDS: dict[str, Kind] = {
    "vectors": Kind((WIDTH,), _NOTHING, {**POSITIONWISE, **VECTOR}),
    "sequences": Kind((3, WIDTH), _NOTHING, {**POSITIONWISE, **SEQUENCE}),
    "images": Kind((WIDTH, 4, 4), _NOTHING, IMAGE),
    "signals": Kind((WIDTH, 6), _NOTHING, SIGNAL),
    "tokens": Kind((), TABLE, {**POSITIONWISE, **SEQUENCE}),
    "bags": Kind((), BAG, {**POSITIONWISE, **VECTOR}),
}

HEADS = {
    "linear": lambda: nn.Linear(WIDTH, CLASSES),
    "linear without bias": lambda: nn.Linear(WIDTH, CLASSES, bias=False),
    "perceptron": lambda: nn.Sequential(nn.Linear(WIDTH, 5), nn.Tanh(), nn.Linear(5, CLASSES)),
    "matrix": lambda: Formula(lambda m, x: x @ m.matrix, matrix=parameter(WIDTH, CLASSES)),
    "normed": lambda: Formula(
        lambda m, x: F.normalize(x, dim=-1, eps=1e-3) @ F.normalize(m.layer.weight, dim=-1).T,
        layer=nn.Linear(WIDTH, CLASSES, False),
    ),
    "frozen": lambda: nn.Linear(WIDTH, CLASSES).requires_grad_(False),
}


@dataclass
class Record:
    """A model's output as a dataclass."""

    logits: Tensor
    features: Tensor | None = None


Named = namedtuple("Named", "logits features")

FORMS = {
    "tensor": lambda logits, features: logits,
    "tuple": lambda logits, features: (logits, features),
    "list": lambda logits, features: [logits, features],
    "dict": lambda logits, features: {"logits": logits, "features": features},
    "dataclass": Record,
    "named tuple": Named,
}


class Network(nn.Module):
    """Args are names in the tables above; each example becomes (CLASSES,) logits."""

    def __init__(self, kind: str, stem: str, parts: tuple[str, ...], head: str, form: str):
        super().__init__()
        known = KINDS[kind]
        self.kind, self.form = kind, form
        self.stem = known.stems[stem].make()
        self.body = nn.Sequential(*(known.parts[name].make() for name in parts))
        self.head = HEADS[head]()

    def encode(self, inputs: Tensor, attention_mask: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """Features of each example, shape (B, W)."""
        hidden = self.body(self.stem(inputs))
        if self.kind in ("sequences", "tokens"):
            weights = torch.ones_like(hidden[..., :1]) if attention_mask is None else attention_mask[..., None].to(hidden.dtype)
            hidden = (hidden * weights).sum(1) / weights.sum(1)
        elif hidden.ndim > 2:
            hidden = hidden.flatten(2).mean(2)
        return hidden if shift is None else hidden + shift

    def predict(self, inputs: Tensor, attention_mask: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """The logits, through the model itself."""
        return logits_of(self(inputs, attention_mask, shift))

    def forward(self, inputs: Tensor, attention_mask: Tensor | None = None, shift: Tensor | None = None):
        features = self.encode(inputs, attention_mask, shift)
        return FORMS[self.form](self.head(features), features)
