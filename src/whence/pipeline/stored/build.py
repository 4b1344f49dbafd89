"""Building a store from a model and its training data."""

import platform
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from whence._version import __version__
from whence.capture import Plan, available_bytes, check_task, forecast, plan_units
from whence.compress import Aligned, Encoder
from whence.curvature import fit_fisher, fit_kronecker_fisher
from whence.data import Dataset, skipped_note
from whence.distributed import Ranks
from whence.errors import BadInput
from whence.internals import BATCH_NORMS, DROPOUTS
from whence.methods import method_named
from whence.pipeline.inputs import as_dataset, autocast_named, refuse_bare_model
from whence.pipeline.on_ray import built_on_ray
from whence.pipeline.stored.anchors import with_anchors
from whence.pipeline.stored.earlier import earlier_build, earlier_probe_of, whole_store
from whence.pipeline.stored.encoders import make_encoder
from whence.pipeline.stored.expected import expect
from whence.pipeline.stored.fidelity import measure_fidelity
from whence.pipeline.stored.learn_code import SAMPLE, STAND_INS, cut_bases, relative_damping
from whence.pipeline.stored.lockstep import first_then_others, lost_ranks, stepping
from whence.pipeline.stored.same_model import PROBE_FILE, check_store_model, objective_of, probe_tensors
from whence.pipeline.stored.write_rows import write_rows
from whence.plans import build_stages
from whence.progress import Stages, meter, say, staged
from whence.settings import BuildConfig, OnRay, Runtime, records_only
from whence.sharded_weights import is_sharded
from whence.store import (
    Blueprint,
    Store,
    StoredUnit,
    Writer,
    check_blueprint,
    check_writable,
    is_remote,
    leases,
    located,
    open_store,
    open_writer,
    read_seals,
    sha256_of,
    write_anew,
    write_fidelity,
    write_left_out,
    write_tensors,
)
from whence.tasks import AbstractTask, structure_of

__all__ = ["build", "finish_store", "make_blueprint"]

# Of a shard on disk, and of its projected gradients in memory before they are cut to factors.
_SHARD_BYTES = 32 << 20
_DENSE_BYTES = 256 << 20


@records_only(config=BuildConfig, runtime=Runtime, ray=OnRay)
def build(
    task: AbstractTask,
    data: Dataset | Iterable[Any],
    folder: str | Path,
    *,
    append: bool = False,
    origin: dict[str, Any] | None = None,
    config: BuildConfig = BuildConfig(),
    runtime: Runtime = Runtime(),
    ray: OnRay | None = None,
) -> Store:
    """Compress the gradient of every training example into a store on disk.

    Running it again on the same folder goes on where it stopped, or returns at once if nothing is missing. Several processes may build one
    store together, see `ranks`: each takes shards that no other has, and all of them return when it is whole. With a model that `fully_shard`
    split over them they make as many at a time as there are processes, and all are needed until the end.

    Args:
        task: Model and per-example loss.
        data: Training examples, as `task.prepare` takes them, or already prepared.
        folder: Where the store goes: a path, or a URL such as s3://bucket/store.
        append: Whether a store of other data gets these examples in addition.
        origin: Where model and data came from, for the command line to load them again; recorded, not compared.
        config: What the store holds.
        runtime: How the job runs: `quiet`, and `ranks` that build it together on folders that all of them see, `Ranks.launched()` under
            torchrun. They send no messages: a process that is lost loses only its unfinished shard, which another one makes. Only where a
            model is split over them do they exchange its weights, and need each other.
        ray: Actors of a Ray cluster that build it in place of this process, as such ranks; None for this process. Each loads the model
            by `origin`, as `whence.load.load_task` gives it beside the task, and all see the folder. One that is lost loses only its
            unfinished shard.

    Returns:
        The finished store.

    Raises:
        BadInput: If the data cannot be used, or a setting has no use.
        StoreMismatch: If the folder holds a store of something else.
    """
    unused = [name for name in ("batch_positions", "batch_size", "memory_gib", "workers") if getattr(runtime, name) is not None]
    if unused:
        raise BadInput(
            found=f"{unused[0]} in the runtime of a build",
            needed="batch_positions and batch_size in its config, and a build takes no other memory",
            do="leave it out",
        )
    refuse_bare_model(task)
    folder = located(folder)
    check_writable(folder)
    if is_remote(folder) and config.factors is None and method_named(config.method).encoder == "aligned":
        raise BadInput(
            found=f"method aligned for {folder} without factors",
            needed="a folder on a disk for the curvature that it fits first",
            do="pass factors (--factors) with a local folder, or another method",
        )
    if ray is not None:
        with staged(build_stages(config), quiet=runtime.is_quiet):
            dataset, config = as_dataset(task, data), with_anchors(task, config)
            built_on_ray(
                task, dataset, folder, append=append, origin=origin, config=config, runtime=runtime, on=ray
            )  # fmt: skip
        return open_store(folder, check=False)
    runtime = replace(runtime, ranks=stepping(task.model, runtime.ranks))
    with lost_ranks(runtime.ranks), staged(build_stages(config), quiet=runtime.is_quiet) as stages:
        return _built(task, data, folder, append, origin, config, runtime, stages)


