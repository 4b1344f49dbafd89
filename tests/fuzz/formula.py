"""Layers written as a formula, and what a part of a random model is.

Axes: B examples, T positions, W = 4 features or channels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

__all__ = ["WIDTH", "Formula", "Part", "parameter"]

WIDTH = 4
"""Every part maps W features to W features, so that any of them may be dropped or come in any order."""


class Formula(nn.Module):
    """A module of a few layers and parameters and of what is made of them.

    Args:
        formula: From the module and its inputs to its output.
        **held: Layers and parameters by name.
    """

    def __init__(self, formula: Callable[..., Any], **held: Any):
        super().__init__()
        self.formula = formula
        for name, value in held.items():
            setattr(self, name, value)

    def forward(self, *inputs, **named):
        return self.formula(self, *inputs, **named)


@dataclass(frozen=True)
class Part:
    """One part of a model.

    Args:
        make: Makes it.
        mixes_positions: Whether a position's output depends on other positions, so that padding may change it.
        mixes_examples: Whether an example's output depends on the rest of its batch, so that it has no gradient of its own.
        limits: What whence may say to a model with it, as regular expressions: limits that docs/coverage.md states.
    """

    make: Callable[[], nn.Module]
    mixes_positions: bool = False
    mixes_examples: bool = False
    limits: tuple[str, ...] = ()


def parameter(*shape: int, mean: float = 0.0) -> nn.Parameter:
    """A random parameter with entries of size one half."""
    return nn.Parameter(mean + 0.5 * torch.randn(shape))
