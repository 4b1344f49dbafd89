"""K-FAC's factors as a by-product of training."""

from pathlib import Path

import torch
from torch import Tensor

from whence.capture import Plan
from whence.curvature.kfac import FitRun, prepare_fit
from whence.curvature.moments import FactorSums
from whence.curvature.sides import Probes, resolved
from whence.curvature.stages import stages
from whence.data import Dataset
from whence.settings import FitConfig
from whence.tasks import AbstractTask

__all__ = ["LoggedFactors"]


class LoggedFactors:
    """Sums of second moments over the backward passes of a run, with the labels that the data has.

    Args:
        folder: Where a fit finds them.
        plan: The units.
        config: As the fit will have it.
        device: Of the model.
    """

    def __init__(self, folder: Path, plan: Plan, config: FitConfig, device: torch.device):
        self.folder, self.plan = folder, plan
        self.config = resolved(config, plan.units, device=device, positions=0)
        self.probes = Probes(plan.units, self.config)
        self.totals: dict[str, Tensor] = {}
        self.visits = 0

    def sums(self, mask_BT: Tensor | None) -> FactorSums:
        """A fresh consumer for a batch."""
        return FactorSums(self.plan, self.config.sharing, self.probes, mask_BT)

    def add(self, sums: FactorSums, examples: int) -> None:
        """Add a batch."""
        for name, value in sums.sums.items():
            self.totals[name] = value if name not in self.totals else self.totals[name].add_(value)
        self.visits += examples

    def write(self, task: AbstractTask, train: Dataset, max_positions: int) -> None:
        """Write them as the first stage of a fit, as if every example had been met once.

        Args:
            task: The model, with the weights that the fit goes on with.
            train: The data that the fit is of.
            max_positions: Positions per batch.
        """
        fit = prepare_fit(task, self.plan, train, self.config, FitRun(max_positions=max_positions, quiet=True))
        share = len(train) / self.visits
        with stages(self.folder, fit.identity) as run:
            run.run("factors", lambda: {name: value * share for name, value in self.totals.items()})
