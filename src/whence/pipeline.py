"""The main job: build a store from training data, then ask it."""

import dataclasses
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

import whence
from whence.capture import Plan, check_task, forecast, plan_units
from whence.compress import Kronecker, Random
from whence.config import BuildConfig
from whence.curvature import choose_damping, fit_axes, fit_fisher
from whence.data import Dataset, Example
from whence.errors import BadInput, StoreMismatch
from whence.methods import Method, method_named
from whence.progress import meter, say
from whence.records import Recipe, ScoreTable
from whence.report import Hit, Hits
from whence.score import Rows, all_scores, gradient_rows, precondition, token_scores, top_scores
from whence.store import Blueprint, Pending, Store, StoredUnit, Writer, dtype_named, open_store, write_store, write_tensors
from whence.tasks import AbstractTask

__all__ = ["build", "query", "score_table"]

_SHARD_BYTES = 32 << 20


def build(
    task: AbstractTask,
    data: Dataset | Iterable[Any],
    folder: str | Path,
    *,
    append: bool = False,
    origin: dict[str, Any] | None = None,
    quiet: bool = False,
    config: BuildConfig | None = None,
    **options: Any,
) -> Store:
    """Compress the gradient of every training example into a store on disk.

    Running it again on the same folder goes on where it stopped, or returns at once if nothing is missing.

    Args:
        task: Model and per-example loss.
        data: Training examples, as `task.prepare` takes them, or already prepared.
        folder: Where the store goes.
        append: Whether a store of other data gets these examples in addition.
        origin: Where model and data came from, for the command line to load them again; recorded, not compared.
        quiet: No progress on stderr.
        config: All options at once.
        **options: Or some of them: the fields of `BuildConfig`, such as method="logra" and rank=32.

    Returns:
        The finished store.

    Raises:
        BadInput: If both `config` and options are given, or the data cannot be used.
        StoreMismatch: If the folder holds a store of something else.
    """
    if config is not None and options:
        raise BadInput(found="config and options", needed="one of them", do=f"put {', '.join(options)} into the config")
    config = config or BuildConfig(**options)
    method = method_named(config.method)
    folder = Path(folder)
    dataset = data if isinstance(data, Dataset) else task.prepare(data)
    plan = plan_units(task)
    autocast = None if config.autocast == "none" else dtype_named(config.autocast)
    report = (lambda text: None) if quiet else say
    report(f"{plan.coverage} in {len(plan.units)} units, {len(dataset):,} examples")

    earlier = Blueprint.read(folder) if (folder / "blueprint.json").exists() else None
    if earlier is not None and earlier.model != task.weights:
        raise StoreMismatch(
            found=f"a store of other weights in {folder}",
            needed=f"weights {earlier.model[:8]}, not {task.weights[:8]}",
            do="build into another folder, or load the model that this store was built with",
        )
    untouched = check_task(task, plan, dataset.examples, autocast=autocast)
    if untouched:
        report(f"note: the loss does not reach {', '.join(untouched[:4])}{' and more' if len(untouched) > 4 else ''}")
    positions = config.batch_positions or (earlier.batch_positions if earlier else 0)
    if not positions:
        predicted = forecast(task, plan, dataset.examples, autocast=autocast)
        report(str(predicted))
        positions = predicted.batch_positions

    kronecker, axes = _projections(task, plan, dataset, folder, config, method, positions, quiet)
    blueprint = _blueprint(task, plan, kronecker, config, method, positions, earlier, origin)
    with write_store(folder, blueprint, dataset, append=append) as writer:
        if not writer.pending and (folder / "manifest.json").exists():
            report(f"{folder} is complete: nothing to do")
            return open_store(folder)
        done = len(dataset) - sum(shard.stop - shard.start for shard in writer.pending)
        with meter("gradients", len(dataset), done=done, quiet=quiet) as progress:
            for shard in writer.pending:
                _write_shard(task, plan, kronecker, writer, shard, dataset, positions, progress, autocast)
        files = {"axes.safetensors": write_tensors(folder / "axes.safetensors", axes)} if axes else {}
        writer.finish(files)
        if method.curvature == "fisher":
            with meter("curvature", len(plan.units), quiet=quiet) as progress:
                fisher = fit_fisher(
                    open_store(folder, check=False), rank=blueprint.curvature_rank, seed=config.seed, progress=progress
                )
            files["curvature.safetensors"] = write_tensors(folder / "curvature.safetensors", fisher)
            writer.finish(files)
    return open_store(folder)


