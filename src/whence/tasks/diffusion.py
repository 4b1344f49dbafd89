"""Diffusion models: the expected error of a denoiser, over draws of time and noise that belong to the example.

Axes: B examples, K draws of an example, R = B x K rows that the network sees, C numbers of an image.
"""

import hashlib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from whence.data import Dataset, Example
from whence.errors import BadInput, UnknownOption, Unsupported
from whence.settings import records_only, typed
from whence.tasks.base import AbstractTask, Batch, precision
from whence.tasks.bounds import elbo, noise_errors, trajectory_log_probability
from whence.tasks.diffusion_records import CONDITIONING, check_alike, conditioning_of, image_example, stacked_field
from whence.tasks.noise import Prediction, schedule_from
from whence.tasks.outputs import Outputs, output_of
from whence.tasks.prepared import examples_from

__all__ = ["Diffusion", "DiffusionMeasure", "Draws", "Measured"]

DiffusionMeasure = Literal["loss", "loss_at", "simple_elbo", "elbo", "square_norm", "trajectory"]

_UNITS = {
    "loss": "mean squared error of the network's prediction, negated",
    "loss_at": "mean squared error of the network's prediction at time {time}, negated",
    "simple_elbo": "nats of the simplified lower bound",
    "elbo": "nats of the evidence lower bound",
    "square_norm": "mean square of the network's prediction",
    "trajectory": "nats of the sampled trajectory's log-probability",
}
# What only schedules in steps have.
_IN_STEPS = ("simple_elbo", "elbo", "trajectory")


@dataclass(frozen=True, kw_only=True)
@typed
class Draws:
    """The times and noise that an example's loss is a mean over.

    Args:
        draws: Draws per example: the error of each gradient falls with their root, time grows with their number.
        shared: Whether all examples have the same draws, so that what chance adds is the same in all gradients; otherwise each has its own.
        stratified: Whether draw k takes its time from the k-th of `draws` equal parts; otherwise from all times.
        seed: Of the draws.
        min_snr: What the signal-to-noise ratio is cut to in the weight of a time, where training weighs times so (Hang et al. 2023, section
            3.4: min(SNR, gamma) of the image's squared error, 5 as a rule); None weighs all alike.
    """

    draws: int = 16
    shared: bool = True
    stratified: bool = True
    seed: int = 0
    min_snr: float | None = None


@dataclass(frozen=True, kw_only=True)
@typed
class Measured:
    """What is measured of a diffusion model.

    Args:
        measure: What a query asks about: "loss" (negated), "loss_at" a time (negated), "simple_elbo" (Ho et al. 2020, equation 14), "elbo",
            "square_norm" (of the prediction, Zheng et al. 2024), or "trajectory", the log-probability of the noisy images that led to a
            generated one.
        clip: Where estimates of the image are cut off, in sampling and in the trajectory's log-probability, such as 1.0; None leaves them.
        time: For "loss_at": a step number, or from 0 to 1 for flow matching.
        output: What TRAK linearises: "loss" (negated), or "square_norm" for D-TRAK (Zheng et al. 2024, section 4), which goes with the
            measurement of that name.
    """

    measure: DiffusionMeasure = "loss"
    clip: float | None = None
    time: float | None = None
    output: Literal["loss", "square_norm"] = "loss"


