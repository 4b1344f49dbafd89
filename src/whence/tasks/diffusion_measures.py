"""What is measured of a diffusion model, and which measurements go with which schedule and guidance."""

from dataclasses import dataclass
from typing import Literal

from whence.errors import BadInput, UnknownOption, Unsupported
from whence.settings import typed
from whence.tasks.draws import Draws, Guidance
from whence.tasks.noise import NoiseSchedule, Prediction

__all__ = ["DiffusionMeasure", "Measured", "check_measured", "note_of_draws", "unit_of"]

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
class Measured:
    """What is measured of a diffusion model.

    Args:
        measure: What a query asks about: "loss" (negated), "loss_at" a time (negated), "simple_elbo" (Ho et al. 2020, equation 14), "elbo",
            "square_norm" (of the prediction, Zheng et al. 2024), or "trajectory", the log-probability of the noisy images that led to a
            generated one. It is of the image as it is, told what its record says: nothing is augmented or hidden.
        clip: Where estimates of the image are cut off, in sampling and in the trajectory's log-probability, such as 1.0; None leaves them.
        time: For "loss_at": a step number, or from 0 to 1 for flow matching.
        output: What TRAK linearises: "loss" (negated), or "square_norm" for D-TRAK (Zheng et al. 2024, section 4), which goes with the
            measurement of that name.
        draws: Whose times and noise a query is measured with. "training": those that training examples meet, if these are shared. What the
            draws add by chance is then the same on both sides: good for ranks, and something positive in every score. If they are not
            shared, a query and an example have the same draws where they have the same id. "own": others, for amounts, such as shares and
            payouts.
    """

    measure: DiffusionMeasure = "loss"
    clip: float | None = None
    time: float | None = None
    output: Literal["loss", "square_norm"] = "loss"
    draws: Literal["training", "own"] = "training"


def unit_of(measured: Measured) -> str:
    """What a measurement is counted in."""
    return _UNITS[measured.measure].format(time=measured.time)


def note_of_draws(measured: Measured, noised: Draws) -> str:
    """What a reader of scores has to know of the draws."""
    count = f"{noised.draws:,} draw{'s' if noised.draws > 1 else ''} of time and noise"
    if measured.measure == "trajectory":
        return f"training losses over {count}; a query is measured along its own trajectory"
    if noised.shared and measured.draws == "training":
        return (
            f"queries meet the {count} of training, shared by all examples: good for ranks, but it adds something positive to every score; "
            "for amounts measure with draws='own' (--query-draws own)"
        )
    if measured.draws == "training":
        return (
            f"queries meet {count} that their ids choose, as each example does: independent of training's but for an example of the same id, "
            "whose score is then lifted; records without ids are numbered on both sides: name them, or measure with draws='own' "
            "(--query-draws own)"
        )
    return f"queries meet {count} of their own, independent of training's: nothing is added to scores, whose ranks are noisier for it"


def check_measured(
    schedule: NoiseSchedule, prediction: Prediction, noised: Draws, measured: Measured, guidance: Guidance
) -> None:
    """Refuse settings that do not go together.

    Raises:
        BadInput: If the clip is not positive, a time is given and not used, missing, or out of range, or the weights are of no schedule.
        UnknownOption: If prediction, measure, output or draws are none of the choices.
        Unsupported: If prediction or measurement do not go with the schedule, or the measurement not with guidance.
    """
    choices = (
        ("prediction", prediction, ("noise", "v", "image", "flow")),
        ("measure", measured.measure, tuple(_UNITS)),
        ("output", measured.output, ("loss", "square_norm")),
        ("draws", measured.draws, ("training", "own")),
    )
    for name, value, allowed in choices:
        if value not in allowed:
            raise UnknownOption(found=f"{name}={value!r}", needed=f"one of: {', '.join(allowed)}", do="pick one")
    is_flow = schedule.kept_S is None
    if noised.min_snr is not None and (noised.min_snr <= 0 or is_flow):
        raise BadInput(
            found=f"min_snr={noised.min_snr} with the schedule {schedule.name!r}",
            needed="a positive number, and a schedule in steps",
            do="leave it out, or pass what the network was trained with",
        )
    if measured.clip is not None and measured.clip <= 0:
        raise BadInput(found=f"clip={measured.clip}", needed="a positive clip or none", do="correct it")
    if (prediction == "flow") != is_flow:
        raise Unsupported(
            found=f"prediction={prediction!r} with the schedule {schedule.name!r}",
            needed="'noise', 'v' or 'image' for schedules in steps, 'flow' for flow matching",
            do="pass the schedule that the network was trained with",
        )
    if is_flow and measured.measure in _IN_STEPS:
        raise Unsupported(
            found=f"measure={measured.measure!r} with flow matching",
            needed="a schedule in steps",
            do="pass measure='loss' or 'loss_at'",
        )
    if guidance.scale != 1 and measured.measure in ("elbo", "simple_elbo"):
        raise Unsupported(
            found=f"measure={measured.measure!r} under guidance of scale {guidance.scale:g}",
            needed="scale 1: a guided prediction is that of no model whose likelihood this bounds",
            do="pass scale=1, or measure='loss'",
        )
    _check_time(measured, None if is_flow else len(schedule.steps()))


def _check_time(measured: Measured, steps: int | None) -> None:
    if (measured.time is None) == (measured.measure == "loss_at"):
        raise BadInput(
            found=f"time={measured.time} with measure={measured.measure!r}",
            needed="a time with 'loss_at', and with nothing else",
            do="pass both, or leave time out",
        )
    if measured.time is None:
        return
    last = 1.0 if steps is None else steps - 1
    if not 0 <= measured.time <= last or (steps is not None and measured.time != int(measured.time)):
        raise BadInput(
            found=f"time={measured.time}",
            needed=f"{'a number' if steps is None else 'a step'} from 0 to {last:g}",
            do="correct it",
        )
