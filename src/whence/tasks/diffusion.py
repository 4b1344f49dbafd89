"""Diffusion models: the expected error of a denoiser, over draws of time and noise that belong to the example.

Axes: B examples, K draws of an example, P draws that go through the network together, R = B x P rows that it sees, C numbers of an image.
"""

import hashlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from whence.data import Dataset, Example
from whence.errors import BadInput
from whence.functions import identity_of
from whence.settings import records_only
from whence.tasks.base import AbstractTask, Batch, precision
from whence.tasks.bounds import elbo, noise_errors, trajectory_log_probability
from whence.tasks.diffusion_measures import Measured, check_measured, note_of_draws, unit_of
from whence.tasks.diffusion_records import (
    CONDITIONING,
    check_alike,
    conditioning_of,
    for_draws,
    image_example,
    nulls_of,
    partly_hidden,
    stacked_field,
)
from whence.tasks.draws import Draws, Guidance, augmented, drawn, dropped
from whence.tasks.noise import Prediction, schedule_from
from whence.tasks.outputs import Outputs, output_of
from whence.tasks.prepared import examples_from

__all__ = ["Diffusion"]

Predict = Callable[[nn.Module, Tensor, Tensor, Mapping[str, Tensor]], Tensor]
"""From a model, noisy images (R, ...), times (R,) and what each row is told to the network's prediction."""


