"""The verb that fits curvature ahead of its use."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from whence.commands.early import check_count
from whence.commands.shared import Placed, shown_stages
from whence.commands.task_options import Reading, TaskOptions
from whence.commands.work_options import BatchOptions, InBatches
from whence.plans import FIT_STAGES
from whence.settings import FitConfig, Placement, Runtime
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
    placement: Placed = Placement(),
) -> None:
    """Fit EK-FAC curvature and keep it, for --factors of attribute and of build.

    Started by torchrun, the processes share the data and add up their sums. A fit that stopped goes on after its last whole stage.

    Args:
        model: As in build.
        data: As in build.
        output: Folder of the fit; all processes have to see it.
        fit: What the fit depends on.
        batches: How much of the data goes through the model at a time.
        reading: The options of the task.
        placement: How a model is loaded that is larger than a device.
    """
    FitConfig(samples=fit.samples, seed=fit.seed, largest_side=fit.largest_side)  # refuses what it cannot be
    with shown_stages(FIT_STAGES, model):
        from whence.distributed import Ranks
        from whence.load import load_records
        from whence.load.placement import connected_for
        from whence.pipeline import fit_curvature

        ranks = Ranks.launched()
        records = load_records(data, split=reading.split)
        check_count("--fit-on", fit.fit_on, records, reading)
        with connected_for(placement, ranks):
            loaded, _ = reading.load(model, placement, ranks)
            fitted = fit_curvature(
                loaded, records, output,
                fit_on=fit.fit_on, fit=fit.config(), runtime=Runtime(ranks=ranks, **asdict(batches)),
            )  # fmt: skip
    if ranks.rank == 0:
        tell_json({"factors": str(output), "units": len(fitted.blocks), "fitted": fitted.note})
