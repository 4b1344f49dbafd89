"""What a denoiser says of an image's probability, and images made with it.

Axes: B images, K draws, S steps of a schedule, J steps of a trajectory, R rows that the network sees, C numbers of an image.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from whence.tasks.noise import NoiseSchedule, Prediction

__all__ = ["Denoiser", "elbo", "noise_errors", "step_back", "trajectory_log_probability"]

Denoiser = Callable[[Tensor, Tensor, Mapping[str, Tensor]], Tensor]
"""From noisy images (R, ...), times (R,) and what each row is told besides, labels or conditions (R, ...), to estimates of the images."""


def noise_errors(errors: Tensor, schedule: NoiseSchedule, prediction: Prediction, times: Tensor) -> Tensor:
    """Squared errors of the noise from those of the prediction.

    One of v is the noise's over the share of the image that is kept, one of the image the noise's over the signal-to-noise ratio.

    Args:
        errors: Summed over an image's numbers, any shape.
        schedule: In steps.
        prediction: What the errors are of.
        times: Step numbers, in the same shape.
    """
    signal, strength = schedule.mix(times)
    factors = {"noise": torch.ones_like(signal), "v": signal.square(), "image": (signal / strength).square()}
    return errors * factors[prediction].to(errors)


def elbo(errors_BK: Tensor, schedule: NoiseSchedule, times_BK: Tensor, images_BC: Tensor, *, is_simple: bool) -> Tensor:
    """Lower bound on the log-density of images, from draws of time that are uniform over the steps; shape (B,), in nats.

    The bound of Ho et al. 2020, equation 5, with the noise's squared error at step s weighted by half of SNR(s-1) / SNR(s) - 1 (Kingma et
    al. 2021, equation 14), and a Gaussian decoder at the first step, whose variance is the noise-to-signal ratio there. The simplified one
    weights all steps by a half and leaves out what does not depend on the network (Ho et al. 2020, equation 14).

    Args:
        errors_BK: Squared errors of the noise, summed over an image's numbers.
        schedule: In steps.
        times_BK: Step numbers.
        images_BC: The images.
        is_simple: Whether the simplified one is meant.
    """
    kept_S = schedule.steps().to(errors_BK.device)
    if is_simple:
        return -0.5 * len(kept_S) * errors_BK.mean(1)
    ratio_S = kept_S / (1 - kept_S)
    weights_S = torch.cat([torch.ones_like(ratio_S[:1]), ratio_S[:-1] / ratio_S[1:] - 1])
    expected_B = 0.5 * len(kept_S) * (weights_S[times_BK].to(errors_BK) * errors_BK).mean(1)
    size, last = images_BC.shape[1], float(kept_S[-1])
    # From the last step's distribution to standard normal noise.
    prior_B = 0.5 * (last * images_BC.square().sum(1) - size * last - size * math.log(1 - last))
    decoder = 0.5 * size * math.log(2 * math.pi / float(ratio_S[0]))
    return -(expected_B + prior_B + decoder)


def trajectory_log_probability(
    estimate: Denoiser, schedule: NoiseSchedule, trajectories: Tensor, steps_BJ: Tensor, conditioning: Mapping[str, Tensor]
) -> Tensor:
    """Log-probability of noisy images given their first, as ancestral sampling draws them (Ho et al. 2020, algorithm 2); shape (B,), in nats.

    The step to the image itself is left out: it has no noise.

    Args:
        estimate: The denoiser.
        schedule: In steps.
        trajectories: From noise to the image, shape (B, J + 1, ...).
        steps_BJ: Step number of all but the last of these.
        conditioning: What the network is told of each image, labels (B,) or conditions (B, ...), by name.
    """
    before, after = trajectories[:, :-2], trajectories[:, 1:-1]
    times_BJ, next_BJ = steps_BJ[:, :-1], steps_BJ[:, 1:]
    rows_conditioning = {name: value.repeat_interleave(times_BJ.shape[1], 0) for name, value in conditioning.items()}
    rows = before.flatten(0, 1)
    mean, variance = step_back(
        schedule, rows, estimate(rows, times_BJ.flatten(), rows_conditioning), times_BJ.flatten(), next_BJ.flatten()
    )
    distance_R = (after.flatten(0, 1) - mean).flatten(1).square().sum(1)
    variance_R = variance.flatten()
    size = rows[0].numel()
    log_R = -0.5 * (distance_R / variance_R + size * torch.log(2 * math.pi * variance_R))
    return log_R.view(times_BJ.shape).sum(1)


def step_back(schedule: NoiseSchedule, noisy: Tensor, images: Tensor, times_R: Tensor, next_R: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of less noisy images, given noisy ones and the images (Ho et al. 2020, equations 6 and 7, for any two steps).

    Args:
        schedule: In steps.
        noisy: At `times_R`, shape (R, ...).
        images: Without noise, or estimates of them.
        times_R: Step numbers.
        next_R: Smaller step numbers.

    Returns:
        The mean, shape (R, ...), and the variance, shape (R, 1, ...).
    """
    kept_S = schedule.steps().to(noisy.device)
    shape = (-1, *(1,) * (noisy.ndim - 1))
    now, then = (kept_S[times].reshape(shape) for times in (times_R, next_R))
    share = now / then
    of_image, of_noisy = then.sqrt() * (1 - share) / (1 - now), share.sqrt() * (1 - then) / (1 - now)
    variance = (1 - then) / (1 - now) * (1 - share)
    return of_image.to(noisy) * images + of_noisy.to(noisy) * noisy, variance.to(noisy)
