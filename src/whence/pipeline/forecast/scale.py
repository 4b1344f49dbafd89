"""What a build and its queries would take at a size that nobody has at hand: arithmetic on the shapes of a model, nothing is run.

Bytes are those of the codec that would write them. Times count floating-point operations and bytes and divide by stated rates; docs/scale.md
holds them against published and measured runs. Axes: T tokens of an example, O outputs, I inputs of a unit, K numbers of a row.
"""

import fnmatch
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from math import prod
from typing import Any

import torch

from whence.compress import BLOW_UP, QuantizedCodec, RowCodec, projected_shape
from whence.curvature import directions_of, resolved
from whence.errors import BadInput, UnknownOption
from whence.methods import Method, method_named
from whence.pipeline.forecast.hardware import MODEL_SHAPES, ModelShape
from whence.pipeline.stored.learn_code import FIT_EXAMPLES
from whence.pipeline.stored.shared_budget import within_budget
from whence.records import Unit
from whence.settings import GPUS, BuildConfig, Cluster, FitConfig, Load
from whence.store import curvature_numbers, row_codec

__all__ = ["ScaleForecast", "forecast_scale", "size_text", "time_text"]

# Text, id and lengths of an example, a token being four or five characters.
_TEXT_BYTES_PER_TOKEN, _TEXT_BYTES = 4.5, 100.0
# Of one hit sent to the other ranks: a score and a row.
_HIT_BYTES = 16


