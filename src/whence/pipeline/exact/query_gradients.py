"""Queries of the exact road: whole gradients, preconditioned, grouped, cut.

Axes: Q queries, G groups of queries, O outputs, I inputs, R rank.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from whence.capture import give_back
from whence.compress import Kronecker
from whence.curvature import ResolvedDamping
from whence.data import Dataset
from whence.pipeline.exact.footprint import made_at_once
from whence.pipeline.exact.precondition import preconditioned
from whence.pipeline.exact.prepare import Prepared
from whence.progress import meter
from whence.score import Batching, LowRank, Metric, QueryBlock, combine, gradient_rows, truncate

__all__ = ["query_blocks", "query_gradients", "row_gradients"]


def query_blocks(
    prepared: Prepared,
    queries: Dataset,
    damping: ResolvedDamping | None,
    weights_GQ: Tensor | None,
    metric: Metric | None = None,
) -> tuple[list[QueryBlock], Tensor | None, list[str]]:
    """Make what the scan multiplies with.

    Args:
        prepared: Model and curvature.
        queries: The queries.
        damping: None without curvature.
        weights_GQ: Weights of the sums of queries to score instead of the queries.
        metric: For the norms.

    Returns:
        Preconditioned blocks, per unit, scaled to the score's unit; the norms of the queries in the metric, if there is one; and what the
        solver says of its work.
    """
    parts: list[list[QueryBlock]] = []
    norms: list[Tensor] = []
    notes: list[str] = []
    for rows in _gradients(prepared, queries, prepared.query_rank, weights_GQ):
        if metric is not None:
            norms.append(metric.of_rows(rows).sqrt())
        block, solution = preconditioned(prepared, rows, damping, in_place=True)
        parts.append(truncate(block, prepared.query_rank))
        notes += [] if solution is None else [f"{prepared.method.solver}: {solution}"]
    blocks = [_joined(unit_parts) for unit_parts in zip(*parts, strict=True)]
    give_back()
    return blocks, torch.cat(norms) if norms else None, notes


def _gradients(
    prepared: Prepared, queries: Dataset, query_rank: int | None, weights_GQ: Tensor | None
) -> Iterator[list[Tensor]]:
    """Gradients of the table's rows: of all at once, since whole blocks are held anyway, or of some after the other for their factors.

    Yields:
        Per unit, shape (Q, O, I) or (G, O, I), on the CPU.
    """
    size = len(queries) if query_rank is None and weights_GQ is None else prepared.footprint.whole_at_once
    chosen = range(len(queries))
    if weights_GQ is not None:
        chosen = weights_GQ.any(0).nonzero()[:, 0].tolist() or [0]
    total: list[Tensor] = []
    for start in range(0, len(chosen), size):
        some = chosen[start : start + size]
        rows = query_gradients(prepared, Dataset([queries.examples[row] for row in some]))
        if weights_GQ is None:
            yield rows
            continue
        sums = combine(rows, weights_GQ[:, list(some)])
        total = [added.add_(more) for added, more in zip(total, sums, strict=True)] if total else sums
    if total:
        yield total


def row_gradients(prepared: Prepared, queries: Dataset, weights_GQ: Tensor | None) -> list[Tensor]:
    """Whole gradients of a table's rows, on the model's device.

    Args:
        prepared: The model.
        queries: The queries.
        weights_GQ: Weights of the sums of queries that are the rows; None for the queries themselves.

    Returns:
        Per unit, shape (Q, O, I) or (G, O, I).
    """
    (rows,) = _gradients(prepared, queries, None, weights_GQ)
    return [row.to(prepared.task.device) for row in rows]


def query_gradients(prepared: Prepared, queries: Dataset) -> list[Tensor]:
    """Whole gradients of the queries' measurements, per unit of shape (Q, O, I), on the CPU."""
    units = prepared.plan.units
    whole = Kronecker(units, (None,) * len(units), (None,) * len(units))
    with meter("queries", len(queries), quiet=prepared.quiet) as progress:
        rows = gradient_rows(
            prepared.task, prepared.plan, whole, queries.examples,
            batching=Batching(prepared.max_positions, examples=made_at_once(units)),
            progress=progress, objective="measurement",
        )  # fmt: skip
    return rows.units


def _joined(parts: Sequence[QueryBlock]) -> QueryBlock:
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], LowRank):
        factors = [part for part in parts if isinstance(part, LowRank)]
        return LowRank(torch.cat([factor.left_QRO for factor in factors]), torch.cat([factor.right_QRI for factor in factors]))
    return torch.cat([part for part in parts if isinstance(part, Tensor)])