def _built(
    task: AbstractTask,
    data: Dataset | Iterable[Any],
    folder: Path,
    append: bool,
    origin: dict[str, Any] | None,
    config: BuildConfig,
    runtime: Runtime,
    stages: Stages,
) -> Store:
    weights, ranks, quiet = task.weights, runtime.ranks, runtime.is_quiet
    earlier_build(folder, weights, config)
    dataset, config = as_dataset(task, data), with_anchors(task, config)
    plan, autocast = plan_units(task), autocast_named(config.autocast)
    report = (lambda text: None) if quiet else say
    _say_what_is_built(task, plan, dataset, config, report)
    with leases(folder, ranks.rank, ranks.count) as shard_leases:
        # The first one decides, the others find it decided; ranks in step decide together, on what was there before.
        with nullcontext() if ranks.in_step else shard_leases.alone():
            earlier = earlier_build(folder, weights, config)
            wanted = config.positions(example.length for example in dataset.examples)
            positions = config.batch_positions or (earlier.batch_positions if earlier else wanted)
            positions = positions or _fitting_positions(task, plan, dataset, autocast, ranks, report)
            if ranks.in_step:
                positions = min(ranks.gathered(positions))
            is_told = not quiet and ranks.count == 1
            if is_told and earlier is None:
                expect(stages, task, plan, dataset, config, positions, folder)
            encoder, learned = make_encoder(task, plan, dataset, folder, config, positions=positions, runtime=runtime)
            blueprint = make_blueprint(task, plan, encoder, config, positions, weights, earlier, origin)
            seals, earlier_probe = read_seals(folder), earlier_probe_of(folder, earlier)
            if earlier is not None:
                check_blueprint(earlier, blueprint, folder)
                if is_told:  # not before it is known that this build goes on with what is there
                    expect(stages, task, plan, dataset, config, positions, folder)
                for note in check_store_model(task, plan, encoder, earlier, earlier_probe, store=whole_store(folder, seals)):
                    report(f"note: {note}")
            is_first = all(seal.data == dataset.fingerprint for seal in seals.values())
            probe = earlier_probe or probe_tensors(task, plan, blueprint, dataset.examples, has_rows=is_first)
            learned = learned | ({PROBE_FILE: probe} if probe else {})
            if config.bytes_per_example and blueprint.codec().row_bytes() < int(config.bytes_per_example) // 2:
                report(
                    f"codes take {blueprint.codec().row_bytes():,} bytes: the sample's gradients and the bytes that rows share "
                    "have no more directions to keep"
                )
            with first_then_others(ranks) if ranks.in_step else nullcontext():
                writer = open_writer(folder, blueprint, dataset, append=append, leases=shard_leases)
                is_finished = writer.is_finished()
            if writer.damaged:
                report(f"damaged, and made again from its data: {', '.join(map(str, writer.damaged))}")
            if is_finished:
                writer.check_others()
                writer.forget()
                _drop_fit(folder)
                report(f"{folder} is complete: nothing to do")
                return _opened(folder, ranks)
            with first_then_others(ranks) if ranks.in_step else nullcontext():
                for name, tensors in learned.items():
                    if not (folder / name).exists():
                        write_tensors(folder / name, tensors)
            if ranks.in_step and len(learned) > len(learned.keys() & {PROBE_FILE}):
                # From the file: other machines may have rounded otherwise.
                encoder, _ = make_encoder(task, plan, dataset, folder, config, positions=positions, runtime=runtime)
        write_rows(task, plan, encoder, writer, positions=positions, quiet=quiet, ranks=ranks)
        with shard_leases.alone():
            if not writer.is_finished():
                files = {name: sha256_of(folder / name) for name in learned} | write_left_out(folder, dataset)
                code = next((tensors for tensors in learned.values() if STAND_INS in tensors), {})
                files |= _held_against_exact(
                    task, plan, encoder, writer, code if is_first else code | {SAMPLE: None}, quiet=quiet
                )
                finish_store(writer, files, quiet)
                _drop_fit(folder)
                report(f"disk: {open_store(folder, check=False).disk_bytes()}")
    return _opened(folder, ranks)


