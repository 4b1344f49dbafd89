"""Adds up what an exact run takes, from the shapes of its units, and cuts it into parts that fit."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from whence.capture import Forecast, Plan, available_bytes
from whence.curvature import (
    POOLED,
    UnitBytes,
    class_count,
    held_examples,
    number_bytes,
    ranges_of,
    resolved,
    shared_units,
    unit_bytes,
)
from whence.data import Example
from whence.methods import ExactMethod, exact_method_named
from whence.pipeline.exact.footprint import Demand, FitBytes, Footprint, made_at_once
from whence.score.blocks import DENSE_NUMBERS
from whence.settings import Arnoldi, ExactSettings, Nystroem, factors_folder, fit_of
from whence.tasks import AbstractTask

__all__ = ["measure", "room_bytes"]

# Of what is free: forecasts are not exact, and other programs grow.
_SHARE = 0.9
# Per-example gradients in a basis are made so many numbers at a time (`whence.curvature.squares`), in this many versions.
_SQUARES, _SQUARES_COPIES = 1 << 22, 2
# Products with queries are made so many numbers at a time (`whence.score.contract`).
_SCAN_NUMBERS = 1 << 21
# Copies of a query's gradient held at once by solvers: the right side, the solution, directions, residuals, products.
_SOLVER_COPIES = 12
# Of an example's gradient while an optimizer's update is made of it, and multiplied in float64.
_UPDATE_COPIES = 12
# Going back through a run, the query itself is kept through the scan, too; and a segment's exponential holds so many vectors of one unit.
_RUN_COPIES, _RUN_HELD, _UNIT_COPIES = 6, 2, 8
# Numbers of whole query gradients held at a time where only their factors or sums are kept.
_WHOLE_NUMBERS = 1 << 28
# Bytes of a score, and its copies while batches are put together and while the table is.
_SCORE, _SCORE_COPIES, _TABLE_COPIES = 8, 3, 3


def measure(
    task: AbstractTask,
    plan: Plan,
    examples: Sequence[Example],
    settings: ExactSettings,
    batch: Forecast,
    demand: Demand,
    *,
    room: int,
    batch_positions: int | None = None,
) -> Footprint:
    """Add up what a run takes and cut it into parts that fit.

    Args:
        task: Model and loss.
        plan: Its units.
        examples: The training data.
        settings: What is fitted, resolved, what solves, and where the curvature is kept.
        batch: What a batch takes.
        demand: What is asked.
        room: Bytes that may be taken besides the model.
        batch_positions: Positions per batch, if not those of the forecast.

    Returns:
        The footprint; `refuse` says whether it fits.
    """
    method, folder = exact_method_named(settings.name), factors_folder(settings)
    units = _unit_bytes(task, plan, examples, settings)
    parameters = sum(unit.values for unit in units)
    longest = max(example.length for example in examples)
    positions = min(max(batch_positions or batch.batch_positions, longest), len(examples) * longest)
    batch_bytes = batch.bytes_per_position * positions
    examples_at_once = min(positions // longest, 256)
    squares = _squares_bytes(task, plan, units, examples_at_once)
    fit = (
        _fit_bytes(plan, method, units, squares, folder, room - batch_bytes, demand)
        if method.factors is not None
        else FitBytes()
    )
    scores = demand.dampings * len(examples) * (1 + max(len(units) * demand.per_unit, demand.parts)) * _SCORE
    table = demand.rows * scores * _TABLE_COPIES
    largest = max(unit.values for unit in units)
    # One, preconditioned in place; or one for every damping besides, joined unit by unit at the end. A unit that is solved for is rotated
    # out of place, and decomposed where only factors are kept.
    copies = 1 if demand.dampings == 1 else 1 + demand.dampings
    held_per_row = demand.dampings * parameters
    rotated = (3 if demand.query_rank is None else 4) * demand.dampings
    if method.solver is not None:
        copies = _SOLVER_COPIES + demand.dampings
    if method.needs_run:
        copies, held_per_row, rotated = _RUN_COPIES, _RUN_HELD * parameters, _UNIT_COPIES
    query = copies * parameters + rotated * largest
    fixed = solver_vectors(settings) * parameters + (parameters if demand.norms else 0)
    scan = 2 * min(_SCAN_NUMBERS * number_bytes(task), examples_at_once * largest)
    scan = max(scan, sum(squares) if demand.norms else 0)
    gradients_at_once = made_at_once(plan.units)
    scan = max(scan, _UPDATE_COPIES * parameters) if settings.name == "less" else scan
    free = room - batch_bytes - fit.result - fixed - table
    row, whole, whole_at_once = query, 0, max(demand.rows, 1)
    if demand.query_rank is not None or demand.is_summed:
        most = _WHOLE_NUMBERS * number_bytes(task) // parameters
        whole_at_once = max(1, min(most, demand.queries, free // 2 // query))
        whole = whole_at_once * query + min(gradients_at_once, whole_at_once) * parameters
    if demand.query_rank is not None:
        sides = [(unit.outputs, unit.inputs) for unit in plan.units]
        numbers = sum(min(demand.query_rank * (left + right), left * right) for left, right in sides)
        row, held_per_row = 2 * numbers * number_bytes(task), numbers * number_bytes(task)
        # Where factors are not the cheaper way, some queries are written out for the scan.
        scan += min(demand.rows * largest, max(DENSE_NUMBERS * number_bytes(task), largest))
    row += scores * _SCORE_COPIES
    held_per_row += scores * _SCORE_COPIES
    making = max(
        min(gradients_at_once, free // (held_per_row + parameters)), (free - gradients_at_once * parameters) // held_per_row
    )
    fits = max(1, min(demand.rows, (free - whole) // row, (free - scan) // held_per_row, making))
    return Footprint(
        room=room,
        batch=batch_bytes,
        fit=fit,
        fixed=fixed,
        whole=whole,
        scan=max(scan, min(gradients_at_once, fits) * parameters),  # or while the gradients of queries are made
        row=row,
        per_row=held_per_row,
        table=table,
        rows=demand.rows,
        rows_at_once=fits,
        whole_at_once=whole_at_once,
        passes=demand.passes,
        free_disk=_free_disk(folder),
    )


def _unit_bytes(task: AbstractTask, plan: Plan, examples: Sequence[Example], settings: ExactSettings) -> list[UnitBytes]:
    config = resolved(fit_of(settings), plan.units, device=task.device, positions=0)
    return unit_bytes(task, plan, config, class_count(task, plan, examples, config))


def room_bytes(task: AbstractTask, memory_gib: float | None) -> int:
    """Bytes that a run may take: what was said, or most of what is free on the model's device."""
    return int(_SHARE * available_bytes(task.device)) if memory_gib is None else int(memory_gib * 2**30)


