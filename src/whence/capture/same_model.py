"""Whether a model is the one that something was made with, beyond its weights: what its modules say, and what it computes on two examples.

A probe catches what no description does: `F.gelu` for `F.relu` in a forward written in Python.

Axes: E examples, U units, K contractions of a unit's gradient, O outputs, I inputs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from whence.capture.hooks import Objective, capture
from whence.capture.taps import Consume
from whence.capture.units import Plan
from whence.data import Example
from whence.errors import StoreCorrupt, StoreMismatch
from whence.records import Pair
from whence.tasks import AbstractTask, Batch, Structure, differences, structure_of

__all__ = ["ModelRecord", "Probe", "check_model", "probe_examples", "probed"]

# Contractions u^T G v of a unit's gradient G, and units that are looked at, spread evenly.
_CONTRACTIONS, _MOST_UNITS = 4, 64
# What rounding may change of a loss, and of a unit's gradient as a share of its size: in the same place, and elsewhere (another device or
# version of torch). A unit of ReLU that sits at zero may fall to the other side.
_TOLERANCES = {"float64": ((1e-7, 1e-5), (1e-6, 1e-4)), "float32": ((1e-4, 5e-3), (5e-3, 5e-2))}
_HALF_TOLERANCES = ((3e-2, 0.3), (3e-2, 0.3))
# Differences that a message lists.
_MOST_NAMED = 3
# Below this a loss is compared by its distance, and a gradient's size counts as this share of the largest unit's.
_SMALL_LOSS, _SMALL_GRADIENT = 1e-2, 1e-3


@dataclass(frozen=True)
class Probe:
    """What a model gave for some examples, one at a time.

    Args:
        examples: Their ids.
        values: The objective of each.
        gradients: Per example and unit, contractions of the gradient with fixed vectors.
        units: Names of these units.
        dtype: Type of the arithmetic.
        place: Kind of device and version of torch, which rounding depends on.
    """

    examples: tuple[str, ...]
    values: tuple[float, ...]
    gradients: tuple[tuple[tuple[float, ...], ...], ...]
    units: tuple[str, ...]
    dtype: str
    place: str

    @property
    def is_finite(self) -> bool:
        """Whether it can be compared, and written as JSON."""
        return all(map(math.isfinite, [*self.values, *(x for example in self.gradients for unit in example for x in unit)]))

    def differs(self, other: "Probe") -> str:
        """How another model's probe of the same examples differs by more than rounding, in words; empty if it does not.

        Args:
            other: The probe at hand, of the model that is held against the recorded one.
        """
        exact = "float64" if self.dtype == other.dtype == "float64" else "float32"
        pair = _TOLERANCES[exact] if {self.dtype, other.dtype} <= {"float64", "float32"} else _HALF_TOLERANCES
        of_value, of_gradient = pair[self.place != other.place or self.dtype != other.dtype]
        for name, old, new in zip(self.examples, self.values, other.values, strict=True):
            if not abs(old - new) <= of_value * max(abs(old), _SMALL_LOSS):
                return f"gives the example {name!r} {new:.6g} where {old:.6g} is recorded"
        if self.units != other.units:
            return ""  # other parameters are tracked, which is told elsewhere
        old_EUK, new_EUK = (torch.tensor(probe.gradients, dtype=torch.float64) for probe in (self, other))
        size_EU = old_EUK.norm(dim=2)
        most_E1 = size_EU.amax(1, keepdim=True)
        size_EU = most_E1.expand_as(size_EU) if of_gradient > 0.1 else size_EU.maximum(_SMALL_GRADIENT * most_E1)
        wrong_EU = ~((old_EUK - new_EUK).norm(dim=2) <= of_gradient * size_EU)
        if bool(wrong_EU.any()):
            example, unit = wrong_EU.nonzero()[0].tolist()
            return f"gives the example {self.examples[example]!r} another gradient of {self.units[unit]!r} than is recorded"
        return ""

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Probe":
        """What `asdict` wrote, after a detour through JSON.

        Raises:
            ValueError: If its parts do not fit each other.
        """
        examples, values, units = (tuple(content[name]) for name in ("examples", "values", "units"))
        gradients = tuple(tuple(tuple(map(float, unit)) for unit in example) for example in content["gradients"])
        shape = (len(examples), len(units), _CONTRACTIONS)
        if len(values) != len(examples) or tuple(torch.tensor(gradients).shape) != shape:
            raise ValueError(f"a probe of other sizes than {shape}")
        return cls(examples, tuple(map(float, values)), gradients, units, str(content["dtype"]), str(content["place"]))


def probe_examples(examples: Sequence[Example]) -> list[int]:
    """Places of the examples that a model is probed with: the first and one in the middle."""
    return sorted({0, len(examples) // 2})


@dataclass(frozen=True)
class ModelRecord:
    """What a model computes, as it is kept beside what was made with it; `to_json` and back.

    Args:
        structure: What its modules say.
        probe: What it gave for two examples; None where none could be run.
    """

    structure: Structure
    probe: Probe | None

    @classmethod
    def of(cls, task: AbstractTask, plan: Plan | None = None, examples: Sequence[Example] = ()) -> "ModelRecord":
        """The record of a model, for those who have the same examples when it is held against another.

        Args:
            task: The model and its loss.
            plan: Its units; None makes no probe.
            examples: Of which two are run.
        """
        probe = None
        if plan is not None:
            chosen = [examples[index] for index in probe_examples(examples)]
            probe = probed(task, plan, [task.collate([example]) for example in chosen], [example.id for example in chosen])
        return cls(structure_of(task.model), probe if probe is not None and probe.is_finite else None)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"structure": asdict(self.structure), "probe": None if self.probe is None else asdict(self.probe)}

    @classmethod
    def from_json(cls, content: Any) -> "ModelRecord":
        """What `to_json` made.

        Raises:
            StoreCorrupt: If it is something else.
        """
        try:
            probe = content["probe"]
            return cls(Structure.from_json(content["structure"]), None if probe is None else Probe.from_json(probe))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StoreCorrupt(
                found=f"an unreadable record of what a model computes ({error})",
                needed="the record as it was written",
                do="restore the folder from a copy, or make it again",
            ) from error


def check_model(there: ModelRecord, here: ModelRecord, what: str) -> list[str]:
    """Refuse a model with the recorded weights that computes something else.

    Args:
        there: As recorded.
        here: The model at hand.
        what: What was made with the recorded model, for the message, such as "a store".

    Returns:
        What a reader should know of what could not be told.

    Raises:
        StoreMismatch: If it does, saying what differs.
    """
    changes = differences(there.structure, here.structure)
    probe_difference, is_probed = "", False
    if there.probe is not None and here.probe is not None and there.probe.examples == here.probe.examples:
        probe_difference, is_probed = there.probe.differs(here.probe), True
    if probe_difference or any(difference.is_certain for difference in changes):
        why = [difference.what for difference in changes if difference.is_certain or probe_difference]
        more = f" and {len(why) - _MOST_NAMED} more" if len(why) > _MOST_NAMED else ""
        raise StoreMismatch(
            found=f"{what} of a model with these weights that computes something else: "
            + "; ".join([*why[:_MOST_NAMED], *([f"this one {probe_difference}"] if probe_difference else [])])
            + more,
            needed="the model that it was made with, or the scores would mix two models",
            do="load it with the configuration and the code that it had then, or make this again with the model as it is now",
        )
    if changes and not is_probed:
        return [
            f"what the model computes may not be what it did for {what}: {changes[0].what}; no example could be run to tell"
        ]
    return []


def probed(
    task: AbstractTask,
    plan: Plan,
    batches: Sequence[Batch],
    names: Sequence[str],
    *,
    objective: Objective = "loss",
    autocast: torch.dtype | None = None,
    also: Sequence[Consume] = (),
) -> Probe:
    """Run examples one at a time.

    Args:
        task: The model.
        plan: Its units.
        batches: Of one example each, as `task.collate` makes them.
        names: Ids of the examples.
        objective: What is differentiated.
        autocast: As in `capture`.
        also: Per example what takes the gradient pairs of the same pass, too; empty for nothing.

    Returns:
        The probe.
    """
    consumers = also or [None] * len(batches)
    runs = [_run(task, plan, batch, objective, autocast, consume) for batch, consume in zip(batches, consumers, strict=True)]
    units = _spread(plan)
    return Probe(
        tuple(names),
        tuple(value for value, _ in runs),
        tuple(tuple(tuple(unit_K) for unit_K in gradients_UK.tolist()) for _, gradients_UK in runs),
        tuple(plan.units[index].name for index in units),
        str(autocast or next(task.model.parameters()).dtype).removeprefix("torch."),
        f"{task.device.type}, torch {'.'.join(torch.__version__.split('.')[:2])}",
    )


def _run(
    task: AbstractTask, plan: Plan, batch: Batch, objective: Objective, autocast: torch.dtype | None, also: Consume | None
) -> tuple[float, Tensor]:
    """One example's objective, and contractions of its gradient, shape (U, K), float64."""
    number_of = {index: number for number, index in enumerate(_spread(plan))}
    found_UK = torch.zeros(len(number_of), _CONTRACTIONS, dtype=torch.float64)

    def consume(index: int, pair: Pair) -> None:
        if also is not None:
            also(index, pair)
        if index in number_of:
            pair, unit = pair.wide(), plan.units[index]
            left_BTK = pair.outputs.times(_vectors(unit.outputs).to(task.device)).double()
            right_BTK = pair.inputs.times(_vectors(unit.inputs).to(task.device)).double()
            found_UK[number_of[index]] += (left_BTK * right_BTK).sum((0, 1)).cpu()

    values = capture(task, plan, batch, consume, num_examples=1, alone=lambda _: batch, objective=objective, autocast=autocast)
    return float(values.sum()), found_UK


def _spread(plan: Plan) -> list[int]:
    count = min(len(plan.units), _MOST_UNITS)
    return [index * len(plan.units) // count for index in range(count)]


def _vectors(size: int) -> Tensor:
    """Fixed vectors, shape (size, K): no generator's stream, which another version of torch may change."""
    steps_N1 = torch.arange(1, size + 1, dtype=torch.float64)[:, None]
    return torch.cos(steps_N1 * (1 + 0.6180339887 * torch.arange(_CONTRACTIONS)) + torch.arange(_CONTRACTIONS)).float()
