"""What every exact question needs first: checked inputs, the curvature, and its damping."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from whence.capture import Plan, check_task, forecast, plan_units
from whence.curvature import KroneckerCurvature, ResolvedDamping, choose_damping, few_rows, fit_ekfac, fit_kfac, resolved
from whence.data import Dataset, skipped_note
from whence.distributed import Ranks
from whence.errors import BadInput
from whence.methods import ExactMethod, exact_method_named
from whence.pipeline.exact.footprint import Demand, Footprint
from whence.pipeline.exact.measure import measure, room_bytes
from whence.pipeline.exact.nearest import refused_with_what_fits
from whence.pipeline.inputs import as_dataset, refuse_bare_model
from whence.progress import say
from whence.settings import Damping, ExactSettings, Runtime, factors_folder, fit_of
from whence.sharded_weights import refuse_sharded, refuse_spread
from whence.tasks import AbstractTask

__all__ = ["Prepared", "fit_data", "prepare", "sized"]

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
        settings: The method and what it was told.
        max_positions: Positions per batch.
        footprint: What the run takes, and how it is cut.
        runtime: How the job runs.
    """

    task: AbstractTask
    plan: Plan
    train: Dataset
    curvature: KroneckerCurvature | None
    settings: ExactSettings
    max_positions: int
    footprint: Footprint
    runtime: Runtime

    @property
    def method(self) -> ExactMethod:
        """The method's record."""
        return exact_method_named(self.settings.name)

    @property
    def folder(self) -> Path | None:
        """Where the curvature is kept."""
        return factors_folder(self.settings)

    @property
    def quiet(self) -> bool:
        """Whether this process shows no progress."""
        return self.runtime.is_quiet

    @property
    def ranks(self) -> Ranks:
        """Connected processes that answer together."""
        return self.runtime.ranks

    @property
    def query_rank(self) -> int | None:
        """Singular directions kept of every query's gradient; None for all."""
        return getattr(self.settings, "query_rank", None)

    def damping(self, requested: Damping | None = None) -> ResolvedDamping | None:
        """The damping to use, None without curvature.

        Args:
            requested: Another than that of the settings.
        """
        requested = requested or getattr(self.settings, "damping", None)
        if self.curvature is None or requested is None:
            return None
        if self.method.solver is None and requested == Damping():
            note = f"damping {_FACTOR_DAMPING:g} x mean eigenvalue, the default of Kronecker-factored curvature"
            return ResolvedDamping(_FACTOR_DAMPING, None, note, label="default damping")
        return choose_damping(self.task.recipe, requested, default=_SOLVER_DAMPING)

    def describe(self, *settings: str) -> str:
        """The method with its settings, in a few words."""
        return ", ".join([self.settings.name, *(part for part in settings if part)])

    def notes(self, damping: ResolvedDamping | None) -> tuple[str, ...]:
        """What else a reader should know of the scores."""
        curvature_notes = [self.curvature.note] if self.curvature is not None else []
        left_out = skipped_note("training records", self.train.skipped)
        added = [] if damping is None else [damping.note]
        if damping is not None and self.curvature is not None and (floor := self.curvature.floor_note(damping)):
            added.append(floor)
        return (f"{self.plan.coverage}", *curvature_notes, *added, *left_out)


def prepare(
    task: AbstractTask,
    train: Dataset | Iterable[Any],
    settings: ExactSettings,
    demand: Demand,
    runtime: Runtime = Runtime(),
) -> Prepared:
    """Check the task on the training data, see that the run fits, and fit the curvature.

    Args:
        task: Model and loss.
        train: Training examples.
        settings: Which curvature, and how it is fitted.
        demand: What is asked afterwards.
        runtime: How the job runs. What is cut is cut alike on all of its processes.

    Returns:
        All of it.

    Raises:
        BadInput: If the number of examples to fit on is impossible.
    """
    refuse_bare_model(task)
    refuse_sharded(task.model, "whole gradients")
    chosen, ranks, quiet = exact_method_named(settings.name), runtime.ranks, runtime.is_quiet
    if chosen.needs_run or chosen.solver not in (None, "datainf"):
        refuse_spread(task.model)
    dataset = as_dataset(task, train)
    plan = plan_units(task)
    untouched = check_task(task, plan, dataset.examples)
    # Of all ranks the least, so that all cut alike; those on one machine share its memory.
    neighbours = ranks.local_count if task.device.type == "cpu" and runtime.memory_gib is None else 1
    room = min(ranks.gathered(room_bytes(task, runtime.memory_gib) // neighbours))
    batch = forecast(task, plan, dataset.examples, room_bytes=room)
    wanted = runtime.positions(example.length for example in dataset.examples)
    positions = ranks.of_first(wanted or batch.batch_positions)
    if not quiet:
        say(f"{len(dataset):,} examples; {len(plan.units)} units of parameters; {plan.coverage}")
        if untouched:
            say(f"note: the loss does not reach {', '.join(untouched[:4])}{' and more' if len(untouched) > 4 else ''}")
    data = fit_data(task, dataset, getattr(settings, "fit_on", None))
    settings = ranks.of_first(sized(settings, task, plan, data, room))

    def measured(other: ExactSettings, batch_positions: int | None) -> Footprint:
        return measure(task, plan, dataset.examples, other, batch, demand, room=room, batch_positions=batch_positions)

    need = ranks.of_first(measured(settings, wanted))
    if not quiet:
        say(str(need))
    refused_with_what_fits(need, settings, positions, max(example.length for example in dataset.examples), measured)
    curvature = None
    if chosen.factors is not None and not chosen.needs_run:  # a run's curvature is fitted segment by segment
        fit = fit_ekfac if chosen.factors == "ekfac" else fit_kfac
        curvature = fit(
            task, plan, data, fit_of(settings),
            max_positions=positions, folder=factors_folder(settings), room_bytes=need.fit.group_bytes, quiet=quiet, ranks=ranks,
        )  # fmt: skip
    return Prepared(task, plan, dataset, curvature, settings, positions, need, runtime)


def sized(settings: ExactSettings, task: AbstractTask, plan: Plan, data: Dataset, room: int) -> ExactSettings:
    """The settings with the sizes of bases that memory and time allow, where they were left to be chosen.

    Args:
        settings: As asked.
        task: Model and loss.
        plan: Its units.
        data: That the curvature is fitted on.
        room: Bytes that may be taken besides the model.
    """
    if not hasattr(settings, "fit"):
        return settings
    config, method = fit_of(settings), exact_method_named(settings.name)
    # A run's curvature is a sum over weights, too, which have rows of their own.
    rows = None if method.factors is None or method.needs_run else few_rows(task, plan, data, config)
    fit = resolved(
        config, plan.units, device=task.device, positions=sum(example.length for example in data.examples), rows=rows,
        room_bytes=room, folder=factors_folder(settings),
    )  # fmt: skip
    return replace(settings, fit=fit)  # pyright: ignore[reportCallIssue]


def fit_data(task: AbstractTask, train: Dataset, fit_on: Dataset | Iterable[Any] | int | None) -> Dataset:
    """What curvature is fitted on; `fit_on` as in `EKFAC`.

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
