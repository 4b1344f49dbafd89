"""Whether a run's end depends on its data smoothly enough for a derivative to say anything.

Axes: N training examples.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from whence.progress import Meter
from whence.unroll.replay import Replay

__all__ = ["SMOOTH", "Smoothness", "smoothness_of"]

SMOOTH = 0.8
"""Below this the derivative is not to be relied on (benchmarks/unroll_agreement.py)."""


@dataclass(frozen=True)
class Smoothness:
    """How straight a run's final weights move while examples are taken out of it.

    Args:
        value: From -1 to 1: the share of the movement whose direction stays when as much again is taken out, less the share whose
            direction turns. 1 is a straight line.
        examples: How many examples were taken out.
        h: By how much their weight was lowered each time.
        steps: Of the run.
    """

    value: float
    examples: int
    h: float
    steps: int

    @property
    def is_smooth(self) -> bool:
        """Whether the derivative can be relied on."""
        return self.value >= SMOOTH

    def __str__(self) -> str:
        text = f"smoothness {self.value:.2f}: weights of {self.examples:,} examples lowered by {self.h:g} twice"
        if self.is_smooth:
            return text
        return (
            f"{text}; below {SMOOTH:g}, so the derivative may say little about retraining: a larger batch, a smaller learning rate, "
            f"warmup, clipping, a larger eps of Adam, and smooth activations (tanh, GELU) instead of ReLU make a run smoother"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "is_smooth": self.is_smooth}


def smoothness_of(replay: Replay, *, share: float, h: float, seed: int, progress: Meter) -> Smoothness:
    """Metasmoothness (Engstrom et al. 2025, arXiv 2503.13751, definition 2), from replays at w = 1 + h v and 1 + 2 h v.

    With f(w) the final weights, d1 = f(1 + h v) - f(1) and d2 = f(1 + 2 h v) - f(1 + h v), it is the sum over numbers j of
    |d1_j| sign(d1_j) sign(d2_j) over the sum of |d1_j|. v is -1 for a random share of the examples that the run met and 0 for the others,
    so that with h = 1/2 they are half and then all gone, as in the retraining that scores are asked about.

    Args:
        replay: The run, verified: its recorded end is f(1).
        share: Of the examples met.
        h: Step of the weights.
        seed: Of the draw.
        progress: Advanced once per step of both replays.

    Returns:
        The smoothness.
    """
    run = replay.run
    row_of = {name: row for row, name in enumerate(replay.train.ids)}
    met = torch.tensor([row_of[name] for name in run.ids])
    count = max(1, round(share * len(met)))
    chosen = met[torch.randperm(len(met), generator=torch.Generator().manual_seed(seed))[:count]]
    last = run.values(run.checkpoints[-1], "gradients")
    ends: list[dict[str, Tensor]] = []
    for times in (1, 2):
        scale_N = torch.ones(len(replay.train), dtype=torch.float64)
        scale_N[chosen] -= times * h
        ends.append(_retrained(replay, scale_N, progress))
    straight = total = 0.0
    for name, once in ends[0].items():
        first, second = once - last[name].to(once), ends[1][name] - once
        straight += float((first.abs() * first.sign() * second.sign()).sum(dtype=torch.float64))
        total += float(first.abs().sum(dtype=torch.float64))
    return Smoothness(straight / total if total else 1.0, count, h, run.steps)


def _retrained(replay: Replay, scale_N: Tensor, progress: Meter) -> dict[str, Tensor]:
    """Final weights of the run with other weights of its examples."""
    state = replay.load(0)
    for start, stop in replay.intervals:
        state = replay.renewed(state, start)
        for step in range(start, stop):
            state = replay.advance(state, replay.gradients(state, step, scale_N), step)
            progress.advance()
    return state.values["weights"]
