"""How much noise a diffusion model sees at each time: schedules in steps, and the straight path of flow matching.

Axes: S steps of a schedule.
"""

import hashlib
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from whence.errors import BadInput, UnknownOption, Unsupported

__all__ = ["NoiseSchedule", "Prediction", "schedule_from"]

Prediction = Literal["noise", "v", "image", "flow"]
"""What the network predicts: the noise, v = signal x noise - noise x image, the image itself, or the velocity noise - image."""

_PREDICTIONS: dict[str, Prediction] = {"epsilon": "noise", "v_prediction": "v", "sample": "image"}
# Nichol and Dhariwal 2021, section 3.2: an offset, and a bound that keeps the last step from destroying everything.
_COSINE_OFFSET = 0.008
_LARGEST_BETA = 0.999


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """A noisy image is `signal x image + noise x standard normal noise`, both functions of time.

    Time is a step number from 0 (least noise) for schedules in steps, and a number from 0 (the image) to 1 (noise) for flow matching. Made by
    `linear`, `cosine`, `flow` and `from_scheduler`.

    Args:
        name: For people.
        kept_S: Share of the image's variance left after each step, the cumulated alphas of Ho et al. 2020, float64; None for flow matching.
        prediction: What networks trained with it predict unless told otherwise.
        time_scale: What a time of flow matching is multiplied with before the network is given it.

    >>> NoiseSchedule.linear(1000).mix(torch.tensor([0, 999]))[1]
    tensor([0.0100, 1.0000], dtype=torch.float64)
    """

    name: str
    kept_S: Tensor | None
    prediction: Prediction = "noise"
    time_scale: float = 1.0

    @classmethod
    def linear(cls, steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> "NoiseSchedule":
        """Variances of the steps' own noise rise linearly (Ho et al. 2020, section 4).

        Args:
            steps: Number of steps.
            first: Variance of the first step.
            last: Variance of the last step.
        """
        return cls(f"linear, {steps:,} steps", _signal_shares(torch.linspace(first, last, steps, dtype=torch.float64)))

    @classmethod
    def cosine(cls, steps: int = 1000) -> "NoiseSchedule":
        """The share that is kept falls like a squared cosine (Nichol and Dhariwal 2021, equation 17).

        Args:
            steps: Number of steps.
        """
        times = torch.arange(steps + 1, dtype=torch.float64) / steps
        level = torch.cos((times + _COSINE_OFFSET) / (1 + _COSINE_OFFSET) * math.pi / 2).square()
        return cls(f"cosine, {steps:,} steps", _signal_shares((1 - level[1:] / level[:-1]).clamp_max(_LARGEST_BETA)))

    @classmethod
    def flow(cls, time_scale: float = 1.0) -> "NoiseSchedule":
        """A straight line from the image at time 0 to noise at time 1 (Lipman et al. 2023, section 4).

        Args:
            time_scale: What the time is multiplied with before the network is given it; 1000 for networks of diffusers.
        """
        return cls("flow matching", None, "flow", time_scale)

    @classmethod
    def from_scheduler(cls, scheduler: Any) -> "NoiseSchedule":
        """That of a scheduler of Hugging Face diffusers.

        Args:
            scheduler: One in steps, with `alphas_cumprod`, or one of flow matching.

        Raises:
            Unsupported: If it is neither, or its networks predict something else.
        """
        config, kind = scheduler.config, type(scheduler).__name__
        if "FlowMatch" in kind:
            return cls.flow(float(config.num_train_timesteps))
        kept_S = getattr(scheduler, "alphas_cumprod", None)
        predicted = getattr(config, "prediction_type", None)
        if kept_S is None or predicted not in _PREDICTIONS:
            raise Unsupported(
                found=f"a {kind} with the prediction type {predicted!r}",
                needed="flow matching, or steps with the prediction type 'epsilon', 'v_prediction' or 'sample'",
                do="take the scheduler that the network was trained with, or a whence.tasks.NoiseSchedule",
            )
        return cls(f"{kind}, {len(kept_S):,} steps", torch.as_tensor(kept_S).double(), _PREDICTIONS[predicted])

    @property
    def digest(self) -> str:
        """Equal exactly when times and mixtures are."""
        content = b"flow" if self.kept_S is None else np.ascontiguousarray(self.kept_S.numpy()).tobytes()
        return hashlib.sha256(content + repr(self.time_scale).encode()).hexdigest()

    def steps(self) -> Tensor:
        """Share of the image's variance left after each step, shape (S,).

        Raises:
            Unsupported: If time is continuous.
        """
        if self.kept_S is None:
            raise Unsupported(
                found=f"a schedule without steps ({self.name})", needed="one in steps", do="pass schedule='linear' or 'cosine'"
            )
        return self.kept_S

    def times(self, uniform: Tensor) -> Tensor:
        """Times from numbers in [0, 1): step numbers, or the numbers themselves; in any shape."""
        return uniform if self.kept_S is None else (uniform * len(self.kept_S)).long().clamp_max(len(self.kept_S) - 1)

    def mix(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """What image and noise are multiplied with at these times, float64, in their shape."""
        if self.kept_S is None:
            return 1 - times.double(), times.double()
        share = self.kept_S.to(times.device)[times]
        return share.sqrt(), (1 - share).sqrt()

    def for_network(self, times: Tensor, dtype: torch.dtype) -> Tensor:
        """Times as a network is given them: step numbers, or scaled numbers of its own type."""
        return times if self.kept_S is not None else (times * self.time_scale).to(dtype)


def schedule_from(given: Any) -> NoiseSchedule:
    """A schedule from a name, a schedule, or a scheduler of diffusers.

    Raises:
        UnknownOption: If there is none of that name.
        BadInput: If it is something else.
    """
    if isinstance(given, NoiseSchedule):
        return given
    schedules = {"linear": NoiseSchedule.linear, "cosine": NoiseSchedule.cosine, "flow": NoiseSchedule.flow}
    if isinstance(given, str):
        if given not in schedules:
            raise UnknownOption(found=f"schedule={given!r}", needed=f"one of: {', '.join(schedules)}", do="pick one")
        return schedules[given]()
    if not hasattr(given, "config"):
        raise BadInput(
            found=f"a schedule of type {type(given).__name__}",
            needed="a name, a whence.tasks.NoiseSchedule or a scheduler of diffusers",
            do="such as schedule='linear' or whence.tasks.NoiseSchedule.linear(steps=100)",
        )
    return NoiseSchedule.from_scheduler(given)


def _signal_shares(betas_S: Tensor) -> Tensor:
    return (1 - betas_S).cumprod(0)
