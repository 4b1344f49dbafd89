"""What the steps of a run did, as it is kept in files.

Axes: S steps, G groups of parameters, M members of batches, one row per example and step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from whence.errors import BadInput, StoreCorrupt
from whence.optimizers import SETTINGS
from whence.recording.contents import Content, contents_of
from whence.recording.ranks import rank_folder
from whence.recording.record import read_run
from whence.recording.weights import parameters_of
from whence.store.files import damaged, read_json, read_tensors
from whence.strict_json import fitted

__all__ = ["Steps", "optimizer_settings", "settings_seen"]

# How the tensors of a file of steps are typed.
_TYPES = {
    "members_M": torch.int64,
    "weights_M": torch.float64,
    "ends_S": torch.int64,
    "groups_S": torch.int64,
    "rates": torch.float64,
    "factors_S": torch.float64,
}
# Of an example that was met with its inputs: its number and its `Content`.
_CONTENT_NUMBERS = 5
_RECORD_AGAIN = "restore the folder from a copy, or record again"


@dataclass
class Steps:
    """All steps so far.

    Args:
        ids: Number of every example met, by id, in the order in which they were met.
        members: Examples of each step, as numbers.
        weights: What each of their losses was multiplied with in the loss that the step lowered.
        rates: Learning rate of every group of parameters, each step.
        factors: What the gradients of each step were multiplied with by clipping.
        settings: From which step on the optimizer's other settings were these.
        contents: By id, the step in which an example was first met with its inputs, and what it was.
    """

    ids: dict[str, int] = field(default_factory=dict)
    members: list[list[int]] = field(default_factory=list)
    weights: list[list[float]] = field(default_factory=list)
    rates: list[list[float]] = field(default_factory=list)
    factors: list[float] = field(default_factory=list)
    settings: list[dict[str, Any]] = field(default_factory=list)
    contents: dict[str, tuple[int, Content]] = field(default_factory=dict)

    @property
    def stop(self) -> int:
        """How many there are."""
        return len(self.members)

    def add(
        self,
        batches: Sequence[tuple[Sequence[str], float | None]],
        rates: Sequence[float],
        factor: float,
        settings: Mapping[str, Any] | None,
        *,
        processes: int = 1,
    ) -> None:
        """Add a step.

        Args:
            batches: Ids of each micro-batch and what the sum of its losses was divided by, None for the examples of the whole step.
            rates: Learning rate of each group.
            factor: By clipping.
            settings: The optimizer's others; None if they are those of the step before.
            processes: How many computed a part of the step; the mean of their gradients is what was stepped.
        """
        total = sum(len(ids) for ids, _ in batches)
        if settings is not None and (not self.settings or {**self.settings[-1], "start": 0} != {**settings, "start": 0}):
            self.settings.append({"start": self.stop, **settings})
        numbers, weights = self.ids, []
        self.members.append([numbers.setdefault(name, len(numbers)) for ids, _ in batches for name in ids])
        for ids, divisor in batches:
            weights += [1.0 / (divisor or total) / processes] * len(ids)
        self.weights.append(weights)
        self.rates.append(list(rates))
        self.factors.append(factor)

    def see(self, ids: Sequence[str], inputs: Mapping[str, Any]) -> None:
        """Keep what the examples of the coming step are, those that were not seen before.

        Args:
            ids: Of a micro-batch.
            inputs: What the model gets, see `contents_of`.

        Raises:
            BadInput: If they are not by keyword.
        """
        if not isinstance(inputs, Mapping):
            raise BadInput(
                found=f"inputs of type {type(inputs).__name__}",
                needed="what the model gets by keyword",
                do="pass such as inputs={'input_ids': tokens, 'labels': labels}",
            )
        rows = [row for row, name in enumerate(ids) if name not in self.contents]
        if rows:
            for row, content in zip(rows, contents_of(inputs, len(ids), rows), strict=False):
                self.contents.setdefault(ids[row], (self.stop, content))

    def tensors(self, start: int) -> dict[str, Tensor]:
        """The steps from one on, as they lie in a file."""
        lengths = torch.tensor([len(members) for members in self.members[start:]])
        seen = [
            (self.ids[name], *content.numbers())
            for name, (step, content) in self.contents.items()
            if step >= start and name in self.ids
        ]
        contents = {"contents": torch.tensor(seen).flatten()} if seen else {}
        return contents | {
            "members_M": torch.tensor([number for members in self.members[start:] for number in members]),
            "weights_M": torch.tensor([number for weights in self.weights[start:] for number in weights], dtype=torch.float64),
            "ends_S": lengths.cumsum(0),
            "groups_S": torch.tensor([len(rates) for rates in self.rates[start:]]),
            "rates": torch.tensor([number for rates in self.rates[start:] for number in rates], dtype=torch.float64),
            "factors_S": torch.tensor(self.factors[start:], dtype=torch.float64),
        }

    def cut(self, stop: int) -> None:
        """Forget the steps from one on."""
        for values in (self.members, self.weights, self.rates, self.factors):
            del values[stop:]
        self.settings = [entry for entry in self.settings if entry["start"] < stop]
        self.contents = {name: entry for name, entry in self.contents.items() if entry[0] < stop}

    @classmethod
    def read(cls, folder: Path, record: Mapping[str, Any]) -> "Steps":
        """All steps of a run; where several processes computed a step, its examples are those of all.

        Raises:
            StoreCorrupt: If the steps of a process are missing or not what was written.
        """
        steps = cls.read_own(folder, record)
        for rank in range(1, record.get("ranks", 1)):
            rank_path = folder / rank_folder(rank)
            other = cls.read_own(rank_path, read_run(rank_path, _RECORD_AGAIN))
            if other.stop != steps.stop:
                raise StoreCorrupt(
                    found=f"{other.stop:,} steps in {rank_path} of a run of {steps.stop:,}", needed="as many", do=_RECORD_AGAIN
                )
            numbers = [steps.ids.setdefault(name, len(steps.ids)) for name in other.ids]
            steps.contents |= {name: entry for name, entry in other.contents.items() if name not in steps.contents}
            for step in range(steps.stop):
                steps.members[step] += [numbers[member] for member in other.members[step]]
                steps.weights[step] += other.weights[step]
        return steps

    @classmethod
    def read_own(cls, folder: Path, record: Mapping[str, Any]) -> "Steps":
        """The steps of one process.

        Raises:
            StoreCorrupt: If they are missing or not what was written.
        """
        steps = cls(settings=list(record["settings"]))
        path = folder / "ids.json"
        try:
            if record["logs"]:
                steps.ids = _numbered(fitted(tuple[str, ...], read_json(path), "ids"))
            for log in record["logs"]:
                path = folder / log["file"]
                steps._add(read_tensors(path, sha256=log["sha256"]), log["stop"] - log["start"])
        except StoreCorrupt as error:
            raise StoreCorrupt(found=error.found, needed=error.needed, do=_RECORD_AGAIN) from error
        except (KeyError, TypeError, ValueError) as error:
            raise StoreCorrupt(**{**damaged(path, str(error)), "do": _RECORD_AGAIN}) from error
        return steps

    def _add(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Take up steps from their file.

        Raises:
            KeyError: If a tensor is not there.
            ValueError: If they are not what `tensors` gives for so many steps.
        """
        for name, dtype in _TYPES.items():
            if tensors[name].dtype != dtype or tensors[name].ndim != 1:
                raise ValueError(f"{name} is no list of {dtype}")
        ends, groups, members = tensors["ends_S"], tensors["groups_S"], tensors["members_M"]
        lengths = ends.diff(prepend=torch.zeros(1, dtype=torch.int64))
        sizes = [len(ends), len(groups), len(tensors["factors_S"])]
        if sizes != [steps] * 3 or bool((lengths < 0).any()) or bool((groups < 0).any()):
            raise ValueError(f"it is not of {steps:,} steps")
        if not len(members) == len(tensors["weights_M"]) == int(lengths.sum()) or len(tensors["rates"]) != int(groups.sum()):
            raise ValueError("its lists are of different lengths")
        if len(members) and not 0 <= int(members.min()) <= int(members.max()) < len(self.ids):
            raise ValueError("examples that have no id")
        if not all(bool(torch.isfinite(tensors[name]).all()) for name in ("weights_M", "rates", "factors_S")):
            raise ValueError("weights or learning rates that are not finite")
        self._add_contents(tensors.get("contents", torch.zeros(0, dtype=torch.int64)))
        self.members += [part.tolist() for part in members.split(lengths.tolist())]
        self.weights += [part.tolist() for part in tensors["weights_M"].split(lengths.tolist())]
        self.rates += [part.tolist() for part in tensors["rates"].split(groups.tolist())]
        self.factors += tensors["factors_S"].tolist()

    def _add_contents(self, contents: Tensor) -> None:
        """Take up what examples were.

        Raises:
            ValueError: If it is not what `tensors` gives.
        """
        if contents.dtype != torch.int64 or contents.ndim != 1 or len(contents) % _CONTENT_NUMBERS:
            raise ValueError("contents is no list of five numbers for each example")
        names = list(self.ids)
        for number, *content in contents.view(-1, _CONTENT_NUMBERS).tolist():
            if not 0 <= number < len(names):
                raise ValueError("contents of an example that has no id")
            self.contents.setdefault(names[number], (self.stop, Content(*content)))