class Diffusion(AbstractTask):
    """A denoiser trained on noisy images, or on noisy anything: latents, tables, point clouds.

    The loss of an example is an expectation over time and noise, taken here over a fixed number of draws: the mean over draws, and over
    the numbers of an image, of the squared error of the network's prediction. Draws are made from the seed, the draw's number and,
    unless they are shared, the example's id, so that neither the batch nor the rest of the data changes them. Gauss-Newton matrix and
    Fisher information split at the network's output, where the squared error's curvature does not depend on the noise (Mlodozeniec et
    al. 2024, section 3.1).

    A record is an array, or a mapping with `image` (an array, or the path of a file, whose pixels are read as -1 to 1) and optionally
    `label`, `condition` (what else the network is told of the image, such as the states of a text encoder), `null_label` and
    `null_condition` (see `Guidance`), `id` and `source`; what `sample_images` returns is such a record.
    Images have to be scaled as they were in training, usually to [-1, 1]; the latents of a latent diffusion model are images here.

    Args:
        model: Called with noisy images (R, ...) and times (R,), then with labels (R,) and conditions (R, ...) where records have them;
            returns its prediction, or a record with `.sample`. Networks of Hugging Face diffusers are called by their own names for these, a
            condition is their `encoder_hidden_states`. Of twice as many channels as
            the image has, the first half is the prediction, the second a variance that is left alone.
        schedule: "linear", "cosine" or "flow", a `NoiseSchedule`, or a scheduler of diffusers.
        prediction: "noise", "v" (Salimans and Ho 2022, section 4), "image" or "flow", the velocity noise - image; None takes the schedule's.
        noised: Times and noise, and what else training drew.
        measured: What is measured.
        guidance: Classifier-free guidance: what training hid from the network, and what queries are measured with.
        **options: See `AbstractTask`.

    Raises:
        BadInput: If the number of draws or the clip is not positive, a time is given and not used, missing, or out of range.
        UnknownOption: If prediction, measure or output are none of the choices.
        Unsupported: If prediction or measurement do not go with the schedule, or the measurement not with guidance.
    """

    kind = "diffusion"

    @records_only(noised=Draws, measured=Measured, guidance=Guidance)
    def __init__(
        self,
        model: nn.Module,
        *,
        schedule: Any = "linear",
        prediction: Prediction | None = None,
        noised: Draws = Draws(),
        measured: Measured = Measured(),
        guidance: Guidance = Guidance(),
        **options: Any,
    ):
        super().__init__(model, **options)
        self.schedule = schedule_from(schedule)
        self.prediction: Prediction = prediction or self.schedule.prediction
        check_measured(self.schedule, self.prediction, noised, measured, guidance)
        self.noised, self.measured, self.guidance = noised, measured, guidance
        self.draws = noised.at_once or noised.draws
        self.is_split = self.draws < noised.draws
        self.augment = noised.augmentation()
        self.unit = unit_of(measured)
        parameters = inspect.signature(model.forward).parameters
        states = parameters.get("encoder_hidden_states")
        self._needs_condition = states is not None and states.default is states.empty
        self._names = {"label": "class_labels", "condition": "encoder_hidden_states"} if "timestep" in parameters else None

    @property
    def preprocessing(self) -> str:
        """Digest of schedule, prediction and all that the training loss draws."""
        noised = self.noised
        parts: tuple[Any, ...] = (
            self.schedule.digest,
            self.prediction,
            noised.draws,
            noised.shared,
            noised.stratified,
            noised.seed,
        )
        parts += (self.measured.output,)
        parts += () if noised.min_snr is None else (noised.min_snr,)
        parts += () if self.augment is None else ("augment", identity_of(self.augment))
        return hashlib.sha256(repr((*parts, *self.guidance.identity())).encode()).hexdigest()

    def query_notes(self) -> tuple[str, ...]:
        """Whose draws queries are measured with, and under which guidance."""
        scale = self.guidance.scale
        guided = () if scale == 1 else (f"queries are measured under guidance of scale {scale:g}",)
        return (note_of_draws(self.measured, self.noised), *guided)

    def prepare(self, records: Iterable[Any]) -> Dataset:
        """Examples from arrays or mappings; see the class.

        Raises:
            BadInput: If a record has no image or its label is no class number.
        """
        channels = getattr(getattr(self.model, "config", None), "in_channels", 3)

        def example(number: int, record: Any) -> list[Example]:
            return [image_example(number, record, self.draws, channels)]

        return examples_from(records, example, skip_bad=self.skip_bad)

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Images (B, ...), times (B, K) and noise (B, K, ...), and what else the settings and the records say.

        That is labels (B,), conditions (B, ...) and what stands for none of them; in which draws they are hidden (B, K); augmented images
        (B, K, ...); draws of queries alone; trajectories.

        Raises:
            BadInput: If images or conditions differ in shape, only some have a label or a condition, or what stands for none is missing.
        """
        check_alike(examples)
        dtype = precision(self.model)
        batch = {"image": stacked_field(examples, "image", self.device, dtype)}
        for kind in ("", "asked:") if self.measured.draws == "own" else ("",):
            pairs = [drawn(self.noised, self.schedule, each.id, each.fields["image"].shape, kind=kind) for each in examples]
            batch[f"{kind}time"] = torch.stack([times for times, _ in pairs]).to(self.device)
            batch[f"{kind}noise"] = torch.stack([noise for _, noise in pairs]).to(self.device, dtype)
        for name, kind in (("label", torch.long), ("condition", dtype)):
            if name in examples[0].fields:
                batch[name] = stacked_field(examples, name, self.device, kind)
        if self.guidance.is_used:
            batch |= nulls_of(examples, self.guidance, batch)
        if self.guidance.drop:
            hidden = [dropped(self.noised, example.id, self.guidance.drop) for example in examples]
            batch["hidden"] = torch.stack(hidden).to(self.device)
        if self.augment is not None:
            images = [
                augmented(self.noised, self.augment, each.id, image)
                for each, image in zip(examples, batch["image"], strict=True)
            ]
            batch["augmented"] = torch.stack(images)
        if all("trajectory" in example.fields for example in examples):
            batch["trajectory"] = stacked_field(examples, "trajectory", self.device, dtype)
            batch["steps"] = stacked_field(examples, "steps", self.device, torch.long)
        return batch

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean squared error of the prediction, over draws and over an image's numbers, shape (B,)."""
        return self._mean_square(*self._trained(model, batch), batch["time"])

    def _mean_square(self, predicted: Tensor, target: Tensor, times_BK: Tensor) -> Tensor:
        return ((predicted - target).square().mean(2) * self._weights(times_BK).to(predicted)).mean(1)

    def measurement(self, model: nn.Module, batch: Batch) -> Tensor:
        """What `measure` says, shape (B,).

        Raises:
            BadInput: If a trajectory is asked about and a query has none.
        """
        measure = self.measured.measure
        if measure == "trajectory":
            if "trajectory" not in batch:
                raise BadInput(
                    found="a query without the trajectory that led to it",
                    needed="'trajectory' and 'steps' in its record",
                    do="make the queries with whence.pipeline.sample_images",
                )
            return trajectory_log_probability(
                self.denoised(model), self.schedule, batch["trajectory"], batch["steps"], conditioning_of(batch)
            )
        kind = "asked:" if "asked:time" in batch else ""
        times, noise = batch[f"{kind}time"], batch[f"{kind}noise"]
        if measure == "loss_at":
            times = torch.full_like(times, self.measured.time or 0)
        images = batch["image"][:, None].expand_as(noise)
        predicted, target = self._predicted(model, images, noise, times, for_draws(batch, self.noised.draws))
        if measure == "square_norm":
            return predicted.square().mean(2).mean(1)
        if measure == "loss":
            return -self._mean_square(predicted, target, times)
        squares = (predicted - target).square()
        if measure == "loss_at":
            return -squares.mean(2).mean(1)
        errors = noise_errors(squares.sum(2), self.schedule, self.prediction, times)
        return elbo(errors, self.schedule, times, batch["image"].flatten(1), is_simple=measure == "simple_elbo")

    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        """Predictions, one row per draw, scaled so that half the squared distances to the targets add up to the loss; shape (R, C)."""
        predicted, target = self._trained(model, batch)
        examples, draws, numbers = predicted.shape
        scale_R1 = (2.0 / (draws * numbers) * self._weights(batch["time"])).sqrt().to(predicted).flatten()[:, None]
        owners_R = torch.arange(examples, device=predicted.device).repeat_interleave(draws)
        return Outputs(predicted.flatten(0, 1) * scale_R1, owners_R, target.flatten(0, 1) * scale_R1, "gaussian")

    def output_function(self, model: nn.Module, batch: Batch) -> Tensor:
        """Minus the loss, whose weight is 1 (Zheng et al. 2024, section 3), or the square of the prediction's norm for D-TRAK; shape (B,)."""
        if self.measured.output == "loss":
            return -self.loss(model, batch)
        return self._trained(model, batch)[0].square().mean(2).mean(1)

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
        named = {name: conditioning[name] for name in CONDITIONING if name in conditioning}
        if self._names is None:
            output = model(noisy, given, *named.values())
        else:
            output = model(noisy, timestep=given, **{self._names[name]: value for name, value in named.items()})
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

    def guided(self, model: nn.Module, noisy: Tensor, times_R: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
        """The prediction that images are made with: away from the one without what the network is told (Ho and Salimans 2022, equation 6).

        Args:
            model: The model.
            noisy: Shape (R, ...).
            times_R: As in `predict`.
            conditioning: As there, and what stands for none of it: `null_label` (R,), `null_condition` (R, ...).
        """
        predicted = self.predict(model, noisy, times_R, conditioning)
        if self.guidance.scale == 1:
            return predicted
        nothing = {name: conditioning[f"null_{name}"] for name in CONDITIONING if name in conditioning}
        without = self.predict(model, noisy, times_R, nothing)
        return without + self.guidance.scale * (predicted - without)

    def nulls(self, conditioning: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the settings have for no label and no condition, one for each of these."""
        return nulls_of([], self.guidance, conditioning)

    def denoised(self, model: nn.Module):
        """The model as a function from noisy images (R, ...), times (R,) and what it is told to its estimates of the images."""

        def estimate(noisy: Tensor, times_R: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
            predicted = self.guided(model, noisy, times_R, conditioning)
            signal, noise = (_like(part, noisy) for part in self.schedule.mix(times_R))
            if self.prediction == "image":
                images = predicted
            elif self.prediction == "noise":
                images = (noisy - noise * predicted) / signal
            else:
                images = (signal * noisy if self.prediction == "v" else noisy) - noise * predicted
            clip = self.measured.clip
            return images if clip is None else images.clamp(-clip, clip)

        return estimate

    def _trained(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """As `_predicted`, of what training saw: augmented images, and nothing told where that was hidden."""
        noise = batch["noise"]
        images = batch["augmented"] if "augmented" in batch else batch["image"][:, None].expand_as(noise)
        conditioning = for_draws(batch, self.noised.draws)
        if "hidden" in batch:
            conditioning["hidden"] = batch["hidden"]
        return self._predicted(model, images, noise, batch["time"], conditioning, predict=self._partly_told)

    def _partly_told(self, model: nn.Module, noisy: Tensor, times_R: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
        """The prediction where what the network is told is hidden from it in some rows, `hidden` (R,)."""
        return self.predict(model, noisy, times_R, partly_hidden(conditioning))

    def _predicted(
        self,
        model: nn.Module,
        images: Tensor,
        noise: Tensor,
        times_BK: Tensor,
        conditioning: Mapping[str, Tensor],
        *,
        predict: Predict | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Predictions and their targets, shape (B, K, C), of images (B, K, ...) and what the network is told of each (B, K, ...).

        The network is guided unless another way of having it predict is given.

        Draws that do not go through the network together are kept as its inputs only: on the way back it runs forward again.
        """
        signal, strength = (_like(part, noise) for part in self.schedule.mix(times_BK))
        chosen = predict or self.guided

        def part(noisy: Tensor, times: Tensor, *values: Tensor) -> Tensor:
            named = {name: value.flatten(0, 1) for name, value in zip(conditioning, values, strict=True)}
            return chosen(model, noisy.flatten(0, 1), times.flatten(), named).reshape(*noisy.shape[:2], -1)

        inputs = (signal * images + strength * noise, times_BK, *conditioning.values())
        if not self.is_split:
            prediction = part(*inputs)
        else:
            parts = zip(*(value.split(self.draws, 1) for value in inputs), strict=True)
            prediction = torch.cat([checkpoint(part, *each, use_reentrant=False) for each in parts], 1)
        target = {
            "noise": lambda: noise,
            "v": lambda: signal * noise - strength * images,
            "image": lambda: images,
            "flow": lambda: noise - images,
        }
        wide = torch.promote_types(prediction.dtype, torch.float32)
        return prediction.to(wide), target[self.prediction]().flatten(2).to(wide)

    def _weights(self, times_BK: Tensor) -> Tensor:
        """What the squared errors of the prediction at these times weigh, in their shape, float64."""
        signal, strength = self.schedule.mix(times_BK)
        if self.noised.min_snr is None:
            return torch.ones_like(signal)
        ratio = (signal / strength).square()
        # Of the image's squared error, which is the prediction's times the first, second or third of these.
        of_image = {"noise": 1 / ratio, "v": 1 / (ratio + 1), "image": torch.ones_like(ratio)}
        return ratio.clamp_max(self.noised.min_snr) * of_image[self.prediction]


def _like(factors: Tensor, images: Tensor) -> Tensor:
    """One factor per image, to be multiplied with images of any shape."""
    return factors.to(images.dtype).reshape(*factors.shape, *(1,) * (images.ndim - factors.ndim))
