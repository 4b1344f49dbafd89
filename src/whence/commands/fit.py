"""The verb that fits curvature ahead of its use."""

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from whence.commands.early import check_count
from whence.commands.shared import shown_stages
from whence.commands.task_options import Reading, TaskOptions
from whence.commands.work_options import BatchOptions, InBatches, MachineOptions, Machines
from whence.plans import FIT_STAGES
from whence.settings import FitConfig, OnRay, Placement, Runtime
from whence.terminal import tell_json

__all__ = ["curvature"]


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """What the fit depends on.

    Args:
        fit_on: Fit on so many examples instead of all, spread evenly; a build of method aligned looks for 8192, or for
            all if there are fewer.
        samples: Draws of labels where they are drawn; 1 if left out.
        seed: Of the draws.
        largest_side: A longer side of a weight gets its leading eigenvectors only; by memory and time if left out.
    """

    fit_on: int | None = None
    samples: int | None = FitConfig.samples
    seed: int = FitConfig.seed
    largest_side: int | None = FitConfig.largest_side

    def config(self) -> FitConfig:
        """What the factors depend on besides the data."""
        return FitConfig(**{name: value for name, value in vars(self).items() if name != "fit_on"})


def curvature(
    model: str,
    data: str,
    *,
    output: Annotated[Path, Parameter(alias="-o")],
    fit: Annotated[FitOptions, Parameter(name="*")] = FitOptions(),
    batches: InBatches = BatchOptions(),
    reading: Reading = TaskOptions(),
    machines: Machines = MachineOptions(),
) -> None:
    """Fit EK-FAC curvature and keep it, for --factors of attribute and of build.

    Started by torchrun, the processes share the data and add up their sums; with --ray actors of a Ray cluster do. A fit that stopped goes on
    after its last whole stage.

    Args:
        model: As in build.
        data: As in build.
        output: Folder of the fit; all processes have to see it.
        fit: What the fit depends on.
        batches: How much of the data goes through the model at a time.
        reading: The options of the task.
        machines: Where it runs.
    """
    FitConfig(samples=fit.samples, seed=fit.seed, largest_side=fit.largest_side)  # refuses what it cannot be
    on = machines.check()
    with shown_stages(FIT_STAGES, model):
        job = _Fit(model, data, output, fit, batches, reading, machines.placement)
        summary = job.by_ranks() if on is None else job.by_actors(on)
    if summary is not None:
        tell_json(summary)


@dataclass(frozen=True)
class _Fit:
    """A fit as it was asked for, by names that any process can read; fields as the arguments of the verb."""

    model: str
    data: str
    output: Path
    fit: FitOptions
    batches: BatchOptions
    reading: TaskOptions
    placement: Placement

    def by_ranks(self) -> dict[str, Any] | None:
        """What there is to say of the fit; None on all processes but the first."""
        from whence.distributed import Ranks

        ranks = Ranks.launched()
        summary = self.by_rank(ranks)
        return summary if ranks.rank == 0 else None

    def by_actors(self, on: OnRay) -> dict[str, Any]:
        """What there is to say of the fit.

        Args:
            on: Which actors make it.
        """
        from whence.curvature import finished_stages
        from whence.workers import SharedJob, run_on_ray

        folder = self.output.absolute()
        job = SharedJob(
            run=self.by_rank, folder=folder, talks=True, parts_done=partial(finished_stages, folder), home=Path.cwd(),
            device=self.placement.device,
        )  # fmt: skip
        return run_on_ray(job, on)

    def by_rank(self, ranks: Any) -> dict[str, Any]:
        """What there is to say of the fit.

        Args:
            ranks: This process among those that fit together.
        """
        from whence.load import load_records
        from whence.load.placement import connected_for
        from whence.pipeline import fit_curvature

        records = load_records(self.data, split=self.reading.split)
        check_count("--fit-on", self.fit.fit_on, records, self.reading)
        with connected_for(self.placement, ranks):
            task, _ = self.reading.load(self.model, self.placement, ranks)
            fitted = fit_curvature(
                task, records, self.output,
                fit_on=self.fit.fit_on, fit=self.fit.config(), runtime=Runtime(ranks=ranks, **asdict(self.batches)),
            )  # fmt: skip
        return {"factors": str(self.output), "units": len(fitted.blocks), "fitted": fitted.note}
