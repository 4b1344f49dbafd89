"""What a build would take, before it runs."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from whence.capture import Coverage, Forecast, Plan, forecast, plan_units
from whence.compress import Encoder, numbers_held
from whence.curvature import basis_notes, basis_plan, directions_of
from whence.data import Dataset
from whence.methods import method_named
from whence.pipeline.forecast.code import timed_code, timed_fidelity
from whence.pipeline.forecast.timing import positions_of, timed, timed_sample
from whence.pipeline.inputs import as_dataset, autocast_named
from whence.pipeline.stored.anchors import with_anchors
from whence.pipeline.stored.build import make_blueprint
from whence.pipeline.stored.code_size import CodeSize
from whence.pipeline.stored.encoders import random_encoder
from whence.pipeline.stored.fidelity import FIDELITY_DOCUMENTS
from whence.pipeline.stored.learn_code import CHUNK_NUMBERS, sized_code
from whence.pipeline.stored.shared_budget import budget_note
from whence.progress import meter
from whence.score import Batching, examples_at_once, gradient_rows
from whence.settings import BuildConfig, FitConfig
from whence.store import DiskBytes
from whence.store.examples import example_line
from whence.tasks import AbstractTask

__all__ = ["BuildForecast", "forecast_build"]


# Of so many examples the texts are counted.
_LINES = 1000


@dataclass(frozen=True)
class BuildForecast:
    """What a build would take.

    Args:
        coverage: What would be attributed.
        memory: What a batch takes, measured on the longest example.
        rows: Training examples.
        row_bytes: On disk, per example.
        shared_bytes: On disk, for the curvature and learned axes.
        text_bytes: On disk, for ids and texts of the examples.
        learning_bytes: Of memory, besides a batch, while axes are learned.
        rows_per_shard: Rows in a file.
        seconds: For the rows, from a batch on this machine; the curvature of finished rows comes on top.
        learning_seconds: Before them, for the curvature and the axes of method aligned.
        fidelity_seconds: After them, for exact scores that stored ones are held against.
        fidelity_bytes: Of memory, besides a batch, for these.
        encoding_bytes: Of memory, besides a batch, while rows are made: the curvature, the axes and a batch's whitened gradients.
        cut_bases: Sides of units that are too long for all of their eigenvectors, and what they would have instead.
        budget: What is given up so that all rows share no more than is proper; empty if nothing is.
    """

    coverage: Coverage
    memory: Forecast
    rows: int
    row_bytes: int
    shared_bytes: int
    text_bytes: int
    learning_bytes: int
    rows_per_shard: int
    seconds: float
    learning_seconds: float = 0.0
    fidelity_seconds: float = 0.0
    fidelity_bytes: int = 0
    encoding_bytes: int = 0
    cut_bases: tuple[str, ...] = ()
    budget: str = ""

    def __str__(self) -> str:
        disk = f"disk: {self.disk_bytes}; {self.rows:,} rows in shards of {self.rows_per_shard:,}"
        if self.learning_bytes:
            encoding = f"{self.encoding_bytes / 2**20:,.0f} while rows are made"
            more = f"memory: {self.learning_bytes / 2**20:,.0f} MiB more while axes are learned, {encoding}"
            exact = f", {self.fidelity_bytes / 2**20:,.0f} while stored scores are held against exact ones"
            disk = f"{more}{exact if self.fidelity_bytes else ''}\n{disk}"
        before = f"{self.learning_seconds:,.0f} s for the curvature and the code, then " if self.learning_bytes else ""
        after = f" and {self.fidelity_seconds:,.0f} s to hold stored scores against exact ones" if self.fidelity_seconds else ""
        time = f"time: about {before}{self.seconds:,.0f} s for the rows{after}"
        return "\n".join(
            (
                str(self.coverage),
                str(self.memory),
                disk,
                time,
                *([self.budget] if self.budget else []),
                *basis_notes(self.cut_bases),
            )
        )

    @property
    def disk_bytes(self) -> DiskBytes:
        """What the store would take on disk."""
        own = self.rows * self.row_bytes
        return DiskBytes(row_bytes=self.row_bytes, rows=own, texts=self.text_bytes, shared=self.shared_bytes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `--json` prints them."""
        return {
            "tracked_parameters": self.coverage.tracked,
            "parameters": self.coverage.total,
            "peak_memory_bytes": self.memory.peak_bytes,
            "available_memory_bytes": self.memory.available_bytes,
            "batch_positions": self.memory.batch_positions,
            "rows": self.rows,
            "row_bytes": self.row_bytes,
            "curvature_bytes": self.shared_bytes,
            "learning_memory_bytes": self.learning_bytes,
            "fidelity_memory_bytes": self.fidelity_bytes,
            "encoding_memory_bytes": self.encoding_bytes,
            "disk_bytes": self.disk_bytes.to_dict(),
            "rows_per_shard": self.rows_per_shard,
            "gradient_seconds": self.seconds,
            "learning_seconds": self.learning_seconds,
            "fidelity_seconds": self.fidelity_seconds,
            "cut_bases": list(self.cut_bases),
            "budget": self.budget,
        }