class Diffusion(AbstractTask):
    """A denoiser trained on noisy images, or on noisy anything: latents, tables, point clouds.

    The loss of an example is an expectation over time and noise, taken here over a fixed number of draws: the mean over draws, and over
    the numbers of an image, of the squared error of the network's prediction. Draws are made from the seed, the draw's number and,
    unless they are shared, the example's id, so that neither the batch nor the rest of the data changes them. Gauss-Newton matrix and
    Fisher information split at the network's output, where the squared error's curvature does not depend on the noise (Mlodozeniec et
    al. 2024, section 3.1).

    A record is an array, or a mapping with `image` and optionally `label`, `condition` (what else the network is told of the image, such as
    the states of a text encoder), `id` and `source`; what `sample_images` returns is such a record.
    Images have to be scaled as they were in training, usually to [-1, 1]; the latents of a latent diffusion model are images here.

    Args:
        model: Called with noisy images (R, ...) and times (R,), then with labels (R,) and conditions (R, ...) where records have them;
            returns its prediction, or a record with `.sample`. Networks of Hugging Face diffusers are called by their own names for these, a
            condition is their `encoder_hidden_states`. Of twice as many channels as
            the image has, the first half is the prediction, the second a variance that is left alone.
        schedule: "linear", "cosine" or "flow", a `NoiseSchedule`, or a scheduler of diffusers.
        prediction: "noise", "v" (Salimans and Ho 2022, section 4), "image" or "flow", the velocity noise - image; None takes the schedule's.
        noised: Times and noise.
        measured: What is measured.
        **options: See `AbstractTask`.

    Raises:
        BadInput: If the number of draws or the clip is not positive, a time is given and not used, missing, or out of range.
        UnknownOption: If prediction, measure or output are none of the choices.
        Unsupported: If prediction or measurement do not go with the schedule.
    """

    kind = "diffusion"

    @records_only(noised=Draws, measured=Measured)
    def __init__(
        self,
        model: nn.Module,
        *,
        schedule: Any = "linear",
        prediction: Prediction | None = None,
        noised: Draws = Draws(),
        measured: Measured = Measured(),
        **options: Any,
    ):
        super().__init__(model, **options)
        self.schedule = schedule_from(schedule)
        self.prediction: Prediction = prediction or self.schedule.prediction
        choices = (
            ("prediction", self.prediction, ("noise", "v", "image", "flow")),
            ("measure", measured.measure, tuple(_UNITS)),
            ("output", measured.output, ("loss", "square_norm")),
        )
        for name, value, allowed in choices:
            if value not in allowed:
                raise UnknownOption(found=f"{name}={value!r}", needed=f"one of: {', '.join(allowed)}", do="pick one")
        if noised.min_snr is not None and (noised.min_snr <= 0 or self.schedule.kept_S is None):
            raise BadInput(
                found=f"min_snr={noised.min_snr} with the schedule {self.schedule.name!r}",
                needed="a positive number, and a schedule in steps",
                do="leave it out, or pass what the network was trained with",
            )
        if noised.draws < 1 or (measured.clip is not None and measured.clip <= 0):
            raise BadInput(
                found=f"draws={noised.draws}, clip={measured.clip}",
                needed="1 draw or more, and a positive clip or none",
                do="correct it",
            )
        self.draws, self.shared, self.stratified, self.seed = noised.draws, noised.shared, noised.stratified, noised.seed
        self.min_snr = noised.min_snr
        self.measure, self.clip = measured.measure, measured.clip
        self.time, self.output = measured.time, measured.output
        self._check_together()
        self.unit = _UNITS[measured.measure].format(time=measured.time)
        parameters = inspect.signature(model.forward).parameters
        states = parameters.get("encoder_hidden_states")
        self._needs_condition = states is not None and states.default is states.empty
        self._names = {"label": "class_labels", "condition": "encoder_hidden_states"} if "timestep" in parameters else None

    @property
    def preprocessing(self) -> str:
        """Digest of schedule, prediction and draws."""
        parts = (self.schedule.digest, self.prediction, self.draws, self.shared, self.stratified, self.seed, self.output)
        parts += () if self.min_snr is None else (self.min_snr,)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def prepare(self, records: Iterable[Any]) -> Dataset:
        """Examples from arrays or mappings; see the class.

        Raises:
            BadInput: If a record has no image or its label is no class number.
        """
        return examples_from(
            records, lambda number, record: [image_example(number, record, self.draws)], skip_bad=self.skip_bad
        )

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Images (B, ...), times (B, K) and noise (B, K, ...), labels (B,), conditions (B, ...) and trajectories if they have them.

        Raises:
            BadInput: If images or conditions differ in shape, or only some have a label or a condition.
        """
        check_alike(examples)
        dtype = precision(self.model)
        draws = [self._draw(example.id, example.fields["image"].shape) for example in examples]
        batch = {
            "image": stacked_field(examples, "image", self.device, dtype),
            "time": torch.stack([times for times, _ in draws]).to(self.device),
            "noise": torch.stack([noise for _, noise in draws]).to(self.device, dtype),
        }
        for name, kind in (("label", torch.long), ("condition", dtype)):
            if name in examples[0].fields:
                batch[name] = stacked_field(examples, name, self.device, kind)
        if all("trajectory" in example.fields for example in examples):
            batch["trajectory"] = stacked_field(examples, "trajectory", self.device, dtype)
            batch["steps"] = stacked_field(examples, "steps", self.device, torch.long)
        return batch

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean squared error of the prediction, over draws and over an image's numbers, shape (B,)."""
        predicted, target = self._predicted(model, batch, batch["time"])
        return ((predicted - target).square().mean(2) * self._weights(batch["time"]).to(predicted)).mean(1)

    def measurement(self, model: nn.Module, batch: Batch) -> Tensor:
        """What `measure` says, shape (B,).

        Raises:
            BadInput: If a trajectory is asked about and a query has none.
        """
        if self.measure == "trajectory":
            if "trajectory" not in batch:
                raise BadInput(
                    found="a query without the trajectory that led to it",
                    needed="'trajectory' and 'steps' in its record",
                    do="make the queries with whence.pipeline.sample_images",
                )
            return trajectory_log_probability(
                self.denoised(model), self.schedule, batch["trajectory"], batch["steps"], conditioning_of(batch)
            )
        if self.measure == "square_norm":
            return self._square_norm(model, batch)
        if self.measure == "loss":
            return -self.loss(model, batch)
        times = batch["time"]
        if self.measure == "loss_at":
            times = torch.full_like(times, self.time or 0)
        predicted, target = self._predicted(model, batch, times)
        squares = (predicted - target).square()
        if self.measure == "loss_at":
            return -squares.mean(2).mean(1)
        errors = noise_errors(squares.sum(2), self.schedule, self.prediction, times)
        return elbo(errors, self.schedule, times, batch["image"].flatten(1), is_simple=self.measure == "simple_elbo")

    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        """Predictions, one row per draw, scaled so that half the squared distances to the targets add up to the loss; shape (R, C)."""
        predicted, target = self._predicted(model, batch, batch["time"])
        examples, draws, numbers = predicted.shape
        scale_R1 = (2.0 / (draws * numbers) * self._weights(batch["time"])).sqrt().to(predicted).flatten()[:, None]
        owners_R = torch.arange(examples, device=predicted.device).repeat_interleave(draws)
        return Outputs(predicted.flatten(0, 1) * scale_R1, owners_R, target.flatten(0, 1) * scale_R1, "gaussian")

    def output_function(self, model: nn.Module, batch: Batch) -> Tensor:
        """Minus the loss, whose weight is 1 (Zheng et al. 2024, section 3), or the square of the prediction's norm for D-TRAK; shape (B,)."""
        return -self.loss(model, batch) if self.output == "loss" else self._square_norm(model, batch)

    def output_weights(self, values_B: Tensor, batch: Batch) -> Tensor:
        """Ones, shape (B,)."""
        return torch.ones_like(values_B)

    def predict(
        self, model: nn.Module, noisy: Tensor, times_R: Tensor, conditioning: Mapping[str, Tensor] = MappingProxyType({})
    ) -> Tensor:
        """The network's prediction for noisy images, in their shape.

        Args:
            model: The model.
            noisy: Shape (R, ...).
            times_R: Step numbers, or from 0 to 1 for flow matching.
            conditioning: What the network is told besides: `label` (R,), `condition` (R, ...), or both.

        Raises:
            BadInput: If the prediction has another shape, or the network needs a condition that is not there.
        """
        if self._needs_condition and "condition" not in conditioning:
            raise BadInput(
                found=f"images without a condition for a {type(model).__name__}",
                needed="'condition' in every record: what the network takes as encoder_hidden_states",
                do="add it, such as the states of the pipeline's text encoder",
            )
        given = self.schedule.for_network(times_R, noisy.dtype)
        if self._names is None:
            output = model(noisy, given, *(conditioning[name] for name in CONDITIONING if name in conditioning))
        else:
            output = model(noisy, timestep=given, **{self._names[name]: value for name, value in conditioning.items()})
        output = output_of(output, "sample")
        if output.ndim == noisy.ndim > 1 and output.shape[1] == 2 * noisy.shape[1]:
            output = output.chunk(2, 1)[0]
        if output.shape != noisy.shape:
            raise BadInput(
                found=f"a prediction of shape {tuple(output.shape)} for noisy images of shape {tuple(noisy.shape)}",
                needed="the same shape",
                do="check the images' channels and the model's last layer",
            )
        return output

    def denoised(self, model: nn.Module):
        """The model as a function from noisy images (R, ...), times (R,) and what it is told to its estimates of the images."""

        def estimate(noisy: Tensor, times_R: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
            predicted = self.predict(model, noisy, times_R, conditioning)
            signal, noise = (_like(part, noisy) for part in self.schedule.mix(times_R))
            if self.prediction == "image":
                images = predicted
            elif self.prediction == "noise":
                images = (noisy - noise * predicted) / signal
            else:
                images = (signal * noisy if self.prediction == "v" else noisy) - noise * predicted
            return images if self.clip is None else images.clamp(-self.clip, self.clip)

        return estimate

    def _square_norm(self, model: nn.Module, batch: Batch) -> Tensor:
        return self._predicted(model, batch, batch["time"])[0].square().mean(2).mean(1)

    def _predicted(self, model: nn.Module, batch: Batch, times_BK: Tensor) -> tuple[Tensor, Tensor]:
        """Predictions and their targets, shape (B, K, C)."""
        noise, image = batch["noise"], batch["image"][:, None].expand_as(batch["noise"])
        signal, strength = (_like(part, noise) for part in self.schedule.mix(times_BK))
        conditioning = {name: value.repeat_interleave(noise.shape[1], 0) for name, value in conditioning_of(batch).items()}
        prediction = self.predict(model, (signal * image + strength * noise).flatten(0, 1), times_BK.flatten(), conditioning)
        target = {
            "noise": lambda: noise,
            "v": lambda: signal * noise - strength * image,
            "image": lambda: image,
            "flow": lambda: noise - image,
        }
        wide = torch.promote_types(prediction.dtype, torch.float32)
        return prediction.reshape(*noise.shape[:2], -1).to(wide), target[self.prediction]().flatten(2).to(wide)

    def _weights(self, times_BK: Tensor) -> Tensor:
        """What the squared errors of the prediction at these times weigh, in their shape, float64."""
        signal, strength = self.schedule.mix(times_BK)
        if self.min_snr is None:
            return torch.ones_like(signal)
        ratio = (signal / strength).square()
        # Of the image's squared error, which is the prediction's times the first, second or third of these.
        of_image = {"noise": 1 / ratio, "v": 1 / (ratio + 1), "image": torch.ones_like(ratio)}
        return ratio.clamp_max(self.min_snr) * of_image[self.prediction]

    def _draw(self, name: str, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Times (K,) and noise (K, ...) of an example."""
        uniform, noise = [], []
        for number in range(self.draws):
            key = f"whence:diffusion:1:{self.seed}:{number}:{'' if self.shared else name}"
            generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little") >> 1)
            uniform.append(torch.rand((), generator=generator, dtype=torch.float64))
            noise.append(torch.randn(tuple(shape), generator=generator, dtype=torch.float64))
        uniform_K = torch.stack(uniform)
        if self.stratified:
            uniform_K = (torch.arange(self.draws) + uniform_K) / self.draws
        return self.schedule.times(uniform_K), torch.stack(noise)

    def _check_together(self) -> None:
        is_flow = self.schedule.kept_S is None
        if (self.prediction == "flow") != is_flow:
            raise Unsupported(
                found=f"prediction={self.prediction!r} with the schedule {self.schedule.name!r}",
                needed="'noise', 'v' or 'image' for schedules in steps, 'flow' for flow matching",
                do="pass the schedule that the network was trained with",
            )
        if is_flow and self.measure in _IN_STEPS:
            raise Unsupported(
                found=f"measure={self.measure!r} with flow matching",
                needed="a schedule in steps",
                do="pass measure='loss' or 'loss_at'",
            )
        if (self.time is None) == (self.measure == "loss_at"):
            raise BadInput(
                found=f"time={self.time} with measure={self.measure!r}",
                needed="a time with 'loss_at', and with nothing else",
                do="pass both, or leave time out",
            )
        if self.time is not None:
            last = 1.0 if self.schedule.kept_S is None else len(self.schedule.kept_S) - 1
            if not 0 <= self.time <= last or (not is_flow and self.time != int(self.time)):
                raise BadInput(
                    found=f"time={self.time}",
                    needed=f"{'a number' if is_flow else 'a step'} from 0 to {last:g}",
                    do="correct it",
                )


def _like(factors: Tensor, images: Tensor) -> Tensor:
    """One factor per image, to be multiplied with images of any shape."""
    return factors.to(images.dtype).reshape(*factors.shape, *(1,) * (images.ndim - factors.ndim))