def _held_against_exact(
    task: AbstractTask, plan: Plan, encoder: Encoder, writer: Writer, code: Mapping[str, Tensor | None], *, quiet: bool
) -> dict[str, str]:
    """Measure how well stored scores of what was added agree with exact ones, and keep it; the files' digests by name.

    Args:
        task: Model and loss.
        plan: Its units.
        encoder: Of the rows; only those of method aligned are whole gradients' codes.
        writer: Of the finished rows.
        code: What the code was learned with: the rows of the sample, None for other data, and codes of stand-ins.
        quiet: No progress on stderr.
    """
    report = (lambda text: None) if quiet else say
    # A code of anchors is exact for them, and says of other queries what it leaves.
    if not isinstance(encoder, Aligned) or encoder.is_anchored:
        return {}
    if is_sharded(task.model):
        report("a model that is split over processes gives no whole gradients: stored scores were not held against exact ones")
        return {}
    sample = code.get(SAMPLE)
    fidelity = measure_fidelity(
        task, plan, encoder, writer.blueprint, writer.dataset, () if sample is None else sample.tolist(), code.get(STAND_INS),
        quiet=quiet,
    )  # fmt: skip
    report(f"{fidelity}" if fidelity else "too few documents to hold stored scores against exact ones")
    return write_fidelity(writer.folder, writer.dataset.fingerprint, fidelity)


def _settings_given(config: BuildConfig) -> dict[str, Any]:
    """What was asked for, as far as it is not the default and decides what the rows are: a refit asks for the same."""
    apart = ("method", "factors", "anchors", "batch_positions", "batch_size")
    values = {field.name: getattr(config, field.name) for field in fields(BuildConfig) if field.name not in apart}
    return {name: value for name, value in values.items() if value != getattr(BuildConfig(), name)}


def _drop_fit(folder: Path) -> None:
    """Remove the stages of a fit, which were for going on after a stop: what the code was learned with is inside it."""
    if not is_remote(folder):
        shutil.rmtree(folder / "factors", ignore_errors=True)


def _say_what_is_built(
    task: AbstractTask, plan: Plan, dataset: Dataset, config: BuildConfig, report: Callable[[str], object]
) -> None:
    """Check a few examples against autograd, and say what a reader should know before anything long."""
    report(f"{len(dataset):,} examples; {len(plan.units)} units of parameters; {plan.coverage}")
    for note in skipped_note("training records", dataset.skipped):
        report(f"note: {note}")
    moody = (*DROPOUTS, *BATCH_NORMS)
    if any(module.training and isinstance(module, moody) for module in task.model.modules()):
        report("note: the model has dropout or batch statistics in training mode; gradients are taken in evaluation mode")
    objective, autocast = objective_of(method_named(config.method)), autocast_named(config.autocast)
    untouched = check_task(task, plan, dataset.examples, objective=objective, autocast=autocast)
    if untouched:
        report(f"note: the loss does not reach {', '.join(untouched[:4])}{' and more' if len(untouched) > 4 else ''}")