def query(
    store: Store | str | Path,
    task: AbstractTask,
    queries: Dataset | Iterable[Any],
    *,
    k: int = 10,
    relative_damping: float | None = None,
    absolute_damping: float | None = None,
    tokens: bool = False,
    quiet: bool = False,
) -> Hits:
    """The training examples that raise and lower each query's measurement most.

    Args:
        store: A store or its folder.
        task: The model that the store was built with.
        queries: As `task.prepare` takes them, or already prepared.
        k: Hits on each side.
        relative_damping: Share of each unit's mean eigenvalue.
        absolute_damping: Value in units of the loss's curvature; without either it is chosen and said.
        tokens: Whether the text hits get a score per token, which runs the model on each hit again.
        quiet: No progress on stderr.

    Returns:
        Both tails per query.

    Raises:
        BadInput: If k is not positive.
    """
    asked = _Asked.prepare(store, task, queries, relative_damping, absolute_damping, quiet)
    if k < 1:
        raise BadInput(found=f"k={k}", needed="1 or more", do="ask for at least one hit")
    with meter("scan", len(asked.store), quiet=quiet) as progress:
        high, low = top_scores(asked.store, asked.ready, k, norms_Q=asked.norms_Q, progress=progress)
    hits = []
    wanted = high.rows_QK.numel() + low.rows_QK.numel()
    with meter("tokens", wanted, quiet=quiet or not tokens) as progress:
        for top in (high, low):
            sides = []
            for place in range(len(asked.dataset)):
                pairs = zip(top.scores_QK[place].tolist(), top.rows_QK[place].tolist(), strict=True)
                found = [_hit(asked.store, row, score) for score, row in pairs]
                if tokens:
                    found = [asked.with_tokens(hit, place) for hit in found]
                    progress.advance(len(found))
                sides.append(tuple(found))
            hits.append(tuple(sides))
    return Hits(
        queries=tuple(_title(example) for example in asked.dataset.examples),
        proponents=hits[0],
        opponents=hits[1],
        measurements=tuple(asked.rows.values.tolist()),
        unit=asked.unit,
        method=asked.method,
        num_examples=len(asked.store),
        notes=asked.notes,
    )


def score_table(
    store: Store | str | Path,
    task: AbstractTask,
    queries: Dataset | Iterable[Any],
    *,
    relative_damping: float | None = None,
    absolute_damping: float | None = None,
    quiet: bool = False,
) -> ScoreTable:
    """Every training example's score for every query; arguments as in `query`."""
    asked = _Asked.prepare(store, task, queries, relative_damping, absolute_damping, quiet)
    with meter("scan", len(asked.store), quiet=quiet) as progress:
        scores = all_scores(asked.store, asked.ready, norms_Q=asked.norms_Q, progress=progress)
    ids = tuple(example.id for example in asked.dataset.examples)
    return ScoreTable(scores, ids, asked.store.ids(), asked.unit, asked.method)


@dataclasses.dataclass(frozen=True)
class _Asked:
    """Queries made ready against one store."""

    store: Store
    task: AbstractTask
    plan: Plan
    kronecker: Kronecker
    dataset: Dataset
    rows: Rows
    ready: list[Tensor]
    norms_Q: Tensor | None
    unit: str
    method: str
    notes: tuple[str, ...]

    @classmethod
    def prepare(cls, store, task, queries, relative_damping, absolute_damping, quiet) -> "_Asked":
        store = store if isinstance(store, Store) else open_store(store)
        store.accepts(task)
        blueprint, method = store.blueprint, method_named(store.blueprint.method)
        dataset = queries if isinstance(queries, Dataset) else task.prepare(queries)
        plan = plan_units(task)
        if plan.units and tuple(unit.name for unit in plan.units) != tuple(unit.name for unit in blueprint.units):
            raise StoreMismatch(
                found=f"a store of {len(blueprint.units)} units and a task with {len(plan.units)}",
                needed="the same tracked parameters",
                do="pass the same track, ignore and functional to the task as at the build",
            )
        kronecker = _stored_projections(store, plan, task)
        autocast = None if blueprint.autocast is None else dtype_named(blueprint.autocast)
        check_task(task, plan, dataset.examples, objective="measurement", autocast=autocast)
        with meter("queries", len(dataset), quiet=quiet) as progress:
            rows = gradient_rows(
                task, plan, kronecker, dataset.examples,
                max_positions=blueprint.batch_positions, progress=progress, objective="measurement", autocast=autocast,
            )  # fmt: skip
        damping = None
        notes: tuple[str, ...] = (f"{plan.coverage}",)
        if method.curvature != "identity":
            recipe = task.recipe or (Recipe(**blueprint.recipe) if blueprint.recipe else None)
            damping = choose_damping(
                recipe,
                relative_damping=relative_damping,
                absolute_damping=absolute_damping,
                default=method.relative_damping,
            )
            notes += (damping.note,)
        elif relative_damping is not None or absolute_damping is not None:
            raise BadInput(
                found=f"damping for a store of {method.name}", needed="a method with curvature", do="leave damping out"
            )
        ready = precondition(store, rows, damping)
        if method.cosine:
            return cls(
                store, task, plan, kronecker, dataset, rows, ready, rows.norms() / len(store), "cosine", method.name, notes
            )
        unit = task.unit if damping is not None else f"inner product of gradients / {len(store):,}"
        return cls(store, task, plan, kronecker, dataset, rows, ready, None, unit, method.name, notes)

    def with_tokens(self, hit: Hit, place: int) -> Hit:
        """The hit with a score per token, if its text can be tokenized as it was."""
        if not hit.text:
            return hit
        example = self.task.prepare([{"text": hit.text}]).examples[0]
        if not example.token_spans:
            return hit
        parts = token_scores(self.task, self.plan, self.kronecker, example, [unit[place] for unit in self.ready])
        return dataclasses.replace(hit, token_spans=example.token_spans, token_scores=tuple(parts.tolist()))


