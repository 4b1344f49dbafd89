"""Attribution through a recorded run, for whichever method: opened, cut, checked, and done a few queries at a time where memory is short.

Axes: Q queries, G groups of queries.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from whence.data import Dataset
from whence.errors import BadInput, OutOfMemory, Unsupported
from whence.pipeline.exact.chunks import Chunk, in_chunks, question
from whence.pipeline.exact.prepare import Prepared
from whence.pipeline.through.cut import CutRun
from whence.pipeline.through.less import less_scores
from whence.pipeline.through.run_sums import RunSums
from whence.pipeline.through.source import source_scores, tracin_scores
from whence.score import ExactScores
from whence.settings import Less
from whence.unroll import check_contents, check_loss

__all__ = ["through_run"]


def through_run(
    prepared: Prepared,
    cut: CutRun,
    queries: Dataset,
    *,
    weights_GQ: Tensor | None,
    per_unit: bool,
    tokens: Sequence[int],
) -> tuple[ExactScores, list[str]]:
    """Scores through a run.

    Args:
        prepared: Checked task and data, with the weights that the run ended with.
        cut: The run.
        queries: The queries.
        weights_GQ: Weights of the sums of queries to score instead of the queries.
        per_unit: Whether to keep each unit's part.
        tokens: Places of examples of which each position's part is wanted.

    Returns:
        The scores, and what a reader should know.

    Raises:
        Unsupported: If tracked parameters were moved by an optimizer that was not recorded.
        OutOfMemory: If the queries do not fit at once and the curvature would be fitted again for every few of them.
    """
    _refuse_parts(cut, per_unit=per_unit, tokens=tokens)
    is_less = isinstance(cut.settings, Less)
    need = prepared.footprint
    if need.rows_at_once < need.rows and prepared.method.factors is not None and prepared.folder is None:
        raise OutOfMemory(
            found=f"room for {need.rows_at_once:,} of {need.rows:,} queries at a time",
            needed="room for all, or a place where each segment's curvature is kept between them",
            do="write factors='folder' into the method, or ask fewer queries at a time",
        )
    moved = cut.run.unrecorded(name for unit in prepared.plan.units for name in unit.parameters)
    if moved:
        raise Unsupported(
            found=f"a run whose {moved[0]!r} moved though the recorded optimizer never stepped it",
            needed="one optimizer for every tracked parameter: what others did was not recorded",
            do="leave such parameters out with ignore=[...] to the task, as if they had been given",
        )
    unseen = cut.run.check(prepared.task.model, prepared.train)
    any_loss = getattr(cut.settings, "any_loss", False)
    said_before = cut.run.check_computed(prepared.task.model)
    contents = check_contents(prepared.task, prepared.train, cut.run, may_differ=any_loss)
    if not any_loss:
        said_before += check_loss(
            prepared.task, prepared.train, cut.run,
            max_positions=prepared.max_positions, quiet=prepared.quiet, labels=contents.labels,
        )  # fmt: skip
    else:
        said_before.append("whether the task's loss is the one that the run lowered was not compared, as asked")

    def make(rows: range) -> Chunk:
        some = queries if weights_GQ is not None else Dataset(queries.examples[rows.start : rows.stop])
        weights = None if weights_GQ is None else weights_GQ[rows.start : rows.stop]
        if is_less:
            scores, notes = less_scores(prepared, cut, some, weights_GQ=weights)
            return scores.to_tensors(), notes
        sums = RunSums(
            prepared, len(rows), cut.segments, per_segment=cut.per_segment, per_unit=per_unit, tokens=tokens
        )  # fmt: skip
        if prepared.method.factors is None:
            notes = tracin_scores(prepared, cut.run, some, sums, weights_GQ=weights)
        else:
            notes = source_scores(prepared, cut, some, sums, weights_GQ=weights)
        return sums.finished().to_tensors(), notes

    def identity() -> dict[str, Any]:
        return question(
            prepared, queries, [],
            run=cut.run.digest,
            per_unit=per_unit, tokens=list(tokens),
            groups=None if weights_GQ is None else weights_GQ.tolist(),
        )  # fmt: skip

    chunks = in_chunks(prepared, make, identity)
    notes = [
        *dict.fromkeys(note for _, chunk_notes in chunks for note in chunk_notes),
        *said_before,
        *([] if is_less else cut.run.notes_of_data(unseen)),
        *contents.notes,
    ]
    return ExactScores.joined([tensors for tensors, _ in chunks]), notes


def _refuse_parts(cut: CutRun, *, per_unit: bool, tokens: Sequence[int]) -> None:
    """Refuse parts that do not add up to the table.

    Raises:
        BadInput: If parts by unit and by segment are both asked for, or the method has none.
    """
    if isinstance(cut.settings, Less) and (per_unit or tokens):
        raise BadInput(
            found=f"{'per_unit' if per_unit else 'tokens_of'} for less",
            needed="whole examples: what an optimizer makes of a gradient is no sum of what it makes of its parts",
            do="leave it out, or pass method='tracin'",
        )
    if per_unit and cut.per_segment:
        raise BadInput(
            found="per_unit with per_segment",
            needed="one of them: the parts of a table add up to it",
            do="ask for each by itself",
        )
