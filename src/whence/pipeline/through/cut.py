"""A recorded run as a method looks at it: cut into segments, or whole."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from whence.errors import BadInput, Unsupported
from whence.pipeline.exact.footprint import Demand
from whence.settings import AstraSource, ExactSettings, Less, ReplaySettings, Source, TracIn
from whence.unroll import Run, Segment, open_run

__all__ = ["CutRun", "cut_for"]

RunSettings = Source | AstraSource | TracIn | Less | ReplaySettings
_CUT = Source | AstraSource


@dataclass(frozen=True)
class CutRun:
    """A run as a method looks at it.

    Args:
        settings: The method, and how it cuts the run.
        run: The run.
        segments: Its segments, in order; none where the run is made again.
    """

    settings: RunSettings
    run: Run
    segments: Sequence[Segment]

    @property
    def names(self) -> list[str]:
        """Of the segments."""
        return [f"steps {segment.start:,} to {segment.stop:,}" for segment in self.segments]

    @property
    def labels(self) -> list[str]:
        """For the name of a table."""
        if not isinstance(self.settings, _CUT):
            return [f"{len(self.segments)} checkpoints"]
        mean = "mean weights" if self.settings.average_weights else ""
        is_diagonal = self.settings.form == "diagonal" and any(segment.is_adaptive for segment in self.segments)
        return [f"{self.settings.segments} segments", mean, "diagonal form" if is_diagonal else ""]

    @property
    def per_segment(self) -> bool:
        """Whether the table also has each segment's part."""
        return getattr(self.settings, "per_segment", False)

    def groups(self, segment: Segment) -> list[tuple[int, ...]]:
        """The sets of checkpoints whose mean weights a segment is looked at with."""
        if getattr(self.settings, "average_weights", False):
            return [segment.checkpoints]
        return [(step,) for step in segment.checkpoints]

    def demanded(self, demand: Demand) -> Demand:
        """What is asked, with what the run adds to it."""
        parts = len(self.segments) if self.per_segment else 0
        return replace(demand, fits=len(self.segments), passes=self.passes, parts=parts)

    @property
    def passes(self) -> int:
        """Sets of weights that are looked at, each with a pass over a stage's examples."""
        return sum(len(self.groups(segment)) for segment in self.segments)


def cut_for(settings: ExactSettings) -> CutRun | None:
    """The run, for methods that need one; None for the others.

    Args:
        settings: The method.

    Raises:
        BadInput: If the form is for another kind of optimizer than the run's.
        Unsupported: If the method has no formula for the run's optimizer.
    """
    if not isinstance(settings, RunSettings):
        return None
    assert settings.run is not None
    opened = open_run(settings.run)
    if isinstance(settings, ReplaySettings):
        return CutRun(settings, opened, ())
    segments = opened.segments(settings.segments if isinstance(settings, _CUT) else len(opened.checkpoints))
    if isinstance(settings, _CUT) and settings.form == "diagonal" and not any(segment.is_adaptive for segment in segments):
        raise BadInput(
            found="form='diagonal' for a run with SGD",
            needed="an optimizer that multiplies gradients with a matrix, such as Adam",
            do="leave form out",
        )
    if isinstance(settings, AstraSource) and any(segment.averaging for segment in segments):
        raise Unsupported(
            found="astra-source for a run with a Schedule-Free optimizer",
            needed="an optimizer whose segments are each one damped inverse; an average's are not",
            do="choose method='source'",
        )
    return CutRun(settings, opened, segments)
