"""Scores through a recorded run: every segment's gradients, at its own checkpoints, times the query carried back to it.

Axes: Q queries, G groups of queries, N training examples.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from whence.capture import Blocks
from whence.curvature import Curvature, KroneckerCurvature, fit_ekfac_pooled, scaled
from whence.data import Dataset
from whence.errors import BadInput
from whence.pipeline.exact.prepare import Prepared
from whence.pipeline.exact.query_gradients import row_gradients
from whence.pipeline.through.cut import CutRun
from whence.pipeline.through.run_sums import RunSums
from whence.progress import say
from whence.settings import AstraSource, Source, fit_of
from whence.solve import solve_astra
from whence.unroll import Run, Scaling, Segment, carry, carry_averaged, implicit_damping, of_unit, scaling_of

__all__ = ["source_scores", "tracin_scores"]


def source_scores(
    prepared: Prepared,
    cut: CutRun,
    queries: Dataset,
    sums: RunSums,
    *,
    weights_GQ: Tensor | None,
) -> list[str]:
    """SOURCE (Bae et al. 2024): score = -sum over segments of share_i w_l^T grad loss_i, w_l the query carried back to segment l.

    Args:
        prepared: Checked task and data, with the weights that the run ended with.
        cut: The run, cut into segments.
        queries: The queries.
        sums: Takes the scores.
        weights_GQ: Weights of the sums of queries to score instead of the queries.

    Returns:
        What a reader should know.
    """
    settings, run, segments, notes = cut.settings, cut.run, sums.segments, []
    assert isinstance(settings, Source | AstraSource)
    rows = row_gradients(prepared, queries, weights_GQ)
    pairs = [(torch.zeros_like(row), row) for row in rows]  # of a Schedule-Free run, which is used at its average
    for number in reversed(range(len(segments))):
        segment = segments[number]
        if not prepared.quiet:
            say(f"segment {number + 1} of {len(segments)}: steps {segment.start:,} to {segment.stop:,}")
        curvature = _curvature(prepared, cut, segment)
        scaling = scaling_of(run, prepared.plan, segment) if segment.is_adaptive else None
        wanted = rows
        if segment.averaging:
            carried, pairs = carry_averaged(curvature, segment, pairs, scaling)
        else:
            carried, rows = carry(curvature, segment, wanted, scaling, settings.form)
        if isinstance(settings, AstraSource):
            carried, refine_notes = _refined(prepared, run, segment, curvature, scaling, wanted, settings)
            notes.append(f"steps {segment.start:,} to {segment.stop:,}: {refine_notes}")
        groups = cut.groups(segment)
        for steps in groups:
            with run.weights(prepared.task.model, steps):
                sums.add(number, scaled(carried, -1.0 / len(groups)))
    checkpoints = sum(len(segment.checkpoints) for segment in segments)
    mean = "mean weights of " if settings.average_weights else ""
    if getattr(settings, "online_bases", False):
        notes.append("the curvature's bases are those that were followed along the run, not fitted to the data")
    return [f"SOURCE over {len(segments)} segments of {run.steps:,} steps, {mean}{checkpoints} checkpoints", *reversed(notes)]


def tracin_scores(prepared: Prepared, run: Run, queries: Dataset, sums: RunSums, *, weights_GQ: Tensor | None) -> list[str]:
    """TracInCP (Pruthi et al. 2020, section 3.2): score = -sum over checkpoints of share_i reach_k grad m^T grad loss_i, both at k.

    reach_k is the sum of learning rates since the checkpoint before, times what momentum makes of them.

    Args:
        prepared: Checked task and data.
        run: The run.
        queries: The queries.
        sums: Takes the scores; a segment per checkpoint.
        weights_GQ: As in `source_scores`.

    Returns:
        What a reader should know.
    """
    units = prepared.plan.units
    for number, segment in enumerate(sums.segments):
        if not prepared.quiet:
            say(f"checkpoint {number + 1} of {len(sums.segments)}: step {segment.stop:,}")
        with run.weights(prepared.task.model, segment.checkpoints, at="measurements"):
            rows = row_gradients(prepared, queries, weights_GQ)
        with run.weights(prepared.task.model, segment.checkpoints):
            sums.add(number, [row * -of_unit(unit, segment.reach) for unit, row in zip(units, rows, strict=True)])
    notes = [f"TracIn over {len(sums.segments)} checkpoints of {run.steps:,} steps"]
    if any(segment.is_adaptive for segment in sums.segments):
        notes.append("TracIn takes every step for plain gradient descent: what the optimizer divides gradients by is left out")
    return notes


def _curvature(prepared: Prepared, cut: CutRun, segment: Segment) -> KroneckerCurvature:
    weights = [partial(cut.run.weights, prepared.task.model, steps) for steps in cut.groups(segment)]
    folder = None if prepared.folder is None else prepared.folder / f"segment-{segment.start}-{segment.stop}"
    online = {}
    if getattr(cut.settings, "online_bases", False):
        online = cut.run.bases(segment.checkpoints[-1])
        if not online:
            raise BadInput(
                found=f"online_bases for a run without bases after step {segment.checkpoints[-1]:,}",
                needed="one recorded with curvature=whence.runs.OnlineCurvature(task), which has bases from its fourth look on",
                do="record the run again, with looks more often if it is short (OnlineCurvature(task, every=1); 10 steps apart "
                "otherwise), or leave online_bases out",
            )
    return fit_ekfac_pooled(
        prepared.task, prepared.plan, Dataset(_met(prepared, segment)), weights, fit_of(prepared.settings), online=online,
        max_positions=prepared.max_positions, folder=folder, room_bytes=prepared.footprint.fit.group_bytes, quiet=prepared.quiet,
        ranks=prepared.ranks,
    )  # fmt: skip


def _met(prepared: Prepared, segment: Segment) -> list:
    return [example for example in prepared.train.examples if example.id in segment.shares]


def _refined(
    prepared: Prepared,
    run: Run,
    segment: Segment,
    curvature: KroneckerCurvature,
    scaling: Sequence[Scaling] | None,
    wanted: Blocks,
    settings: AstraSource,
) -> tuple[Blocks, str]:
    """ASTRA-SOURCE (Wang et al. 2025, section 4): (H + 1 / reach)^-1 with the Gauss-Newton matrix itself at the segment's mean weights.

    What is left of a change, exp(-X), stays with EK-FAC: refining it, too, showed no benefit there.
    """
    dampings = implicit_damping(prepared.plan.units, segment, scaling)
    moves = [float(damping is not None) for damping in dampings]
    values = [1.0 if damping is None else damping for damping in dampings]
    right = [row * moved for row, moved in zip(wanted, moves, strict=True)]
    examples = _met(prepared, segment)
    chosen = Dataset(examples).spread(min(settings.examples or len(examples), len(examples))).examples

    def inverse(blocks: Blocks) -> Blocks:
        by_unit = zip(curvature.blocks, blocks, values, strict=True)
        return [block.back(block.into(row) / (block.values_OI.to(row).clamp_min(0) + value)) for block, row, value in by_unit]

    with run.weights(prepared.task.model, segment.checkpoints):
        matrix = Curvature(
            prepared.task, prepared.plan, chosen, max_positions=prepared.max_positions, ranks=prepared.ranks
        )  # fmt: skip
        solution = solve_astra(
            matrix, right, values, inverse, batch_size=min(settings.batch_examples, len(chosen)),
            iterations=settings.iterations, tolerance=settings.tolerance, seed=settings.seed,
        )  # fmt: skip
    return solution.blocks, str(solution)
