"""The verb that says beforehand what a run would take."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from whence.commands.build import Flat
from whence.commands.early import check_along
from whence.commands.shared import Json
from whence.commands.task_options import Reading, TaskOptions
from whence.commands.work_options import DeviceOptions, OnDevice, flags_given, refuse_given
from whence.errors import BadInput
from whence.settings import BuildConfig, Cluster, Load, Runtime, check_memory, exact_settings
from whence.terminal import tell, tell_json

__all__ = ["forecast"]


@dataclass(frozen=True, kw_only=True)
class ExactForecastOptions:
    """An exact run instead of a build.

    Args:
        exact: An exact method of `whence methods`, as --method of attribute, instead of a build.
        queries: As in attribute; for --exact.
        query_rank: As in attribute.
        largest_side: As in attribute.
        memory_gib: As in attribute.
        run: As in attribute; without --exact as in build.
        checkpoints: The same.
        members: As in attribute.
        segments: As in attribute.
    """

    exact: str | None = None
    queries: str | None = None
    query_rank: int | None = None
    largest_side: int | None = None
    memory_gib: float | None = None
    run: Path | None = None
    checkpoints: int | None = None
    members: int | None = None
    segments: int | None = None

    def given(self) -> dict[str, Any]:
        """What was said of the method, by name, without the folder of a fit, which a build has, too."""
        return {name: value for name, value in asdict(self).items() if name not in ("exact", "queries", "memory_gib")}


@dataclass(frozen=True, kw_only=True)
class SizeOptions:
    """Sizes of a model and of data that are not at hand.

    Args:
        model_shape: Sizes of a known model: llama-1b, llama-8b, llama-70b, olmo-1b, olmo-7b or olmo-32b.
        examples: Training examples, such as 1e9; for --model-shape, as all that follow.
        tokens_per_example: Of every example.
        num_queries: Asked at once.
        cluster: What it would run on.
    """

    model_shape: str | None = None
    examples: float | None = None
    tokens_per_example: int = Load.tokens_per_example
    num_queries: int = Load.queries
    cluster: Annotated[Cluster, Parameter(name="*")] = Cluster()


def forecast(
    model: str | None = None,
    data: str | None = None,
    *,
    exact: Annotated[ExactForecastOptions, Parameter(name="*")] = ExactForecastOptions(),
    sizes: Annotated[SizeOptions, Parameter(name="*")] = SizeOptions(),
    machine: OnDevice = DeviceOptions(),
    as_json: Json = False,
    reading: Reading = TaskOptions(),
    config: Flat = BuildConfig(),
) -> None:
    """Say what a build would take in memory, disk and time, without building; or, with --exact, what `whence attribute` would take.

    With --model-shape and --examples instead of a model and data, nothing is run: arithmetic for a size that is not at hand, on so many GPUs.

    Args:
        model: As in build.
        data: As in build.
        exact: An exact run instead of a build.
        sizes: Sizes instead of a model and data, and what it would run on.
        machine: Where the model runs.
        as_json: Print JSON.
        reading: As in build.
        config: As in build.

    Raises:
        BadInput: If options of the one are given for the other.
    """
    if sizes.model_shape is not None:
        estimate: Any = _at_scale(model, exact, sizes, machine, reading, config)
    elif model is None or data is None or flags_given(sizes):
        unused = next(iter(flags_given(sizes)), None)
        raise BadInput(
            found="a forecast of nothing" if unused is None else f"{unused} without --model-shape",
            needed="a model and its data, or --model-shape and --examples",
            do="such as: whence forecast MODEL DATA" if unused is None else "add --model-shape and --examples, or leave it out",
        )
    else:
        estimate = _of_task(model, data, exact, machine, reading, config)
    tell_json(estimate.to_dict()) if as_json else tell(*str(estimate).split("\n"))


def _of_task(
    model: str, data: str, exact: ExactForecastOptions, machine: DeviceOptions, reading: TaskOptions, config: BuildConfig
) -> Any:
    """The forecast of a build or an exact run.

    Raises:
        BadInput: If options of the one are given for the other.
    """
    from whence.load import load_records
    from whence.pipeline import forecast_along, forecast_build, forecast_exact

    if exact.exact is None:
        check_along(exact.run, exact.checkpoints)
        refuse_given(
            replace(exact, run=None, checkpoints=None),
            where="for a build",
            needed="--exact METHOD with it",
            do="add it, or leave the other out",
        )
    elif exact.queries is None or replace(config, factors=None, batch_size=0, batch_positions=0) != BuildConfig():
        raise BadInput(
            found=f"--exact {exact.exact} {'without --queries' if exact.queries is None else 'with options of a build'}",
            needed="queries, and no options of a build",
            do="add --queries FILE" if exact.queries is None else "leave the options of a build out, or --exact",
        )
    if exact.exact is not None:
        check_memory(exact.memory_gib)
        exact_settings(exact.exact, {name: value for name, value in exact.given().items() if name != "memory_gib"})
    records = load_records(data, split=reading.split)
    task, _ = reading.load(model, machine.placement)
    if exact.exact is None and exact.run is not None:
        return forecast_along(task, records, config, run=exact.run, checkpoints=exact.checkpoints or 3)
    if exact.exact is None:
        return forecast_build(task, records, config)
    queries = task.prepare(load_records(str(exact.queries)))
    settings = exact_settings(exact.exact, {"factors": config.factors, **exact.given()})
    size, positions = config.batch_size or None, config.batch_positions or None
    runtime = Runtime(memory_gib=exact.memory_gib, batch_size=size, batch_positions=positions)
    return forecast_exact(task, records, len(queries), method=settings, runtime=runtime)


def _at_scale(
    model: str | None,
    exact: ExactForecastOptions,
    sizes: SizeOptions,
    machine: DeviceOptions,
    reading: TaskOptions,
    config: BuildConfig,
) -> Any:
    """The forecast from sizes alone.

    Raises:
        BadInput: If there is no number of examples, or something is said of a run.
    """
    from whence.pipeline import forecast_scale

    given = {"a model": model} if model is not None else flags_given(exact, machine, replace(reading, track=(), ignore=()))
    for what in given:
        raise BadInput(
            found=f"--model-shape with {what}",
            needed="sizes alone: --examples, and what the cluster is",
            do="leave the other out, or --model-shape",
        )
    if sizes.examples is None or not sizes.examples.is_integer():  # which NaN and infinity are not either
        raise BadInput(
            found="--model-shape without --examples" if sizes.examples is None else f"--examples {sizes.examples:g}",
            needed="sizes alone: --examples, a whole number, and what the cluster is",
            do="write such as --examples 1e9",
        )
    load = Load(examples=int(sizes.examples), tokens_per_example=sizes.tokens_per_example, queries=sizes.num_queries)
    return forecast_scale(str(sizes.model_shape), load, config, sizes.cluster, track=reading.track, ignore=reading.ignore)
