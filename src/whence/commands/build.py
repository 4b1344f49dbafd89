"""The verb that makes a store."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from whence.commands.early import check_along
from whence.commands.shared import shown_stages
from whence.commands.task_options import Reading, TaskOptions
from whence.commands.work_options import (
    MachineOptions,
    Machines,
)
from whence.errors import BadInput
from whence.plans import build_stages
from whence.settings import BuildConfig, OnRay, Placement, Runtime
from whence.terminal import tell_json

__all__ = ["Flat", "build"]

Flat = Annotated[BuildConfig, Parameter(name="*")]


@dataclass(frozen=True, kw_only=True)
class KindOptions:
    """Which store it becomes.

    Args:
        append: Add these examples to a store of other data.
        spool: Keep prepared examples in this folder on a local disk instead of in memory; data is then also a folder of .jsonl, .jsonl.gz,
            .parquet, .arrow and .tar (WebDataset) files, or a pattern in quotes such as "data/*.parquet". Delete it when the store is built.
        run: Folder of a recorded training run that ended with the model: build a store at each of some of its checkpoints, of what the
            checkpoint's stage met, in subfolders of the output; they are asked together, and their scores added up by learning rate.
        checkpoints: Of that run, per stage; 3 if left out.
    """

    append: bool = False
    spool: Path | None = None
    run: Path | None = None
    checkpoints: int | None = None

    def check(self, reading: TaskOptions, machines: MachineOptions) -> None:
        """Refuse options that have no use beside each other, before anything is loaded.

        Args:
            reading: The options of the task.
            machines: Where it runs.

        Raises:
            BadInput: If there are such.
        """
        if self.spool is not None and reading.split != "train":
            raise BadInput(
                found="--split with --spool",
                needed="files, which have no splits",
                do="leave it out, or name the files of the split",
            )
        check_along(self.run, self.checkpoints)
        beside = {
            "--append": self.append,
            "--spool": self.spool is not None,
            "--ray": machines.actors.ray is not None,
            "--shard-model": machines.placement.shard_model,
        }
        for flag in [name for name, is_given in beside.items() if is_given and self.run is not None]:
            raise BadInput(
                found=f"{flag} with --run",
                needed="one of them: stores along a run are of that run's data, and each is made by processes that have the whole model",
                do="leave one of them out",
            )


def build(
    model: str,
    data: str,
    *,
    output: Annotated[Path, Parameter(alias="-o")],
    kind: Annotated[KindOptions, Parameter(name="*")] = KindOptions(),
    reading: Reading = TaskOptions(),
    machines: Machines = MachineOptions(),
    config: Flat = BuildConfig(),
) -> None:
    """Compress the gradient of every training example into a store.

    Running it again goes on where it stopped. Started by torchrun, or with RANK and WORLD_SIZE set, the processes share the shards; with
    --ray actors of a Ray cluster do.

    Args:
        model: Hugging Face folder or hub name, or file.py:function that returns a task.
        data: .jsonl, .json, .csv, .tsv, .txt or .npz file, folder of texts or images, dataset folder or hub name, or file.py:function.
        output: Folder of the store, or a URL such as s3://bucket/store.
        kind: Which store it becomes.
        reading: The options of the task.
        machines: Where it runs.
        config: The options of the build.
    """
    kind.check(reading, machines)
    on = machines.check()
    with shown_stages(build_stages(config), model):
        job = _Build(model, data, output, kind, reading, machines.placement, config)
        built = job.by_ranks() if on is None else job.by_actors(on)
    if isinstance(built, list):
        tell_json({"stores": [str(store.folder) for store in built], "rows": [len(store) for store in built]})
    elif built is not None:
        summary = {"store": str(built.folder), "rows": len(built), "bytes_per_row": built.codec.row_bytes()}
        tell_json(summary | {"disk_bytes": built.disk_bytes().to_dict()})


@dataclass(frozen=True)
class _Build:
    """A build as it was asked for, by names that any process can read; fields as the arguments of the verb."""

    model: str
    data: str
    output: Path
    kind: KindOptions
    reading: TaskOptions
    placement: Placement
    config: BuildConfig

    def by_ranks(self) -> Any:
        """The finished store, of a run a list of them; None on all processes but the first."""
        from whence.distributed import Ranks

        ranks = Ranks.launched()
        store = self.by_rank(ranks)
        return store if ranks.rank == 0 else None

    def by_actors(self, on: OnRay) -> Any:
        """The finished store.

        Args:
            on: Which actors build it.
        """
        from whence.pipeline.on_ray import build_parts
        from whence.store import located, open_store
        from whence.workers import SharedJob, run_on_ray

        folder = located(self.output)
        run_on_ray(
            SharedJob(
                run=self.of_actor, folder=folder, talks=False, parts_done=partial(build_parts, folder), home=Path.cwd(),
                device=self.placement.device,
            ),
            on,
        )  # fmt: skip
        return open_store(folder, check=False)

    def of_actor(self, ranks: Any) -> None:
        """As `by_rank`, of a process to which the store need not be sent."""
        self.by_rank(ranks)

    def by_rank(self, ranks: Any) -> Any:
        """The finished store, of a run a list of them.

        Args:
            ranks: This process among those that build together.
        """
        from whence.functions import absolute, is_function
        from whence.load import load_records
        from whence.load.placement import connected_for
        from whence.load.tar_shards import Shards, stream_records
        from whence.pipeline import build as run
        from whence.pipeline import build_along
        from whence.pipeline import spool as run_spool

        # Data first: a wrong path should not wait for a large model.
        data = self.data
        records = load_records(data, split=self.reading.split) if self.kind.spool is None else stream_records(data)
        source = str(Path(data).resolve()) if Path(data).exists() else absolute(data) if is_function(data) else data
        with connected_for(self.placement, ranks):
            task, origin = self.reading.load(self.model, self.placement, ranks)
            origin |= {"data": source, "split": self.reading.split}
            if isinstance(records, Shards):
                records = run_spool(task, records, str(self.kind.spool), source=records.identity, quiet=ranks.rank > 0)
            if self.kind.run is not None:
                return build_along(
                    task, records, self.output, run=self.kind.run, checkpoints=self.kind.checkpoints or 3,
                    origin=origin, config=self.config, runtime=Runtime(ranks=ranks),
                )  # fmt: skip
            return run(
                task, records, self.output,
                append=self.kind.append, origin=origin, config=self.config, runtime=Runtime(ranks=ranks),
            )  # fmt: skip
