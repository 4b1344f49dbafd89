"""A small diffusion model of digits: its network, training runs of a few seconds, and what a bank measures of it.

Axes: N training images, Q queries, W channels, R images that the network sees.
"""

import json
import math
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor, nn

from whence.data import Dataset, digest_of
from whence.records import Recipe
from whence.tasks import Diffusion, Draws, Measured, NoiseSchedule

__all__ = ["DenoiserLosses", "DenoiserRetrain", "DenoiserSettings", "denoising", "new_denoiser"]

_TIME_WAVES = 8
NOISED, MEASURED = Draws(draws=64), Measured(clip=1.0)


@dataclass(frozen=True, kw_only=True)
class DenoiserSettings:
    """Network and training run: Adam, the learning rate falling to zero along a cosine.

    Args:
        width: Channels.
        noise_steps: Steps of the cosine schedule.
        epochs: Passes over what is kept.
        batch_images: Images per step.
        learning_rate: At the start.
    """

    width: int = 24
    noise_steps: int = 100
    epochs: int = 300
    batch_images: int = 25
    learning_rate: float = 5e-3

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule."""
        return NoiseSchedule.cosine(self.noise_steps)

    def rates(self, num_images: int) -> list[float]:
        """Learning rate of every step of a run on so many images."""
        steps = self.epochs * -(-num_images // self.batch_images)
        return [self.learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps)) for step in range(steps)]

    def recipe(self, num_images: int) -> Recipe:
        """What damping needs to know of a run on so many images."""
        return Recipe("adam", sum(self.rates(num_images)))


class _Denoiser(nn.Module):
    """Images (R, 1, 8, 8) in patches of 2 x 2, two residual blocks of normed convolutions that are told the time, and back."""

    def __init__(self, width: int):
        super().__init__()
        self.time = nn.Sequential(nn.Linear(2 * _TIME_WAVES, width), nn.SiLU())
        self.first = nn.Conv2d(4, width, 3, padding=1)
        self.times = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.norms = nn.ModuleList(nn.GroupNorm(4, width) for _ in range(2))
        self.convolutions = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.last = nn.Conv2d(width, 4, 3, padding=1)

    def forward(self, images: Tensor, steps_R: Tensor) -> Tensor:
        waves = torch.exp(-math.log(100.0) * torch.arange(_TIME_WAVES, device=images.device) / (_TIME_WAVES - 1))
        angles = steps_R[:, None].to(images.dtype) * waves.to(images.dtype)
        time_RW = self.time(torch.cat([angles.sin(), angles.cos()], 1))
        hidden = self.first(nn.functional.pixel_unshuffle(images, 2))
        for embed, norm, convolution in zip(self.times, self.norms, self.convolutions, strict=True):
            inside = nn.functional.silu(norm(hidden) + embed(time_RW)[:, :, None, None])
            hidden = hidden + convolution(inside)
        return nn.functional.pixel_shuffle(self.last(nn.functional.silu(hidden)), 2)


def new_denoiser(settings: DenoiserSettings, seed: int) -> nn.Module:
    """An untrained network whose weights depend on nothing but the arguments."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _Denoiser(settings.width)


def denoising(
    model: nn.Module,
    settings: DenoiserSettings,
    *,
    noised: Draws = NOISED,
    measured: Measured = MEASURED,
    recipe: Recipe | None = None,
) -> Diffusion:
    """The task of a network trained so; arguments as of `whence.Diffusion`."""
    return Diffusion(model, schedule=settings.schedule, noised=noised, measured=measured, recipe=recipe)


@dataclass(frozen=True)
class DenoiserRetrain:
    """Training as a bank calls it: picklable, from a mask and a seed to a network.

    Args:
        images: All training images in [-1, 1], shape (N, 1, 8, 8).
        settings: Network and training run.
    """

    images: Tensor
    settings: DenoiserSettings

    @property
    def fingerprint(self) -> str:
        """Digest of data and settings."""
        return digest_of(self.images, json.dumps(asdict(self.settings), sort_keys=True), torch.__version__).hex()

    def __call__(self, keep: Tensor, seed: int) -> nn.Module:
        """The network trained on what `keep` marks; shape (N,)."""
        settings = self.settings
        model = new_denoiser(settings, seed)
        optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, foreach=True)
        rates = iter(settings.rates(int(keep.sum())))
        order_of, noise_of = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
        signal_S, strength_S = (part.float() for part in settings.schedule.mix(torch.arange(settings.noise_steps)))
        for _ in range(settings.epochs):
            # Drawn over all images, so that leaving one out does not reshuffle the others.
            order = torch.from_numpy(order_of.permutation(len(keep)))
            for batch in order[keep[order]].split(settings.batch_images):
                steps_R = torch.randint(settings.noise_steps, (len(batch),), generator=noise_of)
                images = self.images[batch]
                noise = torch.randn(images.shape, generator=noise_of)
                noisy = signal_S[steps_R][:, None, None, None] * images + strength_S[steps_R][:, None, None, None] * noise
                optimizer.param_groups[0]["lr"] = next(rates)
                optimizer.zero_grad(set_to_none=True)
                (model(noisy, steps_R) - noise).square().mean().backward()
                optimizer.step()
        return model.eval()


@dataclass(frozen=True)
class DenoiserLosses:
    """What a bank measures: the loss of each query, over draws of its own that are the same for all networks.

    Args:
        queries: The queries.
        settings: Of the network.
        draws: Draws per query.
    """

    queries: Dataset
    settings: DenoiserSettings
    draws: int = 100

    @property
    def fingerprint(self) -> str:
        """Digest of the queries and draws."""
        return digest_of(self.queries.fingerprint, self.draws).hex()

    def __call__(self, model: nn.Module) -> Tensor:
        """One loss per query, shape (Q,)."""
        # Another seed than that of any attribution, so that no method sees the draws it is judged on.
        task = denoising(model, self.settings, noised=Draws(draws=self.draws, seed=1))
        with torch.no_grad():
            return torch.cat([task.loss(model, task.collate([query])) for query in self.queries.examples])
