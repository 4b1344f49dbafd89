"""Queries of the exact road: whole gradients, preconditioned, grouped, cut.

Axes: Q queries, G groups of queries, O outputs, I inputs, R rank.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from whence.capture import check_task
from whence.compress import Kronecker
from whence.curvature import Damping
from whence.data import Dataset
from whence.pipeline.prepare import Prepared
from whence.pipeline.solving import SolveConfig, preconditioned
from whence.progress import meter
from whence.score import LowRank, Metric, QueryBlock, combine, gradient_rows, truncate

__all__ = ["query_blocks", "query_gradients"]

# Numbers of whole query gradients held at a time where only their factors are kept.
_WHOLE_NUMBERS = 1 << 28


def query_blocks(
    ready: Prepared,
    queries: Dataset,
    damping: Damping | None,
    solving: SolveConfig,
    query_rank: int | None,
    weights_GQ: Tensor | None,
    metric: Metric | None,
) -> tuple[list[QueryBlock], Tensor | None, list[str]]:
    """Check the queries and make what the scan multiplies with.

    Args:
        ready: Model and curvature.
        queries: The queries.
        damping: None without curvature.
        solving: For methods with a solver.
        query_rank: Singular directions kept; None keeps them all. With it, only some whole gradients are held at a time.
        weights_GQ: Weights of the sums of queries to score instead of the queries.
        metric: For the norms.

    Returns:
        Preconditioned blocks, per unit, scaled to the score's unit; the norms of the queries in the metric, if there is one; and what the
        solver says of its work.
    """
    check_task(ready.task, ready.plan, queries.examples, objective="measurement")
    numbers = sum(unit.outputs * unit.inputs for unit in ready.plan.units)
    # Groups need all of their queries at once; whole blocks are held anyway.
    size = len(queries) if query_rank is None or weights_GQ is not None else max(1, _WHOLE_NUMBERS // numbers)
    parts: list[list[QueryBlock]] = []
    norms: list[Tensor] = []
    notes: list[str] = []
    for start in range(0, len(queries), size):
        rows = query_gradients(ready, Dataset(queries.examples[start : start + size]))
        if weights_GQ is not None:
            rows = combine(rows, weights_GQ)
        if metric is not None:
            norms.append(metric.of_rows(rows).sqrt())
        found, solution = preconditioned(ready, rows, damping, solving)
        parts.append(truncate(found, query_rank))
        notes += [] if solution is None else [f"{ready.method.solver}: {solution}"]
    return [_joined(found) for found in zip(*parts, strict=True)], torch.cat(norms) if norms else None, notes


def query_gradients(ready: Prepared, queries: Dataset) -> list[Tensor]:
    """Whole gradients of the queries' measurements, per unit of shape (Q, O, I), on the CPU."""
    units = ready.plan.units
    whole = Kronecker(units, (None,) * len(units), (None,) * len(units))
    with meter("queries", len(queries), quiet=ready.quiet) as progress:
        rows = gradient_rows(
            ready.task, ready.plan, whole, queries.examples,
            max_positions=ready.max_positions, progress=progress, objective="measurement",
        )  # fmt: skip
    return rows.units


def _joined(parts: Sequence[QueryBlock]) -> QueryBlock:
    if isinstance(parts[0], LowRank):
        factors = [part for part in parts if isinstance(part, LowRank)]
        return LowRank(torch.cat([one.left_QRO for one in factors]), torch.cat([one.right_QRI for one in factors]))
    return torch.cat([part for part in parts if isinstance(part, Tensor)])
