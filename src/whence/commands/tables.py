"""Verbs that make score tables."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from whence._version import __version__
from whence.commands.recorded import Trust, task_of_store
from whence.commands.shared import Json, Placed, check_table_folder, workers_of
from whence.config import Placement
from whence.errors import BadInput

__all__ = ["attribute", "score", "smoothness"]


def score(
    store: Path,
    queries: str,
    *,
    output: Annotated[Path, Parameter(alias="-o")],
    model: str | None = None,
    trust: Trust = False,
    relative_damping: float | None = None,
    absolute_damping: float | None = None,
    damping_rule: Literal["mean", "lorif", "lorif-paper", "recipe"] | None = None,
    ensemble: Path | None = None,
    workers: int | None = None,
    ray: str | None = None,
    placement: Placed = Placement(),  # noqa: B008
) -> None:
    """Score every training example of a store for every query, into a table for `whence evaluate`.

    Started by torchrun, the processes share the scan.

    Args:
        store: Folder made by `whence build`.
        queries: Queries, in any form that `whence build` takes as data.
        output: Folder of the table: scores.npy and table.json; a table of other settings is not written over.
        model: Load the model from here instead of from where it was at the build.
        trust: Also load a recorded model or data that is Python code, a relative path or a name on the hub: code that the store names is run.
        relative_damping: Damping as a share of each layer's mean curvature.
        absolute_damping: Damping in units of the loss's curvature.
        damping_rule: A published rule instead of a number, as in query.
        ensemble: Folder where tables of several models, each with its own store, are added up; the output is then the mean of all so far. A
            model that is in already is not scored again.
        workers: Have so many processes scan the store, as in query.
        ray: With --workers, have actors of a Ray cluster do that, as in query.
        placement: How a model is loaded that is larger than a device.
    """
    from whence.data import digest_of
    from whence.distributed import Ranks
    from whence.evaluate import save_table
    from whence.load import load_records
    from whence.load.placement import connected_for
    from whence.pipeline import score_table
    from whence.store import open_store

    ranks = Ranks.launched()
    _refuse_several(ranks, ensemble is not None, "--ensemble", "since tables are added up in one folder")
    records = load_records(queries)
    opened = open_store(store, ranks=ranks)
    with workers_of(workers, ray) as pool, connected_for(placement, ranks):
        task = task_of_store(opened, store, model, placement, ranks, trust=trust)
        asked = task.prepare(records)
        damping: dict[str, Any] = {
            "relative_damping": relative_damping,
            "absolute_damping": absolute_damping,
            "damping_rule": damping_rule,
        }
        kept = ("method", "method_version", "projection", "rank", "factor_rank", "curvature_rank", "dtype")
        settings = {name: getattr(opened.blueprint, name) for name in kept} | damping
        settings |= {"train": digest_of(*opened.ids()).hex(), "queries": asked.fingerprint}
        origin = _origin(settings, task, ensemble, [data for data, _ in opened.datasets()], asked.fingerprint)
        check_table_folder(output, origin["settings"])
        table, models = _counted_in(
            ensemble,
            settings,
            task,
            lambda: score_table(opened, task, asked, **damping, weighted=ensemble is None, ranks=ranks, workers=pool),
        )
    if ranks.rank > 0:
        return
    save_table(table, output, origin=origin | {"models": models})
    print(json.dumps({"table": str(output), "method": table.method, "queries": len(table.query_ids), "train": len(opened)}))


def attribute(
    model: str,
    data: str,
    queries: str,
    *,
    output: Annotated[Path, Parameter(alias="-o")],
    method: str = "ekfac",
    task: Literal["causal_lm", "classification", "masked_lm"] = "causal_lm",
    split: str = "train",
    relative_damping: float | None = None,
    absolute_damping: float | None = None,
    samples: int | None = None,
    seed: int = 0,
    fit_on: int | None = None,
    query_rank: int | None = None,
    iterations: int | None = None,
    factors: Path | None = None,
    run: Path | None = None,
    segments: int = 3,
    average_weights: bool = False,
    form: Literal["full", "diagonal"] = "full",
    per_segment: bool = False,
    by_source: Annotated[bool, Parameter(negative="")] = False,
    mode: Literal["auto", "reverse", "forward"] = "auto",
    ensemble: Path | None = None,
    largest_side: int = 1024,
    memory_gib: float | None = None,
) -> None:
    """Score every training example for every query from whole gradients, without a store, into a table for `whence evaluate`.

    Started by torchrun, the processes share the training data: in the fit, in the products of a solver and in the scan.

    Args:
        model: Hugging Face folder or hub name, or file.py:function that returns a task.
        data: Training data, as in build.
        queries: Queries, in any form that `whence build` takes as data.
        output: Folder of the table: scores.npy and table.json; a table of other settings is not written over.
        method: One of the exact methods of `whence methods`.
        task: What the model does.
        split: Split of a Hugging Face dataset.
        relative_damping: Damping as a share of each layer's mean curvature.
        absolute_damping: Damping in units of the loss's curvature.
        samples: Draws of labels where they are drawn; 1 if left out.
        seed: Of everything random.
        fit_on: Fit the curvature on so many training examples instead of all.
        query_rank: Singular directions kept of every query's gradient of a weight: less memory.
        iterations: Of the method's solver.
        factors: Folder where the fitted curvature is kept, to go on after a stop and to use again.
        run: Folder of a recorded training run, for the methods source, astra-source, tracin and unroll.
        segments: Per stage of that run, within which curvature and gradients are taken as constant.
        average_weights: One fit and one pass per segment, at its mean weights, instead of one per checkpoint.
        form: Of the exponential for Adam and its kin: of the whole product of what it multiplies gradients with and the curvature, or of
            its diagonal, which takes fewer products.
        per_segment: Write the part of each segment of that run, too: a table each, in a subfolder of the output.
        by_source: For method unroll: score whole sources of the training data instead of single examples.
        mode: With --by-source, whether sources are carried forward or queries in reverse; auto takes whatever is fewer.
        ensemble: Folder where tables of several models (seeds, checkpoints) are added up, one model per command; the output is then the mean
            of all so far. A model that is in already is not scored again.
        largest_side: A longer side of a weight keeps the identity as its basis.
        memory_gib: Memory to take besides the model, for each process; most of what is free if left out. What does not fit is done in parts.

    Raises:
        BadInput: If parts by segment are asked of an ensemble, whose models have runs of their own;
            or if sources are asked for of a method that has none, or a mode without them.
    """
    from whence.distributed import Ranks
    from whence.evaluate import save_table
    from whence.load import load_records, load_task
    from whence.methods import exact_method_named
    from whence.pipeline import SolveConfig, UnrollConfig, group_effects
    from whence.pipeline import attribute as score_all

    if per_segment and ensemble is not None:
        raise BadInput(
            found="--per-segment with --ensemble", needed="one of them: every model has segments of its own", do="leave one out"
        )
    unrolling = UnrollConfig(segments=segments, average_weights=average_weights, form=form, per_segment=per_segment)
    if (by_source and (method != "unroll" or run is None)) or (mode != "auto" and not by_source):
        raise BadInput(
            found=f"--by-source for method {method}{'' if run else ' without --run'}"
            if by_source
            else f"--mode {mode} without --by-source",
            needed="--method unroll --run FOLDER --by-source",
            do="give all three, or leave --by-source and --mode out",
        )

    ranks = Ranks.launched()
    _refuse_several(ranks, ensemble is not None, "--ensemble", "since tables are added up in one folder")
    _refuse_several(ranks, by_source, "--by-source", "since a recorded run is walked by its steps")
    has_solver = exact_method_named(method).solver is not None
    solving = SolveConfig(iterations=iterations, seed=seed) if has_solver or iterations is not None else SolveConfig()
    records, asked = load_records(data, split=split), load_records(queries)
    loaded, _ = load_task(model, kind=task)
    train, asked = loaded.prepare(records), loaded.prepare(asked)
    settings: dict[str, Any] = {
        "method": method,
        "relative_damping": relative_damping,
        "absolute_damping": absolute_damping,
        "samples": samples,
        "seed": seed,
        "fit_on": fit_on,
        "query_rank": query_rank,
        "largest_side": largest_side,
    }
    known = settings | {
        "iterations": iterations,
        "segments": segments,
        "average_weights": average_weights,
        "form": form,
        "by_source": by_source,
        "train": train.fingerprint,
        "queries": asked.fingerprint,
    }

    if by_source:
        plain = UnrollConfig()
        cut = {name: value for name, value in asdict(unrolling).items() if value != getattr(plain, name)}
        _refuse_unused({**settings, "factors": factors, "iterations": iterations, **cut})
    # The folder of the run tells apart runs that ended in the same weights.
    through = {"run": None if run is None else str(run.absolute()), "mode": mode}
    origin = _origin(known | through, loaded, ensemble, [train.fingerprint], asked.fingerprint)
    check_table_folder(output, origin["settings"])

    def make() -> Any:
        if by_source and run is not None:
            return group_effects(loaded, train, asked, run, mode=mode, memory_gib=memory_gib)
        return score_all(
            loaded,
            train,
            asked,
            factors=factors,
            solving=solving,
            run=run,
            unrolling=unrolling,
            memory_gib=memory_gib,
            ranks=ranks,
            **settings,
        )

    table, models = _counted_in(ensemble, known, loaded, make)
    if ranks.rank > 0:
        return
    parts = {name: output / name.replace(" ", "-").replace(",", "") for name in table.parts}
    for name, folder in parts.items():
        part = replace(table, scores=table.parts[name], parts={}, method=f"{table.method}, {name}")
        save_table(part, folder, origin=origin | {"models": models})
    save_table(table, output, origin=origin | {"models": models})
    found = {"table": str(output), "method": table.method, "queries": len(table.query_ids), "train": len(table.train_ids)}
    print(json.dumps(found | ({"parts": {name: str(folder) for name, folder in parts.items()}} if parts else {})))


def smoothness(
    model: str,
    data: str,
    *,
    run: Path,
    task: Literal["causal_lm", "classification", "masked_lm"] = "causal_lm",
    split: str = "train",
    share: float = 0.1,
    h: float = 0.5,
    seed: int = 0,
    memory_gib: float | None = None,
    as_json: Json = False,
) -> None:
    """Say whether a recorded run is smooth enough for method unroll: three replays with the weights of some examples lowered.

    Args:
        model: Hugging Face folder or hub name, or file.py:function that returns a task; with the weights that the run ended with.
        data: Training data, as in build: every example that the run met.
        run: Folder of the recorded training run.
        task: What the model does.
        split: Split of a Hugging Face dataset.
        share: Of the examples that the run met, how many are taken out.
        h: By how much their weight is lowered each time; 0.5 takes them out half and then whole.
        seed: Of the draw of examples.
        memory_gib: Memory to take besides the model; most of what is free if left out.
        as_json: Print JSON.
    """
    from whence.load import load_records, load_task
    from whence.pipeline import smoothness as measure

    records = load_records(data, split=split)
    loaded, _ = load_task(model, kind=task)
    found = measure(loaded, records, run, share=share, h=h, seed=seed, memory_gib=memory_gib)
    print(json.dumps(found.to_dict()) if as_json else found)


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


def _refuse_unused(settings: dict[str, Any]) -> None:
    """Settings of other methods, given for sources through a run.

    Raises:
        BadInput: If one was given.
    """
    plain = {"method": "unroll", "seed": 0, "largest_side": 1024}
    for name, value in settings.items():
        if value != plain.get(name):
            raise BadInput(
                found=f"--{name.replace('_', '-')} for method unroll",
                needed="a run and nothing else: it has no curvature, no segments and no solver",
                do="leave it out",
            )


def _counted_in(
    folder: Path | None, settings: dict[str, Any], task: Any, make: Callable[[], Any]
) -> tuple[Any, tuple[str, ...]]:
    """The table of a model, with an ensemble's folder the mean that it is part of, and the digests of the models in it."""
    from whence.progress import say
    from whence.score import Ensemble

    if folder is None:
        return make(), (task.weights,)
    ensemble, member = Ensemble(folder, settings=settings), task.weights
    if member in ensemble:
        say(f"this model is one of the {len(ensemble)} in {folder} already")
    else:
        ensemble.add(make(), member=member)
    return ensemble.table(), ensemble.members


def _origin(settings: dict[str, Any], task: Any, ensemble: Path | None, data: list[str], queries: str) -> dict[str, Any]:
    """What a table is made from; the models of an ensemble grow in number, so its folder stands for them among the settings."""
    model = {"model": task.weights} if ensemble is None else {"ensemble": str(ensemble.absolute())}
    return {"data": data, "queries": queries, "whence": __version__, "settings": {**settings, **model}}