def _projections(task, plan: Plan, dataset, folder: Path, config, method: Method, positions: int, quiet: bool):
    rank = config.rank or method.rank
    kind = method.projection if config.projection == "method" else config.projection
    if kind != "pca":
        return Kronecker.random(plan.units, rank=rank, kind=kind, seed=config.seed, device=task.device), {}
    # Appending or resuming must reuse the axes that the first rows were projected on.
    path = folder / "axes.safetensors"
    if path.exists():
        from safetensors.torch import load_file

        axes = load_file(path)
    else:
        step = max(1, len(dataset) // config.axes_examples)
        sample = list(dataset.examples)[::step][: config.axes_examples]
        autocast = None if config.autocast == "none" else dtype_named(config.autocast)
        with meter("axes", len(sample), quiet=quiet) as progress:
            axes = fit_axes(
                task, plan, sample, rank=rank, seed=config.seed, max_positions=positions, progress=progress, autocast=autocast
            )
    return _with_axes(plan, axes, task.device), axes


def _with_axes(plan: Plan, axes: dict[str, Tensor], device: torch.device) -> Kronecker:
    def side(name: str, index: int) -> Tensor | None:
        matrix = axes.get(f"{name}.{index}")
        return None if matrix is None else matrix.to(device)

    count = range(len(plan.units))
    return Kronecker(plan.units, tuple(side("outputs", i) for i in count), tuple(side("inputs", i) for i in count))


def _stored_projections(store: Store, plan: Plan, task: AbstractTask) -> Kronecker:
    blueprint = store.blueprint
    if blueprint.projection == "pca":
        return _with_axes(plan, store.file("axes.safetensors"), task.device)
    return Kronecker.random(
        plan.units,
        rank=blueprint.rank,
        kind=cast(Random, blueprint.projection),
        seed=blueprint.seed,
        device=task.device,
    )


def _blueprint(task, plan, kronecker, config, method: Method, positions, earlier, origin) -> Blueprint:
    units = tuple(
        StoredUnit(unit.name, unit.parameters, unit.outputs, unit.inputs, shape, gain)
        for unit, shape, gain in zip(plan.units, kronecker.shapes(), kronecker.gains(), strict=True)
    )
    recipe = None if task.recipe is None else dataclasses.asdict(task.recipe)
    made = Blueprint(
        method=method.name,
        method_version=method.version,
        projection=method.projection if config.projection == "method" else config.projection,
        rank=config.rank or method.rank,
        factor_rank=config.factor_rank or method.factor_rank,
        curvature_rank=config.curvature_rank or method.curvature_rank,
        seed=config.seed,
        dtype=config.dtype,
        rows_per_shard=config.rows_per_shard or (earlier.rows_per_shard if earlier else 1),
        batch_positions=positions,
        autocast=None if config.autocast == "none" else config.autocast,
        model=task.weights,
        preprocessing=task.preprocessing,
        task={"kind": task.kind, **(origin or {})},
        units=units,
        recipe=recipe,
        libraries={"whence": whence.__version__, "torch": torch.__version__, "python": platform.python_version()},
    )
    if config.rows_per_shard or earlier:
        return made
    rows = _SHARD_BYTES // made.codec().row_bytes()
    # A power of two keeps every slab aligned; between 64 rows, for bucketing by length, and 4096, for resuming.
    return dataclasses.replace(made, rows_per_shard=1 << max(6, min(rows.bit_length() - 1, 12)))


def _write_shard(task, plan, kronecker, writer: Writer, shard: Pending, dataset, positions, progress, autocast) -> None:
    codec = writer.blueprint.codec()
    examples = dataset.examples[shard.start : shard.stop]
    rows = gradient_rows(task, plan, kronecker, examples, max_positions=positions, progress=progress, autocast=autocast)
    wide = dtype_named(writer.blueprint.dtype)
    tensors = codec.encode(rows.units)
    norms = rows.norms().to(wide if wide == torch.float64 else torch.float32)
    writer.write(shard, {**tensors, "norms": norms})


def _hit(store: Store, row: int, score: float) -> Hit:
    known = store.example(row)
    span = tuple(known["span"]) if "span" in known else None
    return Hit(known["id"], row, score, known.get("source", ""), known.get("text", ""), span)  # type: ignore[arg-type]


def _title(example: Example) -> str:
    return example.text or example.id
