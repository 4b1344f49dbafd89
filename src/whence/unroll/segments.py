"""A recorded run cut into segments: how far each moved the weights, and on which examples."""

import math
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from whence.errors import BadInput, Unsupported
from whence.recording.steps import Steps

__all__ = ["Segment", "cut_run", "is_decoupled", "settings_at", "shares_of", "stages_of"]

_KINDS = ("SGD", "Adam", "AdamW", "Muon")
_DECOUPLED = ("AdamW", "Muon")


@dataclass(frozen=True)
class Segment:
    """A stretch of training in which gradients and curvature are taken as constant (Bae et al. 2024, section 3.1).

    Args:
        start: Its first step.
        stop: The step after its last.
        checkpoints: Steps of the checkpoints in it.
        is_adaptive: Whether the optimizer multiplies gradients with a matrix, as all but SGD do.
        is_decoupled: Whether weight decay bypasses it.
        reach: By parameter, the sum over its steps of the learning rate times the weight of the mean of the examples' summed losses in the
            loss that was minimised; heavy-ball momentum multiplies by 1 / (1 - momentum).
        decay: By parameter, the sum of the learning rate times weight decay, with momentum the same.
        shares: By example id, its share of what the segment's stage was trained on; they add up to 1.
    """

    start: int
    stop: int
    checkpoints: tuple[int, ...]
    is_adaptive: bool
    is_decoupled: bool
    reach: Mapping[str, float]
    decay: Mapping[str, float]
    shares: Mapping[str, float]


def cut_run(record: Mapping[str, Any], log: Steps, checkpoints: Sequence[int], per_stage: int) -> list[Segment]:
    """A run cut at checkpoints, every stage by itself, in stretches of about as many checkpoints each.

    Args:
        record: What `run.json` says.
        log: Its steps.
        checkpoints: Steps after which weights were kept.
        per_stage: Segments of a stage that has as many checkpoints; fewer if it has not.

    Returns:
        The segments, in order.

    Raises:
        BadInput: If `per_stage` is not positive.
        Unsupported: If the optimizer is one whose steps are not known here.
    """
    if per_stage < 1:
        raise BadInput(found=f"segments={per_stage}", needed="1 or more", do="correct it")
    for settings in record["settings"]:
        is_foreign = settings["optimizer"] == "Muon" and not all("ns_coefficients" in group for group in settings["groups"])
        odd = [name for name in ("amsgrad", "maximize") if any(group.get(name) for group in settings["groups"])]
        if settings["optimizer"] not in _KINDS or odd or is_foreign:
            raise Unsupported(
                found=f"a run with {settings['optimizer']}{' with ' + odd[0] if odd else ' of another package' if is_foreign else ''}",
                needed="SGD, Adam, AdamW or Muon of torch.optim, without amsgrad and maximize",
                do="choose another method, such as ekfac",
            )
    segments = []
    for start, stop in stages_of(record, log):
        shares = shares_of(log, start, stop)
        inside = [step for step in checkpoints if start < step <= stop]
        count = min(per_stage, len(inside))
        bounds = [len(inside) * part // count for part in range(count + 1)]
        first = start
        for left, right in zip(bounds, bounds[1:], strict=False):
            chosen = tuple(inside[left:right])
            segments.append(_segment(record, log, first, chosen, shares))
            first = chosen[-1]
    return segments


def stages_of(record: Mapping[str, Any], log: Steps) -> list[tuple[int, int]]:
    """The first step of every stage, and the step after its last."""
    # A new kind of optimizer is a new stage, too, but of the same data if nothing else was said.
    starts = sorted({0, *(stage["start"] for stage in record["stages"])})
    starts = [start for start in starts if start < log.stop]
    return list(zip(starts, [*starts[1:], log.stop], strict=True))


def is_decoupled(optimizer: str, group: Mapping[str, Any]) -> bool:
    """Whether weight decay bypasses what the optimizer multiplies gradients with."""
    return bool(group.get("decoupled_weight_decay", optimizer in _DECOUPLED))


def settings_at(record: Mapping[str, Any], step: int) -> Mapping[str, Any]:
    """The optimizer's settings in a step: its kind and groups."""
    settings = record["settings"]
    return settings[bisect_right(settings, step, key=lambda entry: entry["start"]) - 1]


def shares_of(log: Steps, start: int, stop: int) -> dict[str, float]:
    """By how often each example was met: the mean over the orders in which a stage could have met them."""
    counts = Counter(member for members in log.members[start:stop] for member in members)
    total, ids = counts.total(), tuple(log.ids)
    return {ids[member]: count / total for member, count in counts.items()}


def _segment(
    record: Mapping[str, Any], log: Steps, start: int, checkpoints: tuple[int, ...], shares: Mapping[str, float]
) -> Segment:
    stop = checkpoints[-1]
    reach: dict[tuple[str, ...], float] = defaultdict(float)
    decay: dict[tuple[str, ...], float] = defaultdict(float)
    kinds = {(name, is_decoupled(name, group)) for name, group in _groups(record, start, stop)}
    if len({name == "SGD" for name, _ in kinds}) > 1 or len({decoupled for _, decoupled in kinds}) > 1:
        raise Unsupported(
            found=f"more than one optimizer in the steps {start:,} to {stop:,}",
            needed="one per stage",
            do="call stage(name, optimizer) of the recorder where the optimizer changes",
        )
    (name, bypasses), *_ = kinds
    for step in range(start, stop):
        weight = math.fsum(log.weights[step]) * log.factors[step]
        for group, rate in zip(settings_at(record, step)["groups"], log.rates[step], strict=True):
            # Terminal velocity (Bae et al. 2024, appendix D.2); Adam's mean of gradients has it at once.
            gain = (1 - group.get("dampening", 0.0)) / (1 - group.get("momentum", 0.0)) if name == "SGD" else 1.0
            names = tuple(group["parameters"])
            reach[names] += rate * gain * weight
            decay[names] += rate * gain * group["weight_decay"]
    sums = [_by_parameter(values) for values in (reach, decay)]
    return Segment(start, stop, checkpoints, name != "SGD", bypasses, sums[0], sums[1], shares)


def _groups(record: Mapping[str, Any], start: int, stop: int) -> Iterator[tuple[str, Mapping[str, Any]]]:
    used = [settings_at(record, start), *(entry for entry in record["settings"] if start < entry["start"] < stop)]
    return ((settings["optimizer"], group) for settings in used for group in settings["groups"])


def _by_parameter(sums: Mapping[tuple[str, ...], float]) -> dict[str, float]:
    totals: dict[str, float] = defaultdict(float)
    for names, value in sums.items():
        for name in names:
            totals[name] += value
    return dict(totals)