@dataclass(frozen=True)
class ScaleForecast:
    """What it would take.

    Args:
        model: Name of the shape, with its parameters.
        parameters: Of the model.
        tracked: Of them attributed.
        examples: Training examples.
        tokens_per_example: Of each.
        row_bytes: Of one example's row.
        store_bytes: All rows.
        text_bytes: Texts and ids beside them, about.
        shared_bytes: Curvature, or codes and their axes.
        build_operations: Of all captures, floating-point.
        build_tokens_per_second: Of one device.
        build_seconds: On the cluster: computing, or writing if that takes longer.
        fit_seconds: For the curvature before a build of method aligned, on one device, and for the sample of its axes.
        sample_seconds: Of that for the sample, which one process takes however many there are.
        fit_network_bytes: Sent by each rank if that fit is shared by all (`whence curvature`); a build sends nothing.
        scan_seconds: For all queries asked at once: reading, or multiplying if that takes longer.
        gather_bytes: Received by each rank at the end of a scan.
        memory_bytes: Of the weights in bfloat16, on every device.
        notes: What to know.
    """

    model: str
    parameters: int
    tracked: int
    examples: int
    tokens_per_example: int
    row_bytes: int
    store_bytes: int
    text_bytes: int
    shared_bytes: int
    build_operations: float
    build_tokens_per_second: float
    build_seconds: float
    fit_seconds: float
    sample_seconds: float
    fit_network_bytes: int
    scan_seconds: float
    gather_bytes: int
    memory_bytes: int
    notes: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        lines = [
            f"{self.model}, {self.parameters:,} parameters, {self.tracked:,} of them attributed",
            f"data     {self.examples:,} examples of {self.tokens_per_example:,} tokens: {self.examples * self.tokens_per_example:,}",
            f"disk     {size_text(self.store_bytes)} of rows ({self.row_bytes:,} bytes each), {size_text(self.text_bytes)} of texts, "
            f"{size_text(self.shared_bytes)} shared by all rows",
            f"build    {time_text(self.build_seconds)}, {self.build_tokens_per_second:,.0f} tokens/s a device",
            *(
                [
                    f"fit      {time_text(self.fit_seconds)} before it on one device, {time_text(self.sample_seconds)} of that for its sample"
                ]
                if self.fit_seconds
                else []
            ),
            f"query    {time_text(self.scan_seconds)} for a scan of everything",
            f"network  nothing while building; {size_text(self.gather_bytes)} a query batch"
            + (f"; {size_text(self.fit_network_bytes)} a rank if the fit is shared" if self.fit_network_bytes else ""),
            f"memory   {size_text(self.memory_bytes)} for the weights in bfloat16, on every device",
            *(f"note: {note}" for note in self.notes),
        ]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `--json` prints them."""
        return asdict(self)


def forecast_scale(
    model: str | ModelShape,
    load: Load,
    config: BuildConfig,
    cluster: Cluster,
    *,
    track: Sequence[str] = (),
    ignore: Sequence[str] = (),
) -> ScaleForecast:
    """Disk, time, network and memory of a build and of queries.

    Args:
        model: Name in `MODEL_SHAPES`, or a shape.
        load: Examples and queries.
        config: As in `build`.
        cluster: What computes and reads.
        track: Patterns of names of weights to attribute; all if there are none.
        ignore: Patterns of names to leave out.

    Returns:
        The forecast.

    Raises:
        BadInput: If a pattern leaves nothing, or anchors are given, of which there are so many as only a model can read.
        UnknownOption: If there is no such shape.
    """
    if isinstance(model, str) and model not in MODEL_SHAPES:
        raise UnknownOption(found=f"model shape {model!r}", needed=f"one of: {', '.join(MODEL_SHAPES)}", do="pick the nearest")
    if config.anchors is not None:
        raise BadInput(
            found="anchors for the shape of a model",
            needed="the model, which reads them",
            do="forecast with the model and its data, or leave anchors out",
        )
    shape = MODEL_SHAPES[model] if isinstance(model, str) else model
    method, units = method_named(config.method), _chosen(shape.units(), track, ignore)
    examples, tokens, speed = load.examples, load.tokens_per_example, cluster.operations_per_second
    sides = resolved(None, units, device=torch.device("cuda"), positions=min(examples, FIT_EXAMPLES) * tokens)
    code = None
    if method.encoder == "aligned":
        sides, code = within_budget(units, examples, config, sides)
    codec = _codec(units, method, config, None if code is None else max(choice.width for choice in code.choices))

    # Bytes. With a budget of them the sample chooses the type: at most so many.
    row_bytes = code.row_bytes if code is not None and config.bytes_per_example else codec.row_bytes()
    store_bytes, text_bytes = examples * row_bytes, int(examples * (_TEXT_BYTES_PER_TOKEN * tokens + _TEXT_BYTES))
    widths = [prod(unit_shape) for unit_shape in codec.shapes]
    curvature_bytes = 4 * curvature_numbers(method, codec.shapes, config.curvature_rank or method.curvature_rank)

    # Operations: of the network and of what turns its pairs into a row; of a fit before it; of a scan.
    compress = _compress_operations(units, codec, config, tokens)
    if code is not None:
        compress += tokens * _turn_operations(units, sides) + 2.0 * code.coordinates * prod(codec.shapes[0])
    per_example = tokens * shape.network_operations(tokens) + compress
    fit = _Fit(0.0, 0.0, 0) if code is None else _fit(units, shape, load, sides, code.samples * per_example)
    multiplying = 2.0 * examples * sum(widths) * load.queries / speed

    # Times: whatever is slower, the arithmetic or the disk.
    computing, writing = examples * per_example / speed, (store_bytes + text_bytes) / (cluster.disk_gbps * 1e9)
    reading = store_bytes / (cluster.disk_gbps * 1e9)
    memory, room = 2 * shape.parameters, GPUS[cluster.gpu][1] * 1e9
    note = f"weights alone exceed the {room / 1e9:,.0f} GB of a {cluster.gpu}: they have to be spread over devices"
    is_many = cluster.gpus > 1
    return ScaleForecast(
        model=model if isinstance(model, str) else "a model",
        parameters=shape.parameters,
        tracked=sum(unit.outputs * unit.inputs for unit in units),
        examples=examples,
        tokens_per_example=tokens,
        row_bytes=row_bytes,
        store_bytes=store_bytes,
        text_bytes=text_bytes,
        shared_bytes=curvature_bytes if code is None else code.shared_bytes,
        build_operations=examples * per_example,
        build_tokens_per_second=tokens * speed / per_example,
        build_seconds=max(computing, writing) / cluster.gpus,
        fit_seconds=fit.operations / speed,
        sample_seconds=fit.sample_operations / speed,
        # A ring sends every number of a sum twice.
        fit_network_bytes=2 * fit.sum_bytes if is_many else 0,
        scan_seconds=max(reading, multiplying) / cluster.gpus,
        gather_bytes=2 * load.k * load.queries * _HIT_BYTES * cluster.gpus if is_many else 0,
        memory_bytes=memory,
        notes=(note,) if memory > room else (),
    )


@dataclass(frozen=True)
class _Fit:
    """What the curvature before a build takes: operations, those of its sample among them, and bytes of its sums."""

    operations: float
    sample_operations: float
    sum_bytes: int


def _fit(units: Sequence[Unit], shape: ModelShape, load: Load, sides: FitConfig, sample_operations: float) -> _Fit:
    """Two passes, one with half a square per side for second moments and one that turns every gradient, and the sample's third."""
    tracked = sum(unit.outputs * unit.inputs for unit in units)
    both = 2 * shape.network_operations(load.tokens_per_example) + 1.5 * _turn_operations(units, sides) + 2.0 * tracked
    operations = min(load.examples, FIT_EXAMPLES) * load.tokens_per_example * both + sample_operations
    moments = [size * (1 + directions_of(size, sides)) for unit in units for size in (unit.outputs, unit.inputs)]
    return _Fit(operations, sample_operations, 4 * (tracked + sum(moments)))


