"""Scores through a recorded run: every segment's gradients, at its own checkpoints, times the query carried back to it.

Axes: Q queries, N training examples, U units, T positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from whence.capture import Blocks
from whence.curvature import FitConfig, KroneckerCurvature, fit_ekfac_pooled, scaled
from whence.data import Dataset
from whence.errors import BadInput, OutOfMemory, UnknownOption
from whence.pipeline.asked import query_gradients
from whence.pipeline.prepare import Prepared
from whence.progress import meter, say
from whence.score import ExactScores, combine, exact_scores
from whence.unroll import Form, Run, Segment, carry, scaling_of

__all__ = ["UnrollConfig", "source_scores"]


@dataclass(frozen=True, kw_only=True)
class UnrollConfig:
    """How a recorded run is cut.

    Args:
        segments: Per stage of the run. Within one, curvature and gradients are taken as constant; a stage with fewer checkpoints has as
            many segments as checkpoints.
        average_weights: Whether one fit and one pass at the mean of a segment's weights replace those at each of its checkpoints
            (FAST-SOURCE, Bae et al. 2024, appendix F).
        form: For optimizers that multiply gradients with a matrix, such as Adam: "full" takes the exponential of the whole product of that
            matrix and the curvature, "diagonal" of its diagonal (Bae et al. 2024, equation 43).

    Raises:
        BadInput: If `segments` is not positive.
        UnknownOption: If there is no such form.
    """

    segments: int = 3
    average_weights: bool = False
    form: Form = "full"

    def __post_init__(self):
        if self.segments < 1:
            raise BadInput(found=f"segments={self.segments}", needed="1 or more", do="correct it")
        if self.form not in get_args(Form):
            raise UnknownOption(found=f"form={self.form!r}", needed="one of: full, diagonal", do="pick one")


def source_scores(
    ready: Prepared,
    run: Run,
    queries: Dataset,
    config: UnrollConfig,
    fit: FitConfig,
    *,
    factors: Path | None,
    weights_GQ: Tensor | None,
    per_unit: bool,
    tokens: Sequence[int],
) -> tuple[ExactScores, list[str]]:
    """SOURCE (Bae et al. 2024): score = -sum over segments of share_i w_l^T grad loss_i, w_l the query carried back to segment l.

    Args:
        ready: Checked task and data, with the weights that the run ended with.
        run: The run.
        queries: The queries.
        config: How it is cut.
        fit: How curvature is fitted.
        factors: Folder where it is kept.
        weights_GQ: Weights of the sums of queries to score instead of the queries.
        per_unit: Whether to keep each unit's part.
        tokens: Places of examples of which each position's part is wanted.

    Returns:
        The scores, and what a reader should know.

    Raises:
        OutOfMemory: If the queries do not fit at once: they are carried back together.
    """
    need = ready.footprint
    if need.rows_at_once < need.rows:
        raise OutOfMemory(
            found=f"room for {need.rows_at_once:,} of {need.rows:,} queries at a time",
            needed="room for all, since a segment's curvature is fitted once for them",
            do="ask fewer queries at a time; with factors='folder' the fits are used again",
        )
    unseen = run.check(ready.task.model, ready.train)
    segments = run.segments(config.segments)
    rows = [row.to(ready.task.device) for row in query_gradients(ready, queries)]
    if weights_GQ is not None:
        rows = combine(rows, weights_GQ)
    sums = _Sums(ready, len(rows[0]), per_unit, tokens)
    for number in reversed(range(len(segments))):
        segment = segments[number]
        if not ready.quiet:
            say(f"segment {number + 1} of {len(segments)}: steps {segment.start:,} to {segment.stop:,}")
        folder = None if factors is None else factors / f"segment-{segment.start}-{segment.stop}"
        curvature = _curvature(ready, run, segment, config, fit, folder)
        scaling = scaling_of(run, ready.plan, segment.checkpoints, ready.task.device) if segment.is_adaptive else None
        found, rows = carry(curvature, segment, rows, scaling, config.form)
        groups = _groups(segment, config)
        for steps in groups:
            with run.weights(ready.task.model, steps):
                sums.add(segment, scaled(found, -1.0 / len(groups)))
    notes = [
        f"SOURCE over {len(segments)} segments of {run.steps:,} steps, {'mean weights of ' if config.average_weights else ''}"
        f"{sum(len(segment.checkpoints) for segment in segments)} checkpoints"
    ]
    if unseen:
        notes.append(f"{len(unseen):,} examples that the run never met score 0, the first {unseen[0]!r}")
    return sums.finished(), notes


def _groups(segment: Segment, config: UnrollConfig) -> list[tuple[int, ...]]:
    """The sets of weights that a segment is looked at with."""
    return [segment.checkpoints] if config.average_weights else [(step,) for step in segment.checkpoints]


def _curvature(
    ready: Prepared, run: Run, segment: Segment, config: UnrollConfig, fit: FitConfig, folder: Path | None
) -> KroneckerCurvature:
    data = Dataset([example for example in ready.train.examples if example.id in segment.shares])
    weights = [partial(run.weights, ready.task.model, steps) for steps in _groups(segment, config)]
    return fit_ekfac_pooled(
        ready.task, ready.plan, data, weights, fit, max_positions=ready.max_positions, folder=folder, quiet=ready.quiet
    )


class _Sums:
    """Adds up scores over the passes, each over the examples of a segment."""

    def __init__(self, ready: Prepared, rows: int, per_unit: bool, tokens: Sequence[int]):
        self.ready, self.per_unit, self.places = ready, per_unit, set(tokens)
        units = len(ready.plan.units) if per_unit else 1
        self.scores_UQN = torch.zeros(units, rows, len(ready.train), dtype=torch.float64)
        lengths = {place: ready.train.examples[place].length for place in tokens}
        self.tokens = {place: torch.zeros(rows, length, dtype=torch.float64) for place, length in lengths.items()}

    def add(self, segment: Segment, blocks: Blocks) -> None:
        """One pass at the weights that the model has now."""
        ready = self.ready
        order = [place for place, example in enumerate(ready.train.examples) if example.id in segment.shares]
        chosen = [ready.train.examples[place] for place in order]
        shares_N = torch.tensor([segment.shares[example.id] for example in chosen], dtype=torch.float64)
        with meter("scan", len(chosen), quiet=ready.quiet) as progress:
            found = exact_scores(
                ready.task, ready.plan, chosen, blocks, max_positions=ready.max_positions, progress=progress,
                per_unit=self.per_unit, tokens=[number for number, place in enumerate(order) if place in self.places],
            )  # fmt: skip
        part_UQN = found.scores_QN[None] if found.units_UQN is None else found.units_UQN
        self.scores_UQN[:, :, order] += part_UQN * shares_N
        for number, parts_QT in found.tokens.items():
            self.tokens[order[number]] += parts_QT * shares_N[number]

    def finished(self) -> ExactScores:
        """All of it."""
        return ExactScores(self.scores_UQN.sum(0), self.scores_UQN if self.per_unit else None, self.tokens, None)
