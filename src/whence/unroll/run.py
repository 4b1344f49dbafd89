"""A recorded run, read: its recipe, its checkpoints."""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from whence.capture import put_back
from whence.data import Dataset
from whence.errors import BadInput, StoreCorrupt, StoreMismatch, Unsupported
from whence.optimizers import Averaging, averaging_of, counted, weights_averaged, weights_stepped
from whence.recording.folder import check_structure
from whence.recording.record import check_checkpoints, read_run
from whence.recording.steps import Steps
from whence.records import Recipe
from whence.store.files import read_tensors, tensor_shapes
from whence.tasks import structure_of
from whence.unroll.segments import Segment, cut_run, shares_of, stages_of
from whence.unroll.states import RuledGroup, check_moved, counters_of, groups_at, settings_at, state_of

__all__ = ["WeightsAt", "Run", "open_run"]

WeightsAt = Literal["gradients", "measurements"]

_RECORD_AGAIN = "restore the folder from a copy, or record again"


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

    @property
    def losses(self) -> dict[int, float]:
        """The loss that a step lowered, by how many steps were before it, where the recorder was told; at checkpoints only."""
        return {entry["step"]: entry["loss"] for entry in self.record.get("losses", []) if entry["step"] in self.checkpoints}

    @property
    def digest(self) -> str:
        """Digest of its steps and checkpoints."""
        sums = [entry["sha256"] for entry in (*self.record["logs"], *self.record["checkpoints"])]
        return hashlib.sha256(json.dumps(sums).encode()).hexdigest()

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """Ids of the examples that it met."""
        return tuple(self.log.ids)

    @property
    def checkpoints(self) -> tuple[int, ...]:
        """Steps after which weights were kept, the first being 0."""
        return tuple(entry["step"] for entry in self.record["checkpoints"])

    def tensors(self, step: int) -> dict[str, Tensor]:
        """What was kept after a step: `model.NAME`, and `state_KEY.NAME` of the optimizer.

        Raises:
            StoreCorrupt: If the file is not what was written.
        """
        entry = self._checkpoint(step)
        try:
            return read_tensors(self.folder / entry["file"], sha256=entry["sha256"])
        except StoreCorrupt as error:
            raise StoreCorrupt(found=error.found, needed=error.needed, do=_RECORD_AGAIN) from error

    def bases(self, step: int) -> dict[str, Tensor]:
        """The curvature's bases that the recorder followed, after a step; none where it kept none.

        Raises:
            StoreCorrupt: If the file is not what was written.
        """
        entry = next((entry for entry in self.record.get("bases", []) if entry["step"] == step), None)
        return {} if entry is None else read_tensors(self.folder / entry["file"], sha256=entry["sha256"])

    def _checkpoint(self, step: int) -> Mapping[str, Any]:
        return next(entry for entry in self.record["checkpoints"] if entry["step"] == step)

    @contextmanager
    def weights(self, model: nn.Module, steps: Sequence[int], *, at: WeightsAt = "gradients") -> Iterator[None]:
        """Put the weights after a step, or the mean of those after several, into a model for a while.

        Args:
            model: The run's.
            steps: Of the checkpoints.
            at: Where a run whose optimizer tells both apart took its gradients, or where its model is used ("measurements").

        Yields:
            Nothing.
        """
        values = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        means: dict[str, Tensor] = {}
        for step in steps:
            for name, value in self.values(step, at).items():
                if value.is_floating_point():
                    means[name] = means[name] + value / len(steps) if name in means else value / len(steps)
        with put_back(model, values.values()):
            with torch.no_grad():
                for name, value in means.items():
                    values[name].copy_(value)
            yield

    def values(self, step: int, at: WeightsAt) -> dict[str, Tensor]:
        """Parameters and buffers after a step by name: where gradients are taken, or where the model is used.

        Args:
            step: Of the checkpoint.
            at: Schedule-Free optimizers take gradients between their fast weights and the average that the model is used at, and turn one
                into the other in `train()` and `eval()`; for all others it is the same.
        """
        tensors = self.tensors(step)
        values = {key.removeprefix("model."): value for key, value in tensors.items() if key.startswith("model.")}
        for group in self.groups(max(step - 1, 0)):
            if not group["rule"].is_averaged:
                continue
            is_training = bool(counters_of(group, tensors).get("train_mode", False))
            if is_training == (at == "gradients"):
                continue
            turned = weights_stepped if at == "gradients" else weights_averaged
            for name in group["parameters"]:
                if f"state_z.{name}" in tensors:
                    values[name] = turned(values[name], tensors[f"state_z.{name}"], group)
        return values

    def groups(self, step: int) -> list[RuledGroup]:
        """The optimizer's groups in a step, with the rules that they followed, and what a Schedule-Free one put into its average then."""
        return [
            {**group, "share": share}
            for group, share in zip(groups_at(self.record, step), self._average_shares[step], strict=True)
        ]

    @cached_property
    def _average_shares(self) -> list[list[float]]:
        """By step and group, the share of the step's weights in the average that a Schedule-Free optimizer keeps; 0 of others."""
        shares: list[list[float]] = []
        averages: list[Averaging] = []
        for step, rates in enumerate(self.log.rates):
            groups = groups_at(self.record, step)
            if not any("weight_lr_power" in group for group in groups):
                shares.append([0.0] * len(groups))
                continue
            if step == 0:
                tensors = self.tensors(0)
                averages = [averaging_of(counters_of(group, tensors)) for group in groups]
            stepped = [
                average.step(group, rate) if "weight_lr_power" in group else (0.0, average)
                for average, group, rate in zip(averages, groups, rates, strict=True)
            ]
            shares.append([share for share, _ in stepped])
            averages = [after for _, after in stepped]
        return shares

    def preconditioner(self, steps: Sequence[int]) -> dict[str, Tensor]:
        """The diagonal of what an optimizer multiplies gradients with, by parameter, mean over checkpoints.

        1 / (sqrt(v) + eps) of Adam, v bias-corrected; 0 of a parameter without state, and of one that is multiplied with another matrix.

        Args:
            steps: Of the checkpoints.
        """
        means: dict[str, Tensor] = {}
        start = self.tensors(self.checkpoints[0])
        for step in self._with_state(steps):
            tensors = self.tensors(step)
            settings = settings_at(self.record, max(step - 1, 0))
            group_of = {name: group for group in self.groups(max(step - 1, 0)) for name in group["parameters"]}
            for key, weight in tensors.items():
                kind, _, name = key.partition(".")
                if kind != "model":
                    continue
                part, group = torch.zeros_like(weight), group_of.get(name)
                state = {} if group is None else state_of(settings, group, name, tensors)
                if group is not None and group["rule"].diagonal is not None and state:
                    part = group["rule"].diagonal(state, group, counted(state, counters_of(group, tensors)))
                elif group is not None and not state and key in start:
                    check_moved(settings, group, name, start[key], weight)
                means[name] = means.get(name, torch.zeros_like(part)) + part / len(steps)
        for key, value in self.tensors(self.checkpoints[-1]).items():  # which alone has the weights that never moved
            if key.startswith("model."):
                means.setdefault(key.removeprefix("model."), torch.zeros_like(value))
        return means

    @property
    def _is_averaged(self) -> bool:
        return any(group["rule"].is_averaged for group in self.groups(self.steps - 1))

    def _with_state(self, steps: Sequence[int]) -> list[int]:
        """The checkpoints that P can be read off, as many as were asked for.

        Where a stage begins with a new optimizer, earlier versions kept that one's state, of which there is none yet.

        Raises:
            Unsupported: If none has a state.
        """
        starts = {stage["start"] for stage in self.record["stages"]}
        with_state = [step for step in steps if step not in starts or self._has_state(step)]
        if not with_state:
            raise Unsupported(
                found=f"checkpoints after {', '.join(map(str, steps))} steps without the state of the optimizer that came there",
                needed="one that has it",
                do="record the run again, or cut it into fewer segments",
            )
        return (with_state * len(steps))[: len(steps)]

    def _has_state(self, step: int) -> bool:
        return any(key.startswith("state_") for key in tensor_shapes(self.folder / self._checkpoint(step)["file"]))

    @property
    def stages(self) -> list[tuple[int, int]]:
        """The first step of every stage, and the step after its last."""
        return stages_of(self.record, self.log)

    def has_new_optimizer(self, start: int) -> bool | None:
        """Whether the stage from a step on began with a new optimizer; None where an earlier version did not write it down."""
        stages = [stage for stage in self.record["stages"] if stage["start"] == start]
        return any(stage["is_new"] for stage in stages) if all("is_new" in stage for stage in stages) else None

    def shares(self, start: int, stop: int) -> dict[str, float]:
        """By id, each example's share of what was met from a step up to another."""
        return shares_of(self.log, start, stop)

    def mean_rates(self) -> list[float]:
        """The learning rate of every step, the mean over groups of parameters weighted by their size, times what gradients were scaled by."""
        numbers, means = self._group_shares(), []
        for step, (rates, factor) in enumerate(zip(self.log.rates, self.log.factors, strict=True)):
            settings = settings_at(self.record, step)
            parts = zip(numbers[settings["start"]], rates, settings["groups"], strict=True)
            means.append(factor * sum(share * rate * (1 - group.get("dampening", 0.0)) for share, rate, group in parts))
        return means

    def _group_shares(self) -> dict[int, list[float]]:
        """By the first step of the optimizer's settings, each group's share of the parameters."""
        tensors, shares = self.tensors(self.checkpoints[-1]), {}
        for settings in self.record["settings"]:
            sizes = [sum(tensors[f"model.{name}"].numel() for name in group["parameters"]) for group in settings["groups"]]
            shares[settings["start"]] = [size / sum(sizes) for size in sizes]
        return shares

    def segments(self, per_stage: int) -> list[Segment]:
        """The run cut at checkpoints, see `cut_run`."""
        return cut_run(self.record, self.log, self.checkpoints, per_stage, self.groups)

    def recipe(self) -> Recipe:
        """The run as damping rules need it; what differs between groups of parameters is their mean, weighted by size.

        Learning rates are added up over all stages, each by the groups that its optimizer had; the rest is of the last optimizer. Of a
        Schedule-Free run they count half: the average that its model is used at follows a constant gradient half as far (for a constant
        rate the response over K steps is within 10 to 28 % of 1 / (s + 2 / (rate K)), s the curvature).
        """
        kind, groups = settings_at(self.record, self.steps - 1), self.groups(self.steps - 1)
        numbers = self._group_shares()[kind["start"]]
        first, inverse = groups[0], None
        is_plain = all(group["rule"].is_plain for group in groups)
        if not is_plain:
            diagonals = self.preconditioner(self.checkpoints[-1:])
            inverse = {
                name: float((1 / value).mean())
                for name, value in diagonals.items()
                if bool(value.all()) and value.is_floating_point()
            } or None
        rates = math.fsum(self.mean_rates()) * (0.5 if first["rule"].is_averaged else 1.0)
        return Recipe(
            "sgd" if is_plain else kind["optimizer"].lower(),
            rates,
            # Others' momentum is a mean of gradients, which is as long as they are.
            momentum=first["momentum"] if is_plain and "dampening" in first else 0.0,
            weight_decay=sum(number * group["weight_decay"] for number, group in zip(numbers, groups, strict=True)),
            loss_divisor=self.steps / sum(sum(weights) for weights in self.log.weights),
            inverse_preconditioner=inverse,
            decoupled_weight_decay=None if is_plain else first["rule"].is_decoupled(first),
        )

    def unrecorded(self, names: Iterable[str]) -> list[str]:
        """Parameters that moved though the recorded optimizer never stepped them: another did, of which nothing is known."""
        stepped = {name for entry in self.record["settings"] for group in entry["groups"] for name in group["parameters"]}
        left = [name for name in names if name not in stepped]
        first, last = (self.tensors(self.checkpoints[which]) for which in (0, -1)) if left else ({}, {})
        return [name for name in left if not torch.equal(first[f"model.{name}"], last[f"model.{name}"])]

    def check_computed(self, model: nn.Module) -> list[str]:
        """Refuse a model that computes something else than the run's; returns what a reader should know of what could not be told.

        Raises:
            StoreMismatch: If it does.
        """
        return check_structure(self.record, structure_of(model), self.folder)

    def notes_of_data(self, unseen: Sequence[str]) -> list[str]:
        """What a reader should know of training examples that the run never met.

        Args:
            unseen: Ids of training examples that the run never met, as `check` gives them.
        """
        return [f"{len(unseen):,} examples that the run never met score 0, the first {unseen[0]!r}"] if unseen else []

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
        mine, theirs = dict(model.named_parameters()), self.values(self.checkpoints[-1], "measurements")
        other = [name for name, value in mine.items() if name not in theirs or theirs[name].shape != value.shape]
        other = other or [name for name, value in mine.items() if not torch.equal(theirs[name].to(value), value.detach())]
        if other:
            raise StoreMismatch(
                found=f"a model whose {other[0]!r} is not what the run in {self.folder} ended with",
                needed="the model that came out of that run",
                do="load those weights, or pass the folder of the run that made this model"
                + (", in whose optimizer's eval() mode it is to be used" if self._is_averaged else ""),
            )
        missing = sorted(set(self.ids) - set(train.ids))
        if missing:
            raise StoreMismatch(
                found=f"{len(missing):,} of the run's {len(self.ids):,} examples not in the training data, the first {missing[0]!r}",
                needed="every example that the run met, with the id that it was recorded with",
                do=f"pass the data that was trained on, with ids such as {self.ids[0]!r}",
            )
        fingerprint = self.record.get("fingerprint")
        if fingerprint is not None and fingerprint != train.fingerprint:
            raise StoreMismatch(
                found=f"training data with the fingerprint {train.fingerprint[:12]}, and a run in {self.folder} of {fingerprint[:12]}",
                needed="the same examples in the same order, prepared alike",
                do="pass the data that was trained on",
            )
        return sorted(set(train.ids) - set(self.ids))


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
    if not os.path.lexists(folder / "run.json"):
        raise BadInput(found=f"no run.json in {folder}", needed="a folder that whence.Recorder wrote", do="check the path")
    record = read_run(folder, "record it again")
    if not record["finished"] or not record["steps"]:
        raise BadInput(
            found=f"a run in {folder} that stopped after {record['steps']:,} steps",
            needed="a finished run of at least one step",
            do="train on with the recorder on the same folder, from restore()",
        )
    log = Steps.read(folder, record)
    check_checkpoints(folder, record, _RECORD_AGAIN)
    return Run(folder, record, log)
