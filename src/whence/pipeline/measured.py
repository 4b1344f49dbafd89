"""Adds up what an exact run takes, from the shapes of its units, and cuts it into parts that fit."""

import shutil
from pathlib import Path

from whence.capture import Forecast, Plan, available_bytes
from whence.curvature import UnitBytes, held_examples, number_bytes, ranges_of, shared_units, unit_bytes
from whence.errors import BadInput
from whence.methods import ExactMethod
from whence.pipeline.footprint import Demand, FitBytes, Footprint
from whence.tasks import AbstractTask

__all__ = ["measure", "room_bytes"]

# Of what is free: forecasts are not exact, and other programs grow.
_SHARE = 0.9
# Per-example gradients in a basis are made so many numbers at a time, in three versions (`whence.curvature.squares`).
_SQUARES = 3 << 22
# Copies of a query's gradient held at once: as it is, preconditioned, scaled; for solvers also directions, residuals and products.
_COPIES, _SOLVER_COPIES = 3, 12
# Numbers of whole query gradients held at a time where only their factors or sums are kept.
_WHOLE_NUMBERS = 1 << 28
# Bytes of a score, and its copies while batches are put together and while the table is.
_SCORE, _SCORE_COPIES, _TABLE_COPIES = 8, 3, 3


def measure(
    task: AbstractTask,
    plan: Plan,
    method: ExactMethod,
    batch: Forecast,
    demand: Demand,
    *,
    largest_side: int,
    folder: Path | None,
    room: int,
    batch_positions: int | None = None,
) -> Footprint:
    """Add up what a run takes and cut it into parts that fit.

    Args:
        task: Model and loss.
        plan: Its units.
        method: What is fitted, and what solves.
        batch: What a batch takes.
        demand: What is asked.
        largest_side: As in `FitConfig`.
        folder: Where the curvature is kept.
        room: Bytes that may be taken besides the model.
        batch_positions: Positions per batch, if not those of the forecast.

    Returns:
        The footprint; `refuse` says whether it fits.
    """
    units = unit_bytes(task, plan, largest_side)
    whole = sum(unit.values for unit in units)
    batch_bytes = batch.bytes_per_position * (batch_positions or batch.batch_positions)
    scratch = _squares_bytes(task, plan, units, demand.examples)
    fit = _fit_bytes(plan, method, units, scratch, folder, room - batch_bytes) if method.factors is not None else FitBytes()
    scores = demand.dampings * demand.examples * (1 + len(units) * demand.per_unit) * _SCORE
    table = demand.rows * scores * _TABLE_COPIES
    # The largest unit is rotated, damped and rotated back out of place.
    copies = _SOLVER_COPIES if method.solver is not None else _COPIES
    query = (copies + 2 * (demand.dampings - 1)) * whole + 2 * max(unit.values for unit in units)
    fixed = demand.vectors * whole + (scratch + whole if demand.norms else 0)
    free = room - batch_bytes - fit.kept - fixed - table
    row, whole_at_once = query, max(demand.rows, 1)
    if demand.query_rank is not None or demand.is_summed:
        most = _WHOLE_NUMBERS * number_bytes(task) // whole
        whole_at_once = max(1, min(most, demand.queries, free // 2 // query))
        fixed += whole_at_once * query
        free -= whole_at_once * query
    if demand.query_rank is not None:
        sides = [(unit.outputs, unit.inputs) for unit in plan.units]
        numbers = sum(min(demand.query_rank * (left + right), left * right) for left, right in sides)
        row = 2 * numbers * number_bytes(task)
    row += scores * _SCORE_COPIES
    return Footprint(
        room=room,
        batch=batch_bytes,
        fit=fit,
        fixed=fixed,
        row=row,
        table=table,
        rows=demand.rows,
        rows_at_once=max(1, min(demand.rows, free // row)),
        whole_at_once=whole_at_once,
        free_disk=_free_disk(folder),
    )


def room_bytes(task: AbstractTask, memory_gib: float | None) -> int:
    """Bytes that a run may take: what was said, or most of what is free on the model's device.

    Raises:
        BadInput: If what was said is not positive.
    """
    if memory_gib is None:
        return int(_SHARE * available_bytes(task.device))
    if not memory_gib > 0:
        raise BadInput(found=f"memory_gib={memory_gib}", needed="a positive number", do="leave it out to take what is free")
    return int(memory_gib * 2**30)


def _fit_bytes(
    plan: Plan, method: ExactMethod, units: list[UnitBytes], scratch: int, folder: Path | None, free: int
) -> FitBytes:
    stages = ("bases", "values") if method.factors == "ekfac" else ("bases",)
    # What a stage takes besides its sums, one unit or a few examples at a time; groups of shared units take fewer examples.
    besides = {"bases": max(unit.decomposition for unit in units), "values": scratch}
    at_once = max(sum(unit.of_stage(stage) for unit in units) + besides[stage] for stage in stages)
    alone = [max(unit.of_stage("bases") + unit.decomposition, unit.of_stage("values") + 4 * unit.values) for unit in units]
    group = None
    if at_once > free:
        group = max(1, free - max(max(unit.decomposition, 4 * unit.values) for unit in units))
    passes = [len(ranges_of([unit.of_stage(stage) for unit in units], group or float("inf"))) for stage in stages]
    factors, bases, values = (sum(getattr(unit, name) for unit in units) for name in ("factors", "bases", "values"))
    in_memory = bases + values if folder is None else values if method.factors == "kfac" else 0
    dearest = max(range(len(units)), key=alone.__getitem__)
    return FitBytes(
        at_once=at_once,
        dearest=plan.units[dearest].name,
        dearest_bytes=alone[dearest],
        group_bytes=group,
        factor_passes=passes[0],
        value_passes=sum(passes[1:]),
        kept=in_memory,
        disk=0 if folder is None else factors + bases + (values if method.factors == "ekfac" else 0),
    )


def _squares_bytes(task: AbstractTask, plan: Plan, units: list[UnitBytes], examples: int) -> int:
    """Per-example gradients of a few examples, and those of shared units, which are held until a pass is over."""
    shared = shared_units(plan)
    held = min(held_examples(plan, shared), examples) * sum(units[index].values for index in shared)
    return max(min(_SQUARES * number_bytes(task), 3 * min(256, examples) * max(unit.values for unit in units)), 2 * held)


def _free_disk(folder: Path | None) -> int:
    if folder is None:
        return 0
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    return shutil.disk_usage(there).free + sum(file.stat().st_size for file in folder.glob("*.safetensors"))
