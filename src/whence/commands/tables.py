"""Verbs that make score tables."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from whence._version import __version__
from whence.commands.diffusion_options import Measuring, MeasuringOptions, given_of
from whence.commands.early import (
    SINGLE,
    check_checkpoint,
    check_count,
    check_number,
    check_question,
    check_run,
    is_along_folder,
)
from whence.commands.exact_options import Exact, ExactOptions
from whence.commands.recorded import task_of_store
from whence.commands.shared import Json, Placed, check_table_folder, shown_stages, workers_of
from whence.commands.work_options import (
    Damped,
    DampingOptions,
    Recorded,
    RecordedOptions,
    Scanned,
    ScanOptions,
    Work,
    WorkOptions,
    flags_given,
)
from whence.errors import BadInput
from whence.plans import attribute_stages, query_stages
from whence.settings import Placement, Runtime, Unroll
from whence.terminal import tell, tell_json

__all__ = ["attribute", "score", "smoothness"]


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """What is asked of a store, and of how many models.

    Args:
        measuring: Of a diffusion model, what queries ask about otherwise than at the build.
        ensemble: Folder where tables of several models, each with its own store, are added up; the output is then the mean of all so far. A
            model that is in already is not scored again.
        run: Of stores along a recorded run (`whence build --run`): where the run is now, if not where it was at the build.
    """

    measuring: Measuring = MeasuringOptions()
    ensemble: Path | None = None
    run: Path | None = None


def score(
    store: Path,
    queries: str,
    *,
    output: Annotated[Path, Parameter(alias="-o")],
    recorded: Recorded = RecordedOptions(),
    damped: Damped = DampingOptions(),
    options: Annotated[ScoreOptions, Parameter(name="*")] = ScoreOptions(),
    scanned: Scanned = ScanOptions(),
    placement: Placed = Placement(),
) -> None:
    """Score every training example of a store for every query, into a table for `whence evaluate`.

    Started by torchrun, the processes share the scan.

    Args:
        store: Folder made by `whence build`.
        queries: Queries, in any form that `whence build` takes as data.
        output: Folder of the table: scores.npy and table.json; a table of other settings is not written over.
        recorded: What is loaded of what the store records.
        damped: Damping of the store's curvature.
        options: What is asked, and of how many models.
        scanned: Who scans the store, and how many queries go through the model at a time.
        placement: How a model is loaded that is larger than a device.

    Raises:
        BadInput: If stores along a run are to be one of an ensemble.
    """
    damping, ensemble = damped.damping(), options.ensemble
    with shown_stages(query_stages(), recorded.model):
        from whence.data import digest_of
        from whence.distributed import Ranks
        from whence.evaluate import save_table
        from whence.load import load_records
        from whence.load.placement import connected_for
        from whence.pipeline import score_along, score_table
        from whence.pipeline.through.along_record import AlongStores, open_along
        from whence.store import open_store

        check_run(store, options.run)
        is_along = is_along_folder(store)
        if is_along and ensemble is not None:
            raise BadInput(found=f"--ensemble for {store}", needed=SINGLE, do="leave it out")
        ranks = Ranks.launched()
        _refuse_several(ranks, ensemble is not None, "--ensemble", "since tables are added up in one folder")
        records = load_records(queries)
        source = open_along(store, ranks=ranks) if is_along else open_store(store, ranks=ranks)
        stores = source.stores if isinstance(source, AlongStores) else (source,)
        check_question(stores[0], damping)
        with workers_of(scanned.workers, scanned.ray) as pool, connected_for(placement, ranks):
            about = given_of(options.measuring)
            task = task_of_store(stores[0], store, recorded.model, placement, ranks, trust=recorded.trust, measuring=about)
            query_data = task.prepare(records)
            names = ("method", "method_version", "projection", "rank", "factor_rank", "curvature_rank", "dtype")
            settings = {name: getattr(stores[0].blueprint, name) for name in names} | asdict(damped)
            settings |= about | {"train": digest_of(*source.ids()).hex(), "queries": query_data.fingerprint}
            runtime = Runtime(ranks=ranks, workers=pool, **asdict(scanned.batches))
            if isinstance(source, AlongStores):
                settings |= {"run": source.record.digest, "checkpoints": source.record.checkpoints}
                make = partial(score_along, source, task, query_data, run=options.run, damping=damping, runtime=runtime)
            else:
                check_checkpoint(source, task)
                weighted = ensemble is None
                make = partial(score_table, source, task, query_data, damping=damping, weighted=weighted, runtime=runtime)
            data = list(dict.fromkeys(name for each in stores for name, _ in each.datasets()))
            origin = _origin(settings, task, ensemble, data, query_data.fingerprint)
            check_table_folder(output, origin["settings"])
            table, models = _counted_in(ensemble, settings, task, make)
    if ranks.rank > 0:
        return
    save_table(table, output, origin=origin | {"models": models})
    sizes = {"queries": len(table.query_ids), "train": len(table.train_ids)}
    tell_json({"table": str(output), "method": table.method, **sizes, "notes": list(table.notes)})


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """Scores of whole sources, by the derivative of a recorded run.

    Args:
        by_source: For method unroll: score whole sources of the training data instead of single examples.
        mode: With --by-source, whether sources are carried forward or queries in reverse; auto takes whatever is fewer.
    """

    by_source: Annotated[bool, Parameter(negative="")] = False
    mode: Literal["auto", "reverse", "forward"] = "auto"


def attribute(
    model: str,
    data: str,
    queries: str,
    *,
    output: Annotated[Path, Parameter(alias="-o")],
    exact: Exact = ExactOptions(),
    sources: Annotated[SourceOptions, Parameter(name="*")] = SourceOptions(),
    ensemble: Path | None = None,
    work: Work = WorkOptions(),
) -> None:
    """Score every training example for every query from whole gradients, without a store, into a table for `whence evaluate`.

    Started by torchrun, the processes share the training data: in the fit, in the products of a solver and in the scan.

    Args:
        model: Hugging Face folder or hub name, or file.py:function that returns a task.
        data: Training data, as in build.
        queries: Queries, in any form that `whence build` takes as data.
        output: Folder of the table: scores.npy and table.json; a table of other settings is not written over.
        exact: The method and its settings.
        sources: Whether whole sources are scored.
        ensemble: Folder where tables of several models (seeds, checkpoints) are added up, one model per command; the output is then the mean
            of all so far. A model that is in already is not scored again.
        work: How model and data are read, and what memory may be taken.

    Raises:
        BadInput: If parts by segment are asked of an ensemble, whose models have runs of their own;
            or if sources are asked for of a method that has none, or a mode without them.
    """
    if exact.per_segment and ensemble is not None:
        raise BadInput(
            found="--per-segment with --ensemble", needed="one of them: every model has segments of its own", do="leave one out"
        )
    settings = exact.settings()
    by_source = sources.by_source
    if (by_source and not isinstance(settings, Unroll)) or (sources.mode != "auto" and not by_source):
        raise BadInput(
            found=f"--by-source for method {settings.name}" if by_source else f"--mode {sources.mode} without --by-source",
            needed="--method unroll --run FOLDER --by-source",
            do="give all three, or leave --by-source and --mode out",
        )
    with shown_stages(attribute_stages(settings), model):
        summary = _attributed(model, data, queries, output, exact, sources, ensemble, work)
    if summary is not None:
        tell_json(summary)


def _attributed(
    model: str,
    data: str,
    queries: str,
    output: Path,
    exact: ExactOptions,
    sources: SourceOptions,
    ensemble: Path | None,
    work: WorkOptions,
) -> dict[str, Any] | None:
    """What there is to say of the table that was written; None on all processes but the first."""
    from whence.distributed import Ranks
    from whence.evaluate import save_table
    from whence.load import load_records
    from whence.pipeline import attribute as score_all
    from whence.pipeline import group_effects

    settings, by_source = exact.settings(), sources.by_source
    runtime = work.runtime(Ranks.launched())
    _refuse_several(runtime.ranks, ensemble is not None, "--ensemble", "since tables are added up in one folder")
    _refuse_several(runtime.ranks, by_source, "--by-source", "since a recorded run is walked by its steps")
    records, query_data = load_records(data, split=work.reading.split), load_records(queries)
    check_count("--fit-on", exact.final.factored.fit_on, records, work.reading)
    loaded = work.load(model)
    train, query_data = loaded.prepare(records), loaded.prepare(query_data)
    options = {name: value for name, value in exact.given().items() if name not in ("factors", "run")}
    recorded = {
        "method": settings.name,
        **options,
        "by_source": by_source,
        "train": train.fingerprint,
        "queries": query_data.fingerprint,
    }
    recorded["reading"] = flags_given(work.reading)
    # The folder of the run tells apart runs that ended in the same weights.
    through = {"run": None if exact.run is None else str(exact.run.absolute()), "mode": sources.mode}
    origin = _origin(recorded | through, loaded, ensemble, [train.fingerprint], query_data.fingerprint)
    check_table_folder(output, origin["settings"])

    def make() -> Any:
        if by_source and exact.run is not None:
            return group_effects(loaded, train, query_data, exact.run, mode=sources.mode, runtime=runtime)
        return score_all(loaded, train, query_data, method=settings, runtime=runtime)

    table, models = _counted_in(ensemble, recorded, loaded, make)
    if runtime.ranks.rank > 0:
        return None
    parts = {name: output / name.replace(" ", "-").replace(",", "") for name in table.parts}
    for name, folder in parts.items():
        part = replace(table, scores=table.parts[name], parts={}, method=f"{table.method}, {name}")
        save_table(part, folder, origin=origin | {"models": models})
    save_table(table, output, origin=origin | {"models": models})
    sizes = {"queries": len(table.query_ids), "train": len(table.train_ids)}
    summary = {"table": str(output), "method": table.method, **sizes, "notes": list(table.notes)}
    return summary | ({"parts": {name: str(folder) for name, folder in parts.items()}} if parts else {})


def smoothness(
    model: str,
    data: str,
    *,
    run: Path,
    share: float = 0.1,
    h: float = 0.5,
    seed: int = 0,
    work: Work = WorkOptions(),
    as_json: Json = False,
) -> None:
    """Say whether a recorded run is smooth enough for method unroll: three replays with the weights of some examples lowered.

    Args:
        model: Hugging Face folder or hub name, or file.py:function that returns a task; with the weights that the run ended with.
        data: Training data, as in build: every example that the run met.
        run: Folder of the recorded training run.
        share: Of the examples that the run met, how many are taken out.
        h: By how much their weight is lowered each time; 0.5 takes them out half and then whole.
        seed: Of the draw of examples.
        work: How model and data are read, and what memory may be taken.
        as_json: Print JSON.
    """
    from whence.load import load_records
    from whence.pipeline import smoothness as measure

    check_number("--share", share, least=0, most=1)
    check_number("--h", h, least=0, most=0.5)
    check_number("--seed", seed, least=0)

    records = load_records(data, split=work.reading.split)
    loaded = work.load(model)
    result = measure(loaded, records, run, share=share, h=h, seed=seed, runtime=work.runtime())
    tell_json(result.to_dict()) if as_json else tell(*str(result).split("\n"))


def _refuse_several(ranks: Any, is_given: bool, name: str, why: str) -> None:
    """What only one process can do.

    Raises:
        BadInput: If it is asked of several.
    """
    if is_given and ranks.count > 1:
        raise BadInput(
            found=f"{name} for {ranks.count} processes",
            needed=f"one process, {why}",
            do=f"leave {name} out, or start it without torchrun",
        )


def _counted_in(
    folder: Path | None, settings: dict[str, Any], task: Any, make: Callable[[], Any]
) -> tuple[Any, tuple[str, ...]]:
    """The table of a model, with an ensemble's folder the mean that it is part of, and the digests of the models in it."""
    from whence.progress import say
    from whence.score import Ensemble
    from whence.tasks import structure_of

    if folder is None:
        return make(), (task.weights,)
    ensemble, member, structure = Ensemble(folder, settings=settings), task.weights, structure_of(task.model)
    if member in ensemble:
        ensemble.check_structure(member, structure)
        say(f"this model is one of the {len(ensemble)} in {folder} already")
    else:
        ensemble.add(make(), member=member, structure=structure)
    return ensemble.table(), ensemble.members


def _origin(settings: dict[str, Any], task: Any, ensemble: Path | None, data: list[str], queries: str) -> dict[str, Any]:
    """What a table is made from; the models of an ensemble grow in number, so its folder stands for them among the settings."""
    from whence.tasks import structure_of

    own = {"model": task.weights, "structure": asdict(structure_of(task.model))}
    model = own if ensemble is None else {"ensemble": str(ensemble.absolute())}
    return {"data": data, "queries": queries, "whence": __version__, "settings": {**settings, **model}}
