"""EK-FAC: K-FAC's bases with the eigenvalues that the gradients really have there.

George et al. 2018; Grosse et al. 2023, section 2.4. Axes: N examples, B of a batch, O outputs, I inputs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from whence.capture import Plan, capture, in_halves
from whence.curvature.eigenbasis import KroneckerBlock, KroneckerCurvature
from whence.curvature.groups import in_groups, of_units
from whence.curvature.kfac import Fit, FitRun, blamed, fit_bases, prepare_fit, refuse_sum
from whence.curvature.labels import numbered, objectives
from whence.curvature.sides import even_rest
from whence.curvature.squares import SquaredGradients, held_examples, shared_units
from whence.curvature.stages import stages
from whence.data import Dataset, Example
from whence.progress import Meter
from whence.settings import FitConfig
from whence.tasks import AbstractTask, Batch

__all__ = ["fit_ekfac", "fit_values"]


def fit_ekfac(
    task: AbstractTask,
    plan: Plan,
    dataset: Dataset,
    config: FitConfig | None = None,
    run: FitRun = FitRun(),
    **options: Any,
) -> KroneckerCurvature:
    """Fit EK-FAC in two passes over the data.

    The first is that of K-FAC. The second takes, for labels of its own, the mean square of every per-example gradient in the bases: the exact
    diagonal there, for any orthonormal bases, positions and uses of a weight included. With labels taken exactly these eigenvalues add up
    to the trace of the Gauss-Newton matrix.

    Args:
        task: Model and likelihood.
        plan: Its units.
        dataset: What the curvature is averaged over.
        config: Labels, seed and sizes.
        run: As in `fit_kfac`.
        **options: The fields of `FitRun` by name.

    Returns:
        The curvature, not damped; `uncorrected()` gives K-FAC's.
    """
    run = replace(run, **options)
    with run.ranks.connected():
        fit = prepare_fit(task, plan, dataset, config, run)
        with stages(run.folder, fit.identity, run.ranks) as fit_stages:
            bases = fit_bases(fit, fit_stages)

            def make(ending: str, units: range) -> dict[str, Tensor]:
                with fit.meter(f"eigenvalues{ending}") as progress:
                    return fit_values(fit, bases, progress, units)

            return fit.finish(
                bases, in_groups(fit_stages, "values", fit.costs("values"), fit.room_bytes, make), fit_stages.notes
            )


def fit_values(fit: Fit, bases: dict[str, Tensor], progress: Meter, units: range) -> dict[str, Tensor]:
    """Mean squares of per-example gradients in the bases, in one pass over the data."""
    totals: dict[int, Tensor] = {}
    # Without eigenvalues, which are what is being found.
    blocks = {index: fit.block(index, bases, torch.empty(0)) for index in units}
    shared = shared_units(fit.plan).intersection(units)
    max_examples = held_examples(fit.plan, shared)
    if shared and fit.room_bytes is not None:
        costs = fit.costs("values")
        max_examples = max(1, min(max_examples, fit.room_bytes // (2 * sum(costs[index] for index in shared))))

    def sums_of(items: Sequence[int]) -> dict[int, Tensor]:
        chosen = [fit.dataset.examples[item] for item in items]
        labelled = numbered(fit.task.collate(chosen), len(chosen), fit.task.device)
        squares = _squares(fit, blocks, chosen, labelled, shared)
        while squares is None:
            squares = _squares(fit, blocks, chosen, labelled, shared)
        return squares

    def run(items: Sequence[int]) -> None:
        # Added only when the batch went through: one that did not fit is done again in halves.
        sums = sums_of(items)
        if (unit := _not_finite(sums, fit.plan)) is not None:
            raise blamed(fit, items, unit, "squared gradient", lambda some: _not_finite(sums_of(some), fit.plan))
        for index, value in sums.items():
            totals[index] = value if index not in totals else totals[index].add_(value)
        progress.advance(len(items))

    for batch in fit.batches(max_examples):
        in_halves(batch, run, fit.task.model)
    sums = fit.ranks.added_up({f"values.{index}": value for index, value in totals.items()})
    whole = {index: sums[f"values.{index}"] for index in units if f"values.{index}" in sums}
    if (unit := _not_finite(whole, fit.plan)) is not None:
        refuse_sum(unit, "squared gradient", f"all {len(fit.dataset):,} examples")
    for index in units:
        unit = fit.plan.units[index]
        sums.setdefault(f"values.{index}", torch.zeros(unit.outputs, unit.inputs))
    means = {name: value.div_(len(fit.dataset)) for name, value in sums.items()}
    for index, block in blocks.items():
        even_rest(means[f"values.{index}"], block.outputs_OO, block.inputs_II)
    return means


def _not_finite(sums: Mapping[int, Tensor], plan: Plan) -> str | None:
    """Name of the first unit with a sum that is NaN or infinite."""
    return next((plan.units[index].name for index, value in sums.items() if not bool(torch.isfinite(value).all())), None)


def _squares(
    fit: Fit, blocks: Mapping[int, KroneckerBlock], chosen: Sequence[Example], labelled: Batch, shared: set[int]
) -> dict[int, Tensor] | None:
    """One batch's sums; None if a unit turned out to be shared."""
    sums = _Sums(blocks)
    for objective in objectives(fit.task, fit.rule, chosen, stage="values", head=fit.head):
        squares = SquaredGradients(blocks, len(chosen), shared, sums)
        consume = of_units(squares, blocks.keys())
        capture(
            fit.task,
            fit.plan,
            labelled,
            consume,
            num_examples=len(chosen),
            alone=lambda index: numbered(fit.task.collate([chosen[index]]), 1, fit.task.device, first=index),
            objective=objective,
        )
        if not squares.finish():
            return None
    return sums.sums


class _Sums:
    """Takes squared gradients and adds them up over examples, per unit, shape (O, I)."""

    def __init__(self, blocks: Mapping[int, KroneckerBlock]):
        self.blocks = blocks
        self.sums: dict[int, Tensor] = {}

    def dense(self, index: int, start: int, squares_BOI: Tensor) -> None:
        self._sum(index, squares_BOI).add_(squares_BOI.sum(0))

    def products(self, index: int, outputs_BO: Tensor, inputs_BI: Tensor) -> None:
        self._sum(index, inputs_BI).addmm_(outputs_BO.T, inputs_BI)

    def rows(self, index: int, examples_U: Tensor, rows_U: Tensor, squares_UI: Tensor) -> None:
        self._sum(index, squares_UI).index_add_(0, rows_U, squares_UI)

    def _sum(self, index: int, like: Tensor) -> Tensor:
        if index not in self.sums:
            unit = self.blocks[index].unit
            self.sums[index] = torch.zeros(unit.outputs, unit.inputs, dtype=like.dtype, device=like.device)
        return self.sums[index]
