"""A recorded run, read: its recipe, its checkpoints."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from whence.data import Dataset
from whence.errors import BadInput, StoreCorrupt, StoreMismatch
from whence.recording.recorder import VERSION
from whence.recording.steps import Steps
from whence.records import Recipe
from whence.sharded_weights import refuse_spread
from whence.store.files import damaged, read_json, read_tensors, sha256_of
from whence.unroll.segments import Segment, cut_run, settings_at

__all__ = ["Run", "open_run"]


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
        refuse_spread(model)  # writing into a weight that is elsewhere changes nothing
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
            groups = settings_at(self.record, max(step - 1, 0))["groups"]
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
        for key, value in self.tensors(self.checkpoints[-1]).items():  # which alone has the weights that never moved
            if key.startswith("model."):
                found.setdefault(key.removeprefix("model."), torch.zeros_like(value))
        return found

    def segments(self, per_stage: int) -> list[Segment]:
        """The run cut at checkpoints, see `cut_run`."""
        return cut_run(self.record, self.log, self.checkpoints, per_stage)

    def recipe(self) -> Recipe:
        """The run as damping rules need it; what differs between groups of parameters is their mean, weighted by size.

        Learning rates are added up over all stages, each by the groups that its optimizer had; the rest is of the last optimizer.
        """
        kind = settings_at(self.record, self.steps - 1)
        tensors = self.tensors(self.checkpoints[-1])

        numbers_from: dict[int, list[float]] = {}
        for settings in self.record["settings"]:
            sizes = [sum(tensors[f"model.{name}"].numel() for name in group["parameters"]) for group in settings["groups"]]
            numbers_from[settings["start"]] = [size / sum(sizes) for size in sizes]
        total = 0.0
        for step, (rates, factor) in enumerate(zip(self.log.rates, self.log.factors, strict=True)):
            numbers = numbers_from[settings_at(self.record, step)["start"]]
            total += factor * sum(number * rate for number, rate in zip(numbers, rates, strict=True))
        first, numbers = kind["groups"][0], numbers_from[kind["start"]]
        inverse = None
        if kind["optimizer"] != "SGD":
            preconditioner = self.preconditioner(self.checkpoints[-1:])
            inverse = {
                name: float((1 / value).mean())
                for name, value in preconditioner.items()
                if bool(value.all()) and value.is_floating_point()
            } or None
        return Recipe(
            kind["optimizer"].lower(),
            total,
            momentum=first.get("momentum", 0.0),
            weight_decay=sum(number * group["weight_decay"] for number, group in zip(numbers, kind["groups"], strict=True)),
            loss_divisor=self.steps / sum(sum(weights) for weights in self.log.weights),
            inverse_preconditioner=inverse,
        )

    def unrecorded(self, names: Iterable[str]) -> list[str]:
        """Parameters that moved though the recorded optimizer never stepped them: another did, of which nothing is known."""
        stepped = {name for kept in self.record["settings"] for group in kept["groups"] for name in group["parameters"]}
        left = [name for name in names if name not in stepped]
        first, last = (self.tensors(self.checkpoints[place]) for place in (0, -1)) if left else ({}, {})
        return [name for name in left if not torch.equal(first[f"model.{name}"], last[f"model.{name}"])]

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
        known = self.record.get("fingerprint")
        if known is not None and known != train.fingerprint:
            raise StoreMismatch(
                found=f"training data with the fingerprint {train.fingerprint[:12]}, and a run in {self.folder} of {known[:12]}",
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
