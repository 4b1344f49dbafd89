"""Attribution through a recorded run, for whichever method: opened, cut, checked, and done a few queries at a time where memory is short.

Axes: Q queries, G groups of queries.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from whence.curvature import FitConfig
from whence.data import Dataset
from whence.errors import BadInput, OutOfMemory, Unsupported
from whence.methods import exact_method_named
from whence.pipeline.exact.chunks import Chunk, in_chunks, question
from whence.pipeline.exact.footprint import Demand
from whence.pipeline.exact.precondition import SolveConfig
from whence.pipeline.exact.prepare import Prepared
from whence.pipeline.through.config import RunSums, UnrollConfig
from whence.pipeline.through.source import source_scores, tracin_scores
from whence.score import ExactScores
from whence.unroll import Run, Segment, open_run

__all__ = ["CutRun", "cut_for", "refuse_unused", "through_run"]


@dataclass(frozen=True)
class CutRun:
    """A run as a method looks at it.

    Args:
        method: Which method.
        run: The run.
        segments: Its segments, in order; none where the run is made again.
        config: How it was cut.
    """

    method: str
    run: Run
    segments: Sequence[Segment]
    config: UnrollConfig

    @property
    def names(self) -> list[str]:
        """Of the segments."""
        return [f"steps {segment.start:,} to {segment.stop:,}" for segment in self.segments]

    @property
    def settings(self) -> list[str]:
        """For the name of a table."""
        if exact_method_named(self.method).factors is None:
            return [f"{len(self.segments)} checkpoints"]
        mean = "mean weights" if self.config.average_weights else ""
        is_diagonal = self.config.form == "diagonal" and any(segment.is_adaptive for segment in self.segments)
        return [f"{self.config.segments} segments", mean, "diagonal form" if is_diagonal else ""]

    def demanded(self, demand: Demand) -> Demand:
        """What is asked, with what the run adds to it."""
        parts = len(self.segments) if self.config.per_segment else 0
        return replace(demand, fits=len(self.segments), passes=self.passes, parts=parts)

    @property
    def passes(self) -> int:
        """Sets of weights that are looked at, each with a pass over a stage's examples."""
        return sum(len(self.config.groups(segment)) for segment in self.segments)


def cut_for(method: str, run: str | Path | None, unrolling: UnrollConfig, unused: Mapping[str, Any]) -> CutRun | None:
    """The run, for methods that need one; None for the others.

    Args:
        method: Which method.
        run: Its folder.
        unrolling: How it is cut.
        unused: Arguments, by name, that a method with a run has no use for; None where they were not given.

    Raises:
        BadInput: If a run or what belongs to one is given to a method that has no use for it, or the other way round.
    """
    chosen = exact_method_named(method)
    if not chosen.needs_run:
        if run is not None or unrolling != UnrollConfig():
            raise BadInput(
                found=f"a recorded run, or how to cut it, for {method}",
                needed="a method that goes back through training",
                do="leave run and unrolling out, or pass method='source'",
            )
        return None
    given = [name for name, value in unused.items() if value is not None]
    if given:
        raise BadInput(
            found=f"{', '.join(given)} for {method}", needed="what the recorded run says instead", do=f"leave {given[0]} out"
        )
    if chosen.factors is None and method != "unroll" and unrolling != UnrollConfig(per_segment=unrolling.per_segment):
        raise BadInput(
            found=f"segments, average_weights or form for {method}",
            needed="a method with segments: this one looks at every checkpoint by itself",
            do="leave them out, or pass method='source'",
        )
    if run is None:
        raise BadInput(
            found=f"method={method!r} without a run",
            needed="the folder of a recorded training run",
            do="record one with whence.Recorder and pass run='folder' (--run FOLDER)",
        )
    opened = open_run(run)
    if method == "unroll":
        return CutRun(method, opened, (), unrolling)
    segments = opened.segments(unrolling.segments if chosen.factors else len(opened.checkpoints))
    if unrolling.form == "diagonal" and not any(segment.is_adaptive for segment in segments):
        raise BadInput(
            found="form='diagonal' for a run with SGD",
            needed="an optimizer that multiplies gradients with a matrix, such as Adam",
            do="leave form out",
        )
    return CutRun(method, opened, segments, unrolling)


