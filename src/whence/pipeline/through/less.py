"""LESS: cosines of a query's gradient and the update that an example alone would be, along a recorded run.

Axes: Q queries, G groups of queries, N training examples, B of a batch, O outputs, I inputs, P parts (checkpoints).
"""

import torch
from torch import Tensor

from whence.capture import Blocks
from whence.compress import Kronecker
from whence.data import Dataset, batches
from whence.errors import NonFinite
from whence.pipeline.exact.footprint import made_at_once
from whence.pipeline.exact.prepare import Prepared
from whence.pipeline.exact.query_gradients import row_gradients
from whence.pipeline.through.cut import CutRun
from whence.progress import meter, say
from whence.score import Batching, ExactScores, gradient_rows
from whence.unroll import Directions, directions_of

__all__ = ["less_scores"]

# An update is made of a gradient by some steps, each with a copy.
_COPIES = 6


def less_scores(
    prepared: Prepared, cut: CutRun, queries: Dataset, *, weights_GQ: Tensor | None
) -> tuple[ExactScores, list[str]]:
    """LESS (Xia et al. 2024, equation 3): score = -sum over checkpoints of rate_k cos(grad m, Gamma(grad loss_i)), all at checkpoint k.

    rate_k is the sum of learning rates since the checkpoint before, Gamma what the run's optimizer makes of the gradient in its next step,
    with its moments of then. Every example is scored, whether the run met it or not.

    Args:
        prepared: Checked task and data.
        cut: The run.
        queries: The queries.
        weights_GQ: Weights of the sums of queries to score instead of the queries.

    Returns:
        The scores, in learning rates, and what a reader should know.
    """
    run, task = cut.run, prepared.task
    parts = []
    for number, segment in enumerate(cut.segments):
        if not prepared.quiet:
            say(f"checkpoint {number + 1} of {len(cut.segments)}: step {segment.stop:,}")
        with run.weights(task.model, segment.checkpoints, at="measurements"):
            rows = row_gradients(prepared, queries, weights_GQ)
        norms_Q = _norms(rows)
        wanted = [row / norms_Q.to(row).clamp_min(torch.finfo(row.dtype).tiny)[:, None, None] for row in rows]
        directions = directions_of(run, prepared.plan, task.model, segment)
        with run.weights(task.model, segment.checkpoints):
            parts.append(-directions.rate * _cosines(prepared, wanted, directions))
    parts_PQN = torch.stack(parts)
    notes = [
        f"LESS over {len(parts)} checkpoints of {run.steps:,} steps: cosines of gradients and updates, times learning rates; a rank, not a "
        "change of the measurement"
    ]
    return ExactScores(parts_PQN.sum(0), parts_PQN if cut.per_segment else None, {}, None), notes


def _cosines(prepared: Prepared, wanted: Blocks, directions: Directions) -> Tensor:
    """Of rows of length 1 and the updates of all examples, shape (Q, N), float64.

    Raises:
        NonFinite: If an update is not finite.
    """
    task, plan, ranks = prepared.task, prepared.plan, prepared.ranks
    examples = prepared.train.examples
    whole = Kronecker(plan.units, (None,) * len(plan.units), (None,) * len(plan.units))
    cosines_QN = torch.zeros(len(wanted[0]), len(examples), dtype=torch.float64)
    mine = ranks.balanced([example.length for example in examples])
    lengths, at_once = [examples[row].length for row in mine], max(1, made_at_once(plan.units) // _COPIES)
    with meter("scan", len(mine), quiet=prepared.quiet) as progress:
        for batch in batches(lengths, max_positions=prepared.max_positions, max_examples=at_once):
            rows = [mine[number] for number in batch]
            gradients = gradient_rows(
                task, plan, whole, [examples[row] for row in rows],
                batching=Batching(prepared.max_positions, examples=at_once), progress=progress,
            )  # fmt: skip
            ways = directions([unit.to(task.device) for unit in gradients.units])
            products = [row.flatten(1).double() @ way.flatten(1).double().T for row, way in zip(wanted, ways, strict=True)]
            norms_B = _norms(ways)
            if not bool(torch.isfinite(norms_B).all()):
                name = examples[rows[int((~torch.isfinite(norms_B)).nonzero()[0])]].id
                raise NonFinite(
                    found=f"a NaN or infinite update of {name!r}", needed="finite gradients", do="drop this example"
                )
            cosines_QN[:, rows] = (torch.stack(products).sum(0) / norms_B.clamp_min(1e-300)).cpu()
    # What the others have is zero here.
    return ranks.added_up({"cosines": cosines_QN})["cosines"]


def _norms(rows: Blocks) -> Tensor:
    """Over all units, shape (Q,), float64."""
    return torch.stack([row.double().flatten(1).square().sum(1) for row in rows]).sum(0).sqrt()
