"""What every exact question needs first: checked inputs, the curvature, and its damping."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whence.capture import Plan, check_task, forecast, plan_units
from whence.curvature import Damping, FitConfig, KroneckerCurvature, choose_damping, fit_ekfac, fit_kfac
from whence.data import Dataset, skipped_note
from whence.distributed import Ranks
from whence.errors import BadInput
from whence.methods import ExactMethod, exact_method_named
from whence.pipeline.exact.footprint import Demand, Footprint
from whence.pipeline.exact.measure import measure, room_bytes
from whence.pipeline.inputs import as_dataset
from whence.progress import say
from whence.sharded_weights import refuse_sharded, refuse_spread
from whence.tasks import AbstractTask

__all__ = ["Prepared", "fit_data", "prepare"]

# Shares of the mean eigenvalue. Factors approximate, and on digits and text they rank better with this than with the training recipe's
# value, which is right for the Gauss-Newton matrix itself (docs/log.md).
_FACTOR_DAMPING = 0.1
_SOLVER_DAMPING = 1.0


@dataclass(frozen=True)
class Prepared:
    """Checked inputs and a fitted curvature.

    Args:
        task: Model and loss.
        plan: Its units.
        train: The training data.
        curvature: None for plain inner products.
        max_positions: Positions per batch.
        method: The method.
        quiet: No progress on stderr.
        footprint: What the run takes, and how it is cut.
        folder: Where the curvature is kept.
        ranks: Connected processes that answer together.
    """

    task: AbstractTask
    plan: Plan
    train: Dataset
    curvature: KroneckerCurvature | None
    max_positions: int
    method: ExactMethod
    quiet: bool
    footprint: Footprint
    folder: Path | None
    ranks: Ranks = Ranks()

    def damping(self, relative_damping: float | None, absolute_damping: float | None) -> Damping | None:
        """The damping to use, None without curvature.

        Raises:
            BadInput: If one is given without curvature.
        """
        if self.curvature is not None:
            if self.method.solver is None and relative_damping is None and absolute_damping is None:
                note = f"damping {_FACTOR_DAMPING:g} x mean eigenvalue, the default of Kronecker-factored curvature"
                return Damping(_FACTOR_DAMPING, None, note, label="default damping")
            return choose_damping(
                self.task.recipe,
                relative_damping=relative_damping,
                absolute_damping=absolute_damping,
                default=_SOLVER_DAMPING,
            )
        if relative_damping is not None or absolute_damping is not None:
            raise BadInput(found=f"damping for {self.method.name}", needed="a method with curvature", do="leave damping out")
        return None

    def describe(self, *settings: str) -> str:
        """The method with its settings, in a few words."""
        return ", ".join([self.method.name, *(part for part in settings if part)])

    def notes(self, damping: Damping | None) -> tuple[str, ...]:
        """What else a reader should know of the scores."""
        known = [self.curvature.note] if self.curvature is not None else []
        left_out = skipped_note("training records", self.train.skipped)
        return (f"{self.plan.coverage}", *known, *([damping.note] if damping is not None else []), *left_out)


def prepare(
    task: AbstractTask,
    train: Dataset | Iterable[Any],
    *,
    method: str,
    config: FitConfig,
    factors: str | Path | None,
    fit_on: Dataset | Iterable[Any] | int | None,
    batch_positions: int | None,
    quiet: bool,
    demand: Demand,
    memory_gib: float | None,
    ranks: Ranks = Ranks(),
) -> Prepared:
    """Check the task on the training data, see that the run fits, and fit the curvature.

    Args:
        task: Model and loss.
        train: Training examples.
        method: Which curvature.
        config: How it is fitted.
        factors: Folder where its stages are kept.
        fit_on: Other data to fit on, or a number of training examples, spread evenly; None takes them all.
        batch_positions: Positions per batch; None measures what fits.
        quiet: No progress on stderr.
        demand: What is asked afterwards.
        memory_gib: What the run may take besides the model; None for most of what is free.
        ranks: Connected processes that answer together. What is cut is cut alike on all of them.

    Returns:
        All of it.

    Raises:
        BadInput: If something is given that the method has no use for, or the number of examples to fit on is impossible.
    """
    refuse_sharded(task.model, "whole gradients")
    chosen = exact_method_named(method)
    if chosen.needs_run or chosen.solver not in (None, "datainf"):
        refuse_spread(task.model)
    dataset = as_dataset(task, train)
    plan = plan_units(task)
    untouched = check_task(task, plan, dataset.examples)
    # Of all ranks the least, so that all cut alike; those on one machine share its memory.
    neighbours = ranks.local_count if task.device.type == "cpu" and memory_gib is None else 1
    room = min(ranks.gathered(room_bytes(task, memory_gib) // neighbours))
    batch = forecast(task, plan, dataset.examples, room_bytes=room)
    positions = ranks.of_first(batch_positions or batch.batch_positions)
    if not quiet:
        say(f"{len(dataset):,} examples; {len(plan.units)} units of parameters; {plan.coverage}")
        if untouched:
            say(f"note: the loss does not reach {', '.join(untouched[:4])}{' and more' if len(untouched) > 4 else ''}")
    if chosen.factors is None and (config != FitConfig() or factors is not None or fit_on is not None):
        raise BadInput(
            found=f"settings of a curvature for {method}",
            needed="a method with curvature",
            do="leave out labels, samples, seed, sharing, largest_side, factors and fit_on, or pass method='ekfac'",
        )
    folder = None if factors is None else Path(factors)
    need = measure(
        task, plan, dataset.examples, chosen, batch, demand,
        largest_side=config.largest_side, folder=folder, room=room, batch_positions=batch_positions,
    )  # fmt: skip
    need = ranks.of_first(need)
    if not quiet:
        say(str(need))
    need.refuse()
    if chosen.factors is None or chosen.needs_run:  # a run's curvature is fitted segment by segment
        return Prepared(task, plan, dataset, None, positions, chosen, quiet, need, folder, ranks)
    fit = fit_ekfac if chosen.factors == "ekfac" else fit_kfac
    data = fit_data(task, dataset, fit_on)
    curvature = fit(
        task, plan, data, config,
        max_positions=positions, folder=folder, room_bytes=need.fit.group_bytes, quiet=quiet, ranks=ranks,
    )  # fmt: skip
    return Prepared(task, plan, dataset, curvature, positions, chosen, quiet, need, folder, ranks)


def fit_data(task: AbstractTask, train: Dataset, fit_on: Dataset | Iterable[Any] | int | None) -> Dataset:
    """What curvature is fitted on; `fit_on` as in `prepare`.

    Raises:
        BadInput: If that is an impossible number of examples.
    """
    if fit_on is None:
        return train
    if not isinstance(fit_on, int):
        return as_dataset(task, fit_on)
    if not 1 <= fit_on <= len(train):
        raise BadInput(
            found=f"fit_on={fit_on}", needed=f"1 to {len(train):,} training examples", do="correct it, or leave it out"
        )
    return train.spread(fit_on)
