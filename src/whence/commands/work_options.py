"""Options that several verbs share: how model and data are read, memory, damping of a store, who scans, how an answer is shown."""

import os
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from whence.commands.recorded import Trust
from whence.commands.shared import Json, Placed
from whence.commands.task_options import Reading, TaskOptions
from whence.errors import BadInput
from whence.settings import Damping, OnRay, Placement, Runtime, check_batch, check_memory

__all__ = [
    "ActorOptions",
    "BatchOptions",
    "Damped",
    "DampingOptions",
    "DeviceOptions",
    "InBatches",
    "MachineOptions",
    "Machines",
    "OnDevice",
    "Recorded",
    "RecordedOptions",
    "ScanOptions",
    "Scanned",
    "Shown",
    "ShownOptions",
    "Work",
    "WorkOptions",
    "flags_given",
    "refuse_given",
]


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """Where the model runs.

    Args:
        device: Such as cuda, cuda:1, mps or cpu, which is the default.
    """

    device: str | None = None

    @property
    def placement(self) -> Placement:
        """As a model is loaded."""
        return Placement(device=self.device)


OnDevice = Annotated[DeviceOptions, Parameter(name="*")]


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """How much of the data goes through the model at a time.

    Args:
        batch_size: Examples per batch: as many positions as so many of the longest have, of shorter ones more; what fits if left out.
        batch_positions: Positions (tokens) per batch instead.
    """

    batch_size: int | None = None
    batch_positions: int | None = None

    def __post_init__(self):
        check_batch(self.batch_size, self.batch_positions)


InBatches = Annotated[BatchOptions, Parameter(name="*")]


@dataclass(frozen=True, kw_only=True)
class WorkOptions:
    """How model and data are read, where the model runs, and what memory may be taken.

    Args:
        reading: The options of the task.
        machine: Where the model runs.
        batches: How much of the data goes through the model at a time.
        memory_gib: Memory to take besides the model, for each process; most of what is free if left out. What does not fit is done in parts.
    """

    reading: Reading = TaskOptions()
    machine: OnDevice = DeviceOptions()
    batches: InBatches = BatchOptions()
    memory_gib: float | None = None

    def __post_init__(self):
        check_memory(self.memory_gib)

    def load(self, model: str) -> Any:
        """The task of a model, where it is to run."""
        return self.reading.load(model, self.machine.placement)[0]

    def runtime(self, ranks: Any = None) -> Runtime:
        """How the job runs.

        Args:
            ranks: Processes that do it together; None for this one.
        """
        together = {} if ranks is None else {"ranks": ranks}
        return Runtime(memory_gib=self.memory_gib, **asdict(self.batches), **together)


@dataclass(frozen=True, kw_only=True)
class DampingOptions:
    """Damping of a store's curvature, chosen when it is asked; the method's own share of the mean eigenvalue if nothing is said.

    Args:
        relative_damping: Damping as a share of each layer's mean curvature.
        absolute_damping: Damping in units of the loss's curvature.
        damping_rule: A published rule instead of a number: .1 x the mean eigenvalue over all directions (mean), .5 x (lorif), .1 x the mean
            of the directions kept (lorif-paper), lorif with the mean of the other directions as their eigenvalue (lorif-tail), or what the
            training recipe implies (recipe).
    """

    relative_damping: float | None = None
    absolute_damping: float | None = None
    damping_rule: Literal["mean", "lorif", "lorif-paper", "lorif-tail", "recipe"] | None = None

    def damping(self) -> Damping:
        """As the package takes it.

        Raises:
            BadInput: If more than one is given.
        """
        return Damping(relative=self.relative_damping, absolute=self.absolute_damping, rule=self.damping_rule)


@dataclass(frozen=True, kw_only=True)
class ScanOptions:
    """Who scans a store, and how many queries go through the model at a time.

    Args:
        batches: How many queries go through the model at a time.
        workers: Have so many processes scan the store, each a part of it, besides this one, which asks the model. One that is lost is
            replaced and its part is scanned again.
        ray: With --workers, have actors of a Ray cluster do that: its address, "auto" for the one that this machine is part of, or "local"
            for one on this machine only.
    """

    batches: InBatches = BatchOptions()
    workers: int | None = None
    ray: str | None = None