def _numbered(names: Sequence[str]) -> dict[str, int]:
    """Numbers by name.

    Raises:
        ValueError: If a name is there twice.
    """
    number_of = {name: number for number, name in enumerate(names)}
    if len(number_of) < len(names):
        raise ValueError("it has an id twice")
    return number_of


def optimizer_settings(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Any]:
    """What optimizers do besides their learning rate, as JSON.

    Args:
        model: Gives the parameters their names.
        optimizers: All that a step is made by.

    Returns:
        Their kind, where that is from, and, per group, its settings and the names of its parameters; of several optimizers every group says
        whose it is.
    """
    name_of = {id(parameter): name for name, parameter in parameters_of(model).items()}
    groups = []
    for optimizer in optimizers:
        own = {"optimizer": type(optimizer).__name__, "module": type(optimizer).__module__} if len(optimizers) > 1 else {}
        for group in optimizer.param_groups:
            settings = {key: _plain(group[key]) for key in SETTINGS if key in group}
            groups.append(settings | own | {"parameters": [name_of[id(parameter)] for parameter in group["params"]]})
    kinds = [type(optimizer) for optimizer in optimizers]
    joined = (" + ".join(dict.fromkeys(getattr(kind, name) for kind in kinds)) for name in ("__name__", "__module__"))
    return {**dict(zip(("optimizer", "module"), joined, strict=True)), "groups": groups}


def settings_seen(optimizers: Sequence[torch.optim.Optimizer]) -> list[tuple[Any, ...]]:
    """The same without names: cheap enough to be looked at every step, to see whether anything has changed."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    return [(*(group.get(key) for key in SETTINGS), *map(id, group["params"])) for group in groups]


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.item()
    return [*map(_plain, value)] if isinstance(value, tuple) else value