def _fitting_positions(
    task: AbstractTask,
    plan: Plan,
    dataset: Dataset,
    autocast: torch.dtype | None,
    ranks: Ranks,
    report: Callable[[str], object],
) -> int:
    """Positions per batch by a forecast from free memory."""
    room = available_bytes(task.device) // (ranks.local_count if task.device.type == "cpu" else 1)
    predicted = forecast(task, plan, dataset.examples, room_bytes=room, autocast=autocast)
    report(str(predicted))
    return predicted.batch_positions


def _opened(folder: Path, ranks: Ranks) -> Store:
    # Many processes would each read all that they have just written.
    return open_store(folder, check=ranks.count == 1)


def finish_store(writer: Writer, files: dict[str, str], quiet: bool) -> None:
    """Fit the curvature on the rows as they are stored, and write the manifest.

    Args:
        writer: Of a store whose shards are all there.
        files: Name and SHA-256 of other files beside them.
        quiet: No progress on stderr.

    Raises:
        StoreCorrupt: If shards of other data are missing.
    """
    writer.check_others()
    blueprint = writer.blueprint
    method = method_named(blueprint.method)
    if method.curvature == "fisher":
        with meter("curvature", len(blueprint.units), quiet=quiet) as progress:
            if method.structure == "full":
                fisher = fit_fisher(writer.rows(), rank=blueprint.curvature_rank, seed=blueprint.seed, progress=progress)
            else:
                fisher = fit_kronecker_fisher(writer.rows(), is_corrected=method.structure == "ekfac", progress=progress)
        files |= write_anew(writer.folder, "curvature.safetensors", lambda path: write_tensors(path, fisher))
    writer.finish(files)


def make_blueprint(
    task: AbstractTask,
    plan: Plan,
    encoder: Encoder,
    config: BuildConfig,
    positions: int,
    weights: str,
    earlier: Blueprint | None = None,
    origin: dict[str, Any] | None = None,
) -> Blueprint:
    """The blueprint of a build; what the options leave open comes from an earlier build in the same folder, or from sizes."""
    method = method_named(config.method)
    units = tuple(
        StoredUnit(unit.name, unit.parameters, unit.outputs, unit.inputs, shape, gain)
        for unit, shape, gain in zip(encoder.units, encoder.shapes(), encoder.gains(), strict=True)
    )
    width, dtype = config.rank or method.rank, method.dtype if config.dtype == "method" else config.dtype
    if isinstance(encoder, Aligned):
        width, dtype = encoder.shapes()[0][1], encoder.dtype
    cut_notes: list[str] = []
    code_note = {}
    if isinstance(encoder, Aligned):
        cut_notes = cut_bases(encoder.whitened, relative_damping(config))
        code_note = {"code": text} if (text := encoder.note()) else {}
    recipe = None if task.recipe is None else asdict(task.recipe)
    blueprint = Blueprint(
        method=method.name,
        method_version=method.version,
        projection=method.projection if config.projection == "method" else config.projection,
        rank=width,
        factor_rank=config.factor_rank or method.factor_rank,
        curvature_rank=config.curvature_rank or method.curvature_rank,
        seed=config.seed,
        dtype=dtype,
        rows_per_shard=config.rows_per_shard or (earlier.rows_per_shard if earlier else 1),
        batch_positions=positions,
        autocast=None if config.autocast == "none" else config.autocast,
        model=weights,
        preprocessing=task.preprocessing,
        task={
            "kind": task.kind,
            **(origin or {}),
            **({"bases": "; ".join(cut_notes)} if cut_notes else {}),
            **code_note,
            "build": _settings_given(config),
        },
        units=units,
        recipe=recipe,
        libraries={"whence": __version__, "torch": torch.__version__, "python": platform.python_version()},
        structure=structure_of(task.model),
    )
    if config.rows_per_shard or earlier:
        return blueprint
    dense_bytes = 4 * sum(outputs * inputs for outputs, inputs in encoder.shapes())
    rows = min(_SHARD_BYTES // blueprint.codec().row_bytes(), _DENSE_BYTES // dense_bytes)
    # A power of two keeps every slab aligned; between 64 rows, for bucketing by length, and 4096, for resuming.
    return replace(blueprint, rows_per_shard=1 << max(6, min(rows.bit_length() - 1, 12)))