@dataclass(frozen=True, kw_only=True)
class ActorOptions:
    """Actors that do a job together, in place of this process.

    Args:
        ray: Have actors of a Ray cluster do it together: its address, "auto" for the one that this machine is part of, or "local" for one on
            this machine only. All of its machines have to see the paths that are named here.
        workers: With --ray, how many actors; as many as the cluster has processors for if left out, or GPUs with --device cuda.
        worker_cpus: With --ray, processors of each, and its threads; 1 if left out.
        worker_gpus: With --ray, GPUs of each; 1 with --device cuda, 0 without, if left out.
    """

    ray: str | None = None
    workers: int | None = None
    worker_cpus: int | None = None
    worker_gpus: float | None = None

    def on_ray(self) -> OnRay | None:
        """The actors; None for this process.

        Raises:
            BadInput: If it is not said where they are, or every process of torchrun would start some.
        """
        if self.ray is None:
            refuse_given(
                self, where="without --ray", needed="a Ray cluster for them; processes of this machine are started by torchrun",
                do="add --ray with its address, auto or local, or leave it out",
            )  # fmt: skip
            return None
        if "RANK" in os.environ or "WORLD_SIZE" in os.environ:
            raise BadInput(
                found="--ray in a process of torchrun",
                needed="one of the two",
                do="leave --ray out, or start it without torchrun",
            )
        given = {} if self.worker_cpus is None else {"cpus": self.worker_cpus}
        return OnRay(address=self.ray, actors=self.workers, gpus=self.worker_gpus, **given)


@dataclass(frozen=True, kw_only=True)
class MachineOptions:
    """Where a job runs.

    Args:
        placement: How a model is loaded that is larger than a device.
        actors: Who does it together.
    """

    placement: Placed = Placement()
    actors: Annotated[ActorOptions, Parameter(name="*")] = ActorOptions()

    def check(self) -> OnRay | None:
        """The actors, None for this process, with which the model can be loaded.

        Raises:
            BadInput: If it cannot.
        """
        on = self.actors.on_ray()
        if on is not None and (self.placement.shard_model or self.placement.device_map is not None):
            name = "--shard-model" if self.placement.shard_model else "--device-map"
            raise BadInput(
                found=f"{name} with --ray",
                needed="a model that each actor has whole",
                do="start it with torchrun" if self.placement.shard_model else "leave one of them out",
            )
        return on


@dataclass(frozen=True, kw_only=True)
class RecordedOptions:
    """What is loaded of the model and data that a store records.

    Args:
        model: Load the model from here instead of from where it was at the build.
        trust: Also load a recorded model or data that is Python code, a relative path or a name on the hub: code that the store names is run.
    """

    model: str | None = None
    trust: Trust = False


@dataclass(frozen=True, kw_only=True)
class ShownOptions:
    """How an answer is shown.

    Args:
        html: Also write a page with the answer.
        as_json: Print JSON instead of tables.
    """

    html: Path | None = None
    as_json: Json = False


Work = Annotated[WorkOptions, Parameter(name="*")]
Machines = Annotated[MachineOptions, Parameter(name="*")]
Damped = Annotated[DampingOptions, Parameter(name="*")]
Scanned = Annotated[ScanOptions, Parameter(name="*")]
Recorded = Annotated[RecordedOptions, Parameter(name="*")]
Shown = Annotated[ShownOptions, Parameter(name="*")]


def flags_given(*options: Any) -> dict[str, Any]:
    """What was said on the command line: by flag, in the order of the records, every value that is not the default.

    >>> flags_given(WorkOptions(reading=TaskOptions(max_length=8), memory_gib=2.0))
    {'--max-length': 8, '--memory-gib': 2.0}
    """
    given: dict[str, Any] = {}
    for record in options:
        for field in fields(record):
            value = getattr(record, field.name)
            if is_dataclass(value):
                given |= flags_given(value)
            elif field.default is not MISSING and value != field.default:
                given[f"--{field.name.replace('_', '-')}"] = value
    return given


def refuse_given(*options: Any, where: str, needed: str, do: str = "leave it out") -> None:
    """Refuse options that have no use.

    Args:
        *options: Records of options, of which all have to be as they are if nothing is said.
        where: After the first flag that is given, what it stands beside, such as "with --url".
        needed: What is needed instead.
        do: What to do.

    Raises:
        BadInput: If one is given.
    """
    for flag in flags_given(*options):
        raise BadInput(found=f"{flag} {where}", needed=needed, do=do)