def refuse_unused(
    config: FitConfig, factors: str | Path | None, unrolling: UnrollConfig, per_unit: bool, tokens_of: Sequence[str]
) -> None:
    """A derivative of the run itself is fitted with nothing and cut nowhere.

    Raises:
        BadInput: If something is set that it has no use for.
    """
    given = {
        "a setting of the curvature": config != FitConfig(),
        "factors": factors is not None,
        "unrolling": unrolling != UnrollConfig(),
        "per_unit": per_unit,
        "tokens_of": bool(tokens_of),
    }
    for name, is_given in given.items():
        if is_given:
            raise BadInput(
                found=f"{name} for unroll",
                needed="a run and nothing else: it has no curvature and no segments, and scores whole examples",
                do="leave it out, or pass method='source'",
            )


def through_run(
    ready: Prepared,
    cut: CutRun,
    queries: Dataset,
    fit: FitConfig,
    solving: SolveConfig,
    *,
    weights_GQ: Tensor | None,
    per_unit: bool,
    tokens: Sequence[int],
) -> tuple[ExactScores, list[str]]:
    """Scores through a run.

    Args:
        ready: Checked task and data, with the weights that the run ended with.
        cut: The run.
        queries: The queries.
        fit: How curvature is fitted.
        solving: For a method with a solver.
        weights_GQ: Weights of the sums of queries to score instead of the queries.
        per_unit: Whether to keep each unit's part.
        tokens: Places of examples of which each position's part is wanted.

    Returns:
        The scores, and what a reader should know.

    Raises:
        BadInput: If parts by unit and by segment are both asked for.
        Unsupported: If tracked parameters were moved by an optimizer that was not recorded.
        OutOfMemory: If the queries do not fit at once and the curvature would be fitted again for every few of them.
    """
    if per_unit and cut.config.per_segment:
        raise BadInput(
            found="per_unit with per_segment",
            needed="one of them: the parts of a table add up to it",
            do="ask for each by itself",
        )
    need = ready.footprint
    if need.rows_at_once < need.rows and ready.method.factors is not None and ready.folder is None:
        raise OutOfMemory(
            found=f"room for {need.rows_at_once:,} of {need.rows:,} queries at a time",
            needed="room for all, or a place where each segment's curvature is kept between them",
            do="pass factors='folder', or ask fewer queries at a time",
        )
    moved = cut.run.unrecorded(name for unit in ready.plan.units for name in unit.parameters)
    if moved:
        raise Unsupported(
            found=f"a run whose {moved[0]!r} moved though the recorded optimizer never stepped it",
            needed="one optimizer for every tracked parameter: what others did was not recorded",
            do="leave such parameters out with ignore=[...] to the task, as if they had been given",
        )
    unseen = cut.run.check(ready.task.model, ready.train)

    def make(rows: range) -> Chunk:
        some = queries if weights_GQ is not None else Dataset(queries.examples[rows.start : rows.stop])
        weights = None if weights_GQ is None else weights_GQ[rows.start : rows.stop]
        sums = RunSums(
            ready, len(rows), cut.segments, per_segment=cut.config.per_segment, per_unit=per_unit, tokens=tokens
        )  # fmt: skip
        if ready.method.factors is None:
            notes = tracin_scores(ready, cut.run, some, sums, weights_GQ=weights)
        else:
            notes = source_scores(
                ready, cut.run, some, sums, cut.config, fit, solving, factors=ready.folder, weights_GQ=weights
            )  # fmt: skip
        return sums.finished().to_tensors(), notes

    def identity() -> dict[str, Any]:
        return question(
            ready, queries, [],
            run=[kept["sha256"] for kept in (*cut.run.record["logs"], *cut.run.record["checkpoints"])],
            unrolling=asdict(cut.config), fit=asdict(fit), solving=asdict(solving), per_unit=per_unit, tokens=list(tokens),
            groups=None if weights_GQ is None else weights_GQ.tolist(),
        )  # fmt: skip

    chunks = in_chunks(ready, make, identity)
    notes = list(dict.fromkeys(note for _, said in chunks for note in said))
    if unseen:
        notes.append(f"{len(unseen):,} examples that the run never met score 0, the first {unseen[0]!r}")
    if cut.run.record.get("fingerprint") is None:
        notes.append(
            "examples were compared with the run's by id only; a recorder given data=task.prepare(records) compares contents"
        )
    return ExactScores.joined([tensors for tensors, _ in chunks]), notes