def forecast_build(task: AbstractTask, data: Dataset | Iterable[Any], config: BuildConfig) -> BuildForecast:
    """Memory, disk and time of a build; runs a few examples, writes nothing.

    Args:
        task: Model and per-example loss.
        data: As in `build`.
        config: As in `build`.

    Returns:
        The forecast.
    """
    dataset, config = as_dataset(task, data), with_anchors(task, config)
    plan = plan_units(task)
    autocast = autocast_named(config.autocast)
    memory = forecast(task, plan, dataset.examples, autocast=autocast)
    positions = config.positions(example.length for example in dataset.examples) or memory.batch_positions
    encoder: Encoder = random_encoder(plan, config, task.device)
    is_aligned = method_named(config.method).encoder == "aligned"
    fit, code = sized_code(task, plan, dataset, config) if is_aligned else (FitConfig(), None)
    blueprint = make_blueprint(task, plan, encoder, config, positions, "")
    sample = timed_sample(dataset, positions, plan.coverage.tracked)
    codec, before, exact_seconds, exact_bytes = blueprint.codec(), 0.0, 0.0, 0
    if code is not None:
        before, encoder = timed_code(task, plan, dataset, sample, config, fit, code, positions)
        if config.anchors is None:
            exact_seconds, exact_bytes = timed_fidelity(task, plan, encoder, dataset, sample, positions)

    def rows() -> None:
        with meter("", len(sample), quiet=True) as progress:
            rows = gradient_rows(
                task, plan, encoder, sample, batching=Batching(positions), progress=progress, autocast=autocast
            )
        if code is None:
            codec.encode(rows.units)

    per_position = timed(rows)[1] / sum(example.length for example in sample)
    # Stored scores are made of rows of their own.
    scored = dataset.spread(FIDELITY_DOCUMENTS).examples if exact_seconds else []
    after = exact_seconds + per_position * positions_of(scored)
    # What was learned is there twice: as it goes to disk, and as it is used.
    learned_bytes = 0 if code is None else 2 * code.shared_bytes
    together = min(examples_at_once(encoder), max(1, positions * len(sample) // max(1, positions_of(sample))), len(dataset))
    return BuildForecast(
        coverage=plan.coverage,
        memory=memory,
        rows=len(dataset),
        row_bytes=codec.row_bytes() if code is None else code.row_bytes,
        shared_bytes=blueprint.curvature_bytes(len(dataset)) if code is None else code.shared_bytes,
        text_bytes=_text_bytes(dataset),
        learning_bytes=0 if code is None else code.sample_bytes + _learning_bytes(plan, code, fit),
        rows_per_shard=blueprint.rows_per_shard,
        seconds=per_position * sum(example.length for example in dataset.examples),
        learning_seconds=before,
        fidelity_seconds=after,
        fidelity_bytes=learned_bytes + exact_bytes if exact_bytes else 0,
        encoding_bytes=0 if code is None else learned_bytes + 4 * (plan.coverage.tracked + together * numbers_held(encoder)),
        cut_bases=tuple(basis_plan(plan.units, fit)) if is_aligned else (),
        budget="" if code is None else budget_note(plan.units, config, fit, code),
    )


def _text_bytes(dataset: Dataset) -> int:
    """Of the lines that say what examples are, by some of them."""
    some = dataset.spread(min(_LINES, len(dataset))).examples
    return sum(len(example_line(example)) for example in some) * len(dataset) // max(len(some), 1)


def _learning_bytes(plan: Plan, code: CodeSize, fit: FitConfig) -> int:
    """Of memory beside the sample and its axes: the curvature, its half and its bases, and the gradients that are on their way."""
    parameters = sum(unit.outputs * unit.inputs for unit in plan.units)
    bases = sum(size * directions_of(size, fit) for unit in plan.units for size in (unit.outputs, unit.inputs))
    return 4 * (2 * parameters + bases + min(code.samples * code.coordinates, max(CHUNK_NUMBERS, code.coordinates)))
