"""A recorded run, read: its recipe, its segments, its checkpoints.

Axes: S steps, R examples that the run has met.
"""

import math
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from whence.data import Dataset
from whence.errors import BadInput, StoreCorrupt, StoreMismatch, Unsupported
from whence.records import Recipe
from whence.store.files import damaged, read_json, read_tensors, sha256_of
from whence.unroll.recorder import VERSION
from whence.unroll.steps import Steps

__all__ = ["Run", "Segment", "open_run"]

_KINDS = ("SGD", "Adam", "AdamW")


@dataclass(frozen=True)
class Segment:
    """A stretch of training in which gradients and curvature are taken as constant (Bae et al. 2024, section 3.1).

    Args:
        start: Its first step.
        stop: The step after its last.
        checkpoints: Steps of the checkpoints in it.
        is_adaptive: Whether the optimizer divides by the root of second moments.
        is_decoupled: Whether weight decay bypasses them.
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


@dataclass(frozen=True)
class Run:
    """A finished run in a folder.

    Args:
        folder: Where it is.
        record: What `run.json` says.
        log: Its steps.
    """

    folder: Path
    record: Mapping[str, Any]
    log: Steps

    @property
    def steps(self) -> int:
        """How many there were."""
        return self.log.stop

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """Ids of the examples that it met."""
        return tuple(self.log.ids)

    @property
    def checkpoints(self) -> tuple[int, ...]:
        """Steps after which weights were kept, the first being 0."""
        return tuple(kept["step"] for kept in self.record["checkpoints"])

    def tensors(self, step: int) -> dict[str, Tensor]:
        """What was kept after a step: `model.NAME`, and `state_KEY.NAME` of the optimizer.

        Raises:
            StoreCorrupt: If the file is not what was written.
        """
        kept = next(kept for kept in self.record["checkpoints"] if kept["step"] == step)
        path = self.folder / kept["file"]
        if not path.exists() or sha256_of(path) != kept["sha256"]:
            raise StoreCorrupt(
                **{
                    **damaged(path, "it is missing or its checksum is another"),
                    "do": "restore the folder from a copy, or record again",
                }
            )
        return read_tensors(path)

    @contextmanager
    def weights(self, model: nn.Module, steps: Sequence[int]) -> Iterator[None]:
        """Put the weights after a step, or the mean of those after several, into a model for a while.

        Yields:
            Nothing.
        """
        values = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        before = {name: value.detach().clone() for name, value in values.items()}
        found: dict[str, Tensor] = {}
        for step in steps:
            for key, value in self.tensors(step).items():
                kind, _, name = key.partition(".")
                if kind == "model" and value.is_floating_point():
                    found[name] = found[name] + value / len(steps) if name in found else value / len(steps)
        try:
            with torch.no_grad():
                for name, value in found.items():
                    values[name].copy_(value)
            yield
        finally:
            with torch.no_grad():
                for name, value in before.items():
                    values[name].copy_(value)

    def preconditioner(self, steps: Sequence[int]) -> dict[str, Tensor]:
        """1 / (sqrt(v) + eps) of an adaptive optimizer, v bias-corrected, by parameter, mean over checkpoints; 0 where it has no state.

        Args:
            steps: Of the checkpoints.
        """
        found: dict[str, Tensor] = {}
        for step in steps:
            tensors = self.tensors(step)
            groups = self._settings_at(max(step - 1, 0))["groups"]
            group_of = {name: group for group in groups for name in group["parameters"]}
            for key, weight in tensors.items():
                kind, _, name = key.partition(".")
                if kind != "model":
                    continue
                part = torch.zeros_like(weight)
                if (second := tensors.get(f"state_exp_avg_sq.{name}")) is not None:
                    corrected = second / (1 - group_of[name]["betas"][1] ** float(tensors[f"state_step.{name}"]))
                    part = 1.0 / (corrected.sqrt() + group_of[name]["eps"])
                found[name] = found.get(name, torch.zeros_like(part)) + part / len(steps)
        return found

    def segments(self, per_stage: int) -> list[Segment]:
        """The run cut at checkpoints, every stage by itself, in stretches of about as many checkpoints each.

        Args:
            per_stage: Segments of a stage that has as many checkpoints; fewer if it has not.

        Returns:
            The segments, in order.

        Raises:
            BadInput: If `per_stage` is not positive.
            Unsupported: If the optimizer is one whose steps are not known here.
        """
        if per_stage < 1:
            raise BadInput(found=f"segments={per_stage}", needed="1 or more", do="correct it")
        for settings in self.record["settings"]:
            odd = [name for name in ("amsgrad", "maximize") if any(group.get(name) for group in settings["groups"])]
            if settings["optimizer"] not in _KINDS or odd:
                raise Unsupported(
                    found=f"a run with {settings['optimizer']}{' with ' + odd[0] if odd else ''}",
                    needed="SGD, Adam or AdamW, without amsgrad and maximize",
                    do="choose another method, such as ekfac",
                )
        # A new kind of optimizer is a new stage, too, but of the same data if nothing else was said.
        starts = sorted({0, *(stage["start"] for stage in self.record["stages"])})
        starts = [start for start in starts if start < self.steps]
        found = []
        for start, stop in zip(starts, [*starts[1:], self.steps], strict=True):
            shares = self._shares(start, stop)
            inside = [step for step in self.checkpoints if start < step <= stop]
            count = min(per_stage, len(inside))
            bounds = [len(inside) * part // count for part in range(count + 1)]
            first = start
            for left, right in zip(bounds, bounds[1:], strict=False):
                chosen = tuple(inside[left:right])
                found.append(self._segment(first, chosen[-1], chosen, shares))
                first = chosen[-1]
        return found

    def recipe(self) -> Recipe:
        """The run as damping rules need it; what differs between groups of parameters is their mean, weighted by size."""
        kind = self._settings_at(self.steps - 1)
        tensors = self.tensors(self.checkpoints[-1])
        sizes = [sum(tensors[f"model.{name}"].numel() for name in group["parameters"]) for group in kind["groups"]]
        numbers = [size / sum(sizes) for size in sizes]
        rates = sum(
            sum(number * rate for number, rate in zip(numbers, rates, strict=False)) * factor
            for rates, factor in zip(self.log.rates, self.log.factors, strict=True)
        )
        first = kind["groups"][0]
        inverse = None
        if kind["optimizer"] != "SGD":
            preconditioner = self.preconditioner(self.checkpoints[-1:])
            inverse = {
                name: float((1 / value).mean())
                for name, value in preconditioner.items()
                if bool(value.all()) and value.is_floating_point()
            }
        return Recipe(
            kind["optimizer"].lower(),
            rates,
            momentum=first.get("momentum", 0.0),
            weight_decay=sum(number * group["weight_decay"] for number, group in zip(numbers, kind["groups"], strict=True)),
            loss_divisor=self.steps / sum(sum(weights) for weights in self.log.weights),
            inverse_preconditioner=inverse,
        )

    def check(self, model: nn.Module, train: Dataset) -> list[str]:
        """Refuse a model or data that are not those of the run.

        Args:
            model: Should have the weights that the run ended with.
            train: Should hold every example that it met.

        Returns:
            Ids of training examples that the run never met.

        Raises:
            StoreMismatch: If either is another.
        """
        last = self.tensors(self.checkpoints[-1])
        mine = dict(model.named_parameters())
        theirs = {name.removeprefix("model."): value for name, value in last.items() if name.startswith("model.")}
        other = [name for name, value in mine.items() if name not in theirs or theirs[name].shape != value.shape]
        other = other or [name for name, value in mine.items() if not torch.equal(theirs[name].to(value), value.detach())]
        if other:
            raise StoreMismatch(
                found=f"a model whose {other[0]!r} is not what the run in {self.folder} ended with",
                needed="the model that came out of that run",
                do="load those weights, or pass the folder of the run that made this model",
            )
        missing = sorted(set(self.ids) - set(train.ids))
        if missing:
            raise StoreMismatch(
                found=f"{len(missing):,} of the run's {len(self.ids):,} examples not in the training data, the first {missing[0]!r}",
                needed="every example that the run met, with the id that it was recorded with",
                do=f"pass the data that was trained on, with ids such as {self.ids[0]!r}",
            )
        return sorted(set(train.ids) - set(self.ids))

    def _settings_at(self, step: int) -> Mapping[str, Any]:
        settings = self.record["settings"]
        return settings[bisect_right(settings, step, key=lambda kept: kept["start"]) - 1]

    def _shares(self, start: int, stop: int) -> dict[str, float]:
        """By how often each example was met: the mean over the orders in which a stage could have met them."""
        counts = Counter(member for members in self.log.members[start:stop] for member in members)
        total = counts.total()
        return {self.ids[member]: count / total for member, count in counts.items()}

    def _segment(self, start: int, stop: int, checkpoints: tuple[int, ...], shares: Mapping[str, float]) -> Segment:
        reach: dict[tuple[str, ...], float] = defaultdict(float)
        decay: dict[tuple[str, ...], float] = defaultdict(float)
        kinds = {(name, group.get("decoupled_weight_decay", name == "AdamW")) for name, group in self._groups(start, stop)}
        if len({name == "SGD" for name, _ in kinds}) > 1 or len({decoupled for _, decoupled in kinds}) > 1:
            raise Unsupported(
                found=f"more than one optimizer in the steps {start:,} to {stop:,}",
                needed="one per stage",
                do="call stage(name, optimizer) of the recorder where the optimizer changes",
            )
        (name, is_decoupled), *_ = kinds
        for step in range(start, stop):
            weight = math.fsum(self.log.weights[step]) * self.log.factors[step]
            for group, rate in zip(self._settings_at(step)["groups"], self.log.rates[step], strict=True):
                # Terminal velocity (Bae et al. 2024, appendix D.2); Adam's mean of gradients has it at once.
                gain = (1 - group.get("dampening", 0.0)) / (1 - group.get("momentum", 0.0)) if name == "SGD" else 1.0
                names = tuple(group["parameters"])
                reach[names] += rate * gain * weight
                decay[names] += rate * gain * group["weight_decay"]
        sums = [_by_parameter(found) for found in (reach, decay)]
        return Segment(start, stop, checkpoints, name != "SGD", bool(is_decoupled), sums[0], sums[1], shares)

    def _groups(self, start: int, stop: int) -> Iterator[tuple[str, Mapping[str, Any]]]:
        used = [self._settings_at(start), *(kept for kept in self.record["settings"] if start < kept["start"] < stop)]
        return ((settings["optimizer"], group) for settings in used for group in settings["groups"])


def open_run(folder: str | Path) -> Run:
    """A recorded run.

    Args:
        folder: Where `whence.Recorder` kept it.

    Returns:
        The run.

    Raises:
        BadInput: If there is none, or it was not finished.
        StoreMismatch: If another version wrote it.
        StoreCorrupt: If a file is not what was written.
    """
    folder = Path(folder)
    if not (folder / "run.json").exists():
        raise BadInput(found=f"no run.json in {folder}", needed="a folder that whence.Recorder wrote", do="check the path")
    record = read_json(folder / "run.json")
    if record.get("version") != VERSION:
        raise StoreMismatch(
            found=f"a run of version {record.get('version')} in {folder}", needed=f"version {VERSION}", do="record it again"
        )
    if not record["finished"] or not record["steps"]:
        raise BadInput(
            found=f"a run in {folder} that stopped after {record['steps']:,} steps",
            needed="a finished run of at least one step",
            do="train on with the recorder on the same folder, from restore()",
        )
    for log in record["logs"]:
        if not (folder / log["file"]).exists() or sha256_of(folder / log["file"]) != log["sha256"]:
            raise StoreCorrupt(
                **{
                    **damaged(folder / log["file"], "it is missing or its checksum is another"),
                    "do": "restore the folder from a copy, or record again",
                }
            )
    return Run(folder, record, Steps.read(folder, record))


def _by_parameter(sums: Mapping[tuple[str, ...], float]) -> dict[str, float]:
    found: dict[str, float] = defaultdict(float)
    for names, value in sums.items():
        for name in names:
            found[name] += value
    return dict(found)
