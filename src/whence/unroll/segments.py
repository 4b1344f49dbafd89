"""A recorded run cut into segments: how far each moved the weights, and on which examples."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from whence.errors import BadInput, Unsupported
from whence.optimizers import mix_of
from whence.recording.steps import Steps
from whence.records import Unit
from whence.unroll.averaged import AverageSteps
from whence.unroll.states import RuledGroup

__all__ = ["Segment", "cut_run", "shares_of", "stages_of"]

GroupsOf = Callable[[int], Sequence[RuledGroup]]


@dataclass(frozen=True)
class Segment:
    """A stretch of training in which gradients and curvature are taken as constant (Bae et al. 2024, section 3.1).

    Args:
        start: Its first step.
        stop: The step after its last.
        checkpoints: Steps of the checkpoints in it.
        plain: Parameters whose gradients the optimizer multiplies with nothing but the learning rate, as SGD does.
        decoupled: Those whose weight decay bypasses what gradients are multiplied with.
        reach: By parameter, the sum over its steps of the learning rate times the weight of the mean of the examples' summed losses in the
            loss that was minimised; heavy-ball momentum multiplies by 1 / (1 - momentum).
        decay: By parameter, the sum of the learning rate times weight decay, with momentum the same.
        shares: By example id, its share of what the segment's stage was trained on; they add up to 1.
        averaging: By parameter of a Schedule-Free optimizer, its steps.
    """

    start: int
    stop: int
    checkpoints: tuple[int, ...]
    plain: frozenset[str]
    decoupled: frozenset[str]
    reach: Mapping[str, float]
    decay: Mapping[str, float]
    shares: Mapping[str, float]
    averaging: Mapping[str, AverageSteps] = field(default_factory=dict)

    @property
    def is_adaptive(self) -> bool:
        """Whether the optimizer multiplies gradients of some parameter with a matrix, as all but SGD do."""
        return bool(self.reach.keys() - self.plain)

    def is_decoupled(self, unit: Unit) -> bool:
        """Whether weight decay of a unit bypasses that matrix."""
        return unit.parameters[0] in self.decoupled


def cut_run(
    record: Mapping[str, Any], log: Steps, checkpoints: Sequence[int], per_stage: int, groups: GroupsOf
) -> list[Segment]:
    """A run cut at checkpoints, every stage by itself, in stretches of about as many checkpoints each.

    Args:
        record: What `run.json` says.
        log: Its steps.
        checkpoints: Steps after which weights were kept.
        per_stage: Segments of a stage that has as many checkpoints; fewer if it has not.
        groups: The optimizer's groups in a step, see `Run.groups`.

    Returns:
        The segments, in order.

    Raises:
        BadInput: If `per_stage` is not positive.
        Unsupported: If the optimizer is one whose steps are not known here.
    """
    if per_stage < 1:
        raise BadInput(found=f"segments={per_stage}", needed="1 or more", do="correct it")
    all_groups = [group for settings in record["settings"] for group in groups(settings["start"])]
    if len(stages_of(record, log)) > 1 and any(group["rule"].is_averaged for group in all_groups):
        raise Unsupported(
            found="a run of several stages with a Schedule-Free optimizer",
            needed="one stage: whether the next began at its average or its fast weights is not told",
            do="record the stages as runs of their own",
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
            segments.append(_segment(log, first, chosen, shares, groups))
            first = chosen[-1]
    return segments


def stages_of(record: Mapping[str, Any], log: Steps) -> list[tuple[int, int]]:
    """The first step of every stage, and the step after its last."""
    # A new kind of optimizer is a new stage, too, but of the same data if nothing else was said.
    starts = sorted({0, *(stage["start"] for stage in record["stages"])})
    starts = [start for start in starts if start < log.stop]
    return list(zip(starts, [*starts[1:], log.stop], strict=True))


def shares_of(log: Steps, start: int, stop: int) -> dict[str, float]:
    """By how often each example was met: the mean over the orders in which a stage could have met them."""
    counts = Counter(member for members in log.members[start:stop] for member in members)
    total, ids = counts.total(), tuple(log.ids)
    return {ids[member]: count / total for member, count in counts.items()}


def _segment(log: Steps, start: int, checkpoints: tuple[int, ...], shares: Mapping[str, float], groups: GroupsOf) -> Segment:
    stop = checkpoints[-1]
    reach: dict[tuple[str, ...], float] = defaultdict(float)
    decay: dict[tuple[str, ...], float] = defaultdict(float)
    plain, decoupled = _alike(map(groups, range(start, stop)), start, stop)
    steps: dict[tuple[str, ...], list[tuple[float, float, float, float]]] = defaultdict(list)
    for step in range(start, stop):
        weight = math.fsum(log.weights[step]) * log.factors[step]
        for group, rate in zip(groups(step), log.rates[step], strict=True):
            gain = group["rule"].gain(group)
            names = tuple(group["parameters"])
            reach[names] += rate * gain * weight
            decay[names] += rate * gain * group["weight_decay"]
            if group["rule"].is_averaged:
                steps[names].append((mix_of(group), rate * weight, rate * group["weight_decay"], group["share"]))
    sums = [_by_parameter(values) for values in (reach, decay)]
    return Segment(start, stop, checkpoints, plain, decoupled, sums[0], sums[1], shares, _averaging(steps))


def _averaging(steps: Mapping[tuple[str, ...], Sequence[tuple[float, float, float, float]]]) -> dict[str, AverageSteps]:
    averaging = {}
    for names, rows in steps.items():
        mixes, reaches, decays, shares = zip(*rows, strict=True)
        averaging |= dict.fromkeys(names, AverageSteps(sum(mixes) / len(mixes), reaches, decays, shares))
    return averaging


def _alike(groups: Iterable[Sequence[RuledGroup]], start: int, stop: int) -> tuple[frozenset[str], frozenset[str]]:
    """Parameters whose gradients are multiplied with nothing, and those whose weight decay bypasses what they are multiplied with.

    Raises:
        Unsupported: If one is, and is not, in different steps.
    """
    plain: dict[str, set[bool]] = defaultdict(set)
    decoupled: dict[str, set[bool]] = defaultdict(set)
    for group in (group for some in groups for group in some):
        for name in group["parameters"]:
            plain[name].add(group["rule"].is_plain)
            decoupled[name].add(group["rule"].is_decoupled(group))
    if any(len(kinds) > 1 for kinds in (*plain.values(), *decoupled.values())):
        raise Unsupported(
            found=f"more than one optimizer in the steps {start:,} to {stop:,}",
            needed="one per stage",
            do="call stage(name, optimizer) of the recorder where the optimizer changes",
        )
    return frozenset(n for n, kinds in plain.items() if True in kinds), frozenset(
        n for n, kinds in decoupled.items() if True in kinds
    )


def _by_parameter(sums: Mapping[tuple[str, ...], float]) -> dict[str, float]:
    totals: dict[str, float] = defaultdict(float)
    for names, value in sums.items():
        for name in names:
            totals[name] += value
    return dict(totals)