def _chosen(units: list[Unit], track: Sequence[str], ignore: Sequence[str]) -> list[Unit]:
    for pattern in (*track, *ignore):
        if not any(fnmatch.fnmatch(unit.name, pattern) for unit in units):
            raise BadInput(
                found=f"the pattern {pattern!r}, which matches no weight",
                needed=f"a pattern for names such as {units[1].name}",
                do="correct it",
            )
    chosen = [unit for unit in units if not track or any(fnmatch.fnmatch(unit.name, pattern) for pattern in track)]
    chosen = [unit for unit in chosen if not any(fnmatch.fnmatch(unit.name, pattern) for pattern in ignore)]
    if not chosen:
        raise BadInput(found="patterns that leave no weight", needed="at least one", do="correct track and ignore")
    return chosen


def _codec(units: Sequence[Unit], method: Method, config: BuildConfig, width: int | None) -> RowCodec | QuantizedCodec:
    """What would write the rows."""
    rank = config.rank or method.rank
    shapes = [projected_shape(unit, rank, config.side_divisor) for unit in units]
    names = [unit.name for unit in units]
    if method.is_joined:
        shapes, names = [(1, width or rank)], ["all"]
    factor_rank = config.factor_rank or method.factor_rank
    return row_codec(names, shapes, factor_rank, method.dtype if config.dtype == "method" else config.dtype, config.seed)


def _compress_operations(units: Sequence[Unit], codec: RowCodec | QuantizedCodec, config: BuildConfig, tokens: int) -> float:
    """What turns one example's pairs into a row, on top of the network; for method aligned the gradients only."""
    method, blow_up = method_named(config.method), config.blow_up or BLOW_UP
    gradients = 2.0 * tokens * sum(unit.outputs * unit.inputs for unit in units)
    width = prod(codec.shapes[0])
    if method.encoder == "aligned":
        return gradients
    if method.encoder == "whole":
        return gradients + gradients / tokens * width
    if method.encoder == "entries":
        return 2.0 * tokens * blow_up * width
    shapes = [(p, r) for p, r in codec.shapes]
    if method.encoder == "channels":  # picked, not multiplied
        return sum(2.0 * tokens * blow_up * p * r for p, r in shapes)
    if method.encoder != "sides":
        raise NotImplementedError(method.encoder)
    sides = sum(2.0 * (unit.outputs * p + unit.inputs * r) for unit, (p, r) in zip(units, shapes, strict=True))
    return tokens * (sides + sum(2.0 * p * r for p, r in shapes))


def _turn_operations(units: Sequence[Unit], fit: FitConfig) -> float:
    """What turns both sides of every unit's pair into the curvature's bases, per token."""
    sides = [(side, directions_of(side, fit)) for unit in units for side in (unit.outputs, unit.inputs)]
    return sum((2.0 if width == side else 4.0) * side * width for side, width in sides)


def size_text(count: float) -> str:
    """Bytes for people.

    >>> size_text(3.58e12)
    '3.58 TB'
    """
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} PB"


def time_text(seconds: float) -> str:
    """A time for people.

    >>> time_text(9000)
    '2.5 h'
    """
    for unit, length in (("years", 365 * 86400.0), ("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:,.2g} s"