def solver_vectors(settings: ExactSettings) -> int:
    """How many vectors as long as the model a method's solver keeps, however many queries there are."""
    if isinstance(settings, Arnoldi):
        return settings.iterations
    return 3 * settings.rank if isinstance(settings, Nystroem) else 0


def _fit_bytes(
    plan: Plan,
    method: ExactMethod,
    units: list[UnitBytes],
    squares: tuple[int, int],
    folder: Path | None,
    free: int,
    demand: Demand,
) -> FitBytes:
    stages = ("bases", "values") if method.factors == "ekfac" else ("bases",)
    num_made, shared_rows = squares
    # What a stage takes besides its sums: one unit at a time, or a few examples.
    besides = {"bases": max(unit.decomposition for unit in units), "values": num_made + shared_rows}
    pooled = POOLED if method.needs_run else 1

    def held_by(unit: UnitBytes, stage: str) -> int:
        return int(pooled * unit.of_stage(stage))

    at_once = max(sum(held_by(unit, stage) for unit in units) + besides[stage] for stage in stages)
    shared = shared_units(plan)
    alone = []
    for index, unit in enumerate(units):
        squared = held_by(unit, "values") + num_made + (2 * unit.values if index in shared else 0)
        alone.append(max(held_by(unit, "bases") + unit.decomposition, squared if method.factors == "ekfac" else 0))
    group = None
    if at_once > free:
        group = max(1, free - max(besides["bases"], num_made if method.factors == "ekfac" else 0))
        group = (
            max(1, group // 2) if shared_rows else group
        )  # the gradients of shared units are held, of so few examples that they fit
    passes = [len(ranges_of([held_by(unit, stage) for unit in units], group or float("inf"))) for stage in stages]
    factors, bases, values = (sum(getattr(unit, name) for unit in units) for name in ("factors", "bases", "values"))
    in_memory = bases + values if folder is None else values if method.factors == "kfac" else 0
    dearest = max(range(len(units)), key=alone.__getitem__)
    return FitBytes(
        at_once=at_once,
        dearest=plan.units[dearest].name,
        dearest_bytes=alone[dearest],
        group_bytes=group,
        factor_passes=passes[0] * demand.passes,
        value_passes=sum(passes[1:]) * demand.passes,
        result=in_memory,
        disk=0 if folder is None else demand.fits * (factors + bases + (values if method.factors == "ekfac" else 0)),
    )


def _squares_bytes(task: AbstractTask, plan: Plan, units: list[UnitBytes], examples: int) -> tuple[int, int]:
    """Per-example gradients of a few examples, and those of shared units, which are held until a pass is over."""
    shared = shared_units(plan)
    num_made = min(_SQUARES * number_bytes(task), examples * max(unit.values for unit in units))
    shared_rows = min(held_examples(plan, shared), examples) * sum(units[index].values for index in shared)
    return _SQUARES_COPIES * num_made, _SQUARES_COPIES * shared_rows


def _free_disk(folder: Path | None) -> int:
    if folder is None:
        return 0
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    return shutil.disk_usage(there).free + sum(
        file.stat().st_size for pattern in ("*.safetensors", "segment-*/*.safetensors") for file in folder.glob(pattern)
    )
