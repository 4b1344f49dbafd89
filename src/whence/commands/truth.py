"""Verbs about truth: banks of retrained models, score tables, and what they are worth."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from whence.errors import BadInput

__all__ = ["attribute", "bank", "evaluate", "score", "show_evaluation"]

Json = Annotated[bool, Parameter(name="--json", negative="")]


def bank(
    *,
    output: Annotated[Path, Parameter(alias="-o")],
    train: str | None = None,
    command: str | None = None,
    examples: int | None = None,
    data: str | None = None,
    queries: str | None = None,
    subsets: int = 100,
    fraction: float = 0.5,
    leave_out: int | None = None,
    seeds: int = 5,
    seed: int = 0,
    workers: int = 1,
    values: Literal["loss", "measurement"] = "loss",
    unit: str = "",
    masks: str | None = None,
    outcomes: str | None = None,
    as_json: Json = False,
) -> None:
    """Retrain on many subsets and keep what the queries measured: the truth that scores are held against.

    Every finished run is kept; running it again goes on where it stopped, and more subsets or seeds cost only the new runs. A run counts as
    finished as long as the training file (and what it imports from its own folder), the files named in --command, ids and seeds are the same.

    Args:
        output: Folder of the bank.
        train: file.py:function, called with a boolean tensor (True for what to train on) and a seed; returns one number per query.
        command: A command instead, with {keep} (JSON file of indices to train on), {seed} and {result} (where it writes a JSON list).
        examples: Number of training examples, if --data is not given.
        data: Training data as `whence build` takes it, for ids and fingerprint.
        queries: Queries in a file, for their ids.
        subsets: How many subsets.
        fraction: Share of the examples that each keeps.
        leave_out: Leave out this many examples instead; with 1, the first --subsets examples one after the other.
        seeds: Training runs per subset.
        seed: Of the subsets.
        workers: Runs at a time.
        values: Whether the training function reports losses or measurements (higher is a better fit).
        unit: What they are counted in.
        masks: Import instead of training: masks (subsets, examples), or indices, from .npy, .npz, .pt or .safetensors (FILE or FILE:NAME).
        outcomes: With --masks: outcomes (subsets, queries) or (subsets, seeds, queries).
        as_json: Print JSON.

    Raises:
        BadInput: If it is not said how to train, or on how many examples.
    """
    from whence.data import digest_of
    from whence.evaluate import (
        CommandTrain,
        FileTrain,
        as_reported,
        import_bank,
        leave_k_out,
        leave_one_out,
        make_bank,
        random_subsets,
        save_bank,
    )
    from whence.functions import absolute, sources_of

    train_ids, query_ids = (_ids(source) if source else None for source in (data, queries))
    num_examples = len(train_ids) if train_ids is not None else examples
    if sum(option is not None for option in (train, command, masks)) != 1 or (masks is None) != (outcomes is None):
        raise BadInput(
            found="no way to train, or more than one",
            needed="one of --train, --command, and --masks with --outcomes",
            do="such as: --train train.py:retrain",
        )
    if masks is not None and outcomes is not None:
        made = import_bank(
            _array(masks), _array(outcomes), values=values, num_examples=num_examples,
            train_ids=train_ids, query_ids=query_ids, unit=unit,
        )  # fmt: skip
        save_bank(made, output)
    else:
        if num_examples is None:
            raise BadInput(found="no number of training examples", needed="--data or --examples", do="add one")
        if leave_out == 1:
            drawn = leave_one_out(num_examples, range(min(subsets, num_examples)))
        elif leave_out is not None:
            drawn = leave_k_out(num_examples, leave_out, subsets, seed=seed)
        else:
            drawn = random_subsets(num_examples, subsets, fraction=fraction, seed=seed)
        runner = CommandTrain(command) if command is not None else FileTrain(absolute(str(train)))
        named = [Path(word) for word in shlex.split(command or "") if Path(word).is_file()]
        files = sources_of(str(train)) if command is None else named
        contents = [file.read_bytes().hex() for file in files]
        recipe = command or str(train)
        made = make_bank(
            runner, as_reported, drawn, seeds=range(seeds), folder=output,
            fingerprint=digest_of(recipe, num_examples, *(train_ids or ()), *(query_ids or ()), *contents).hex(),
            train_ids=train_ids, query_ids=query_ids, values=values, unit=unit, facts={"train": recipe}, workers=workers,
        )  # fmt: skip
    shape = made.values_MSQ.shape
    content = {
        "bank": str(output),
        "subsets": shape[0],
        "seeds": shape[1],
        "queries": shape[2],
        "examples": len(made.train_ids),
    }
    print(json.dumps(content) if as_json else ", ".join(f"{name} {value}" for name, value in content.items()))


def score(
    store: Path,
    queries: str,
    *,
    output: Annotated[Path, Parameter(alias="-o")],
    model: str | None = None,
    relative_damping: float | None = None,
    absolute_damping: float | None = None,
    damping_rule: Literal["mean", "lorif", "lorif-paper", "recipe"] | None = None,
    ensemble: Path | None = None,
) -> None:
    """Score every training example of a store for every query, into a table for `whence evaluate`.

    Args:
        store: Folder made by `whence build`.
        queries: Queries, in any form that `whence build` takes as data.
        output: Folder of the table: scores.npy and table.json.
        model: Load the model from here instead of from where it was at the build.
        relative_damping: Damping as a share of each layer's mean curvature.
        absolute_damping: Damping in units of the loss's curvature.
        damping_rule: A published rule instead of a number, as in query.
        ensemble: Folder where tables of several models, each with its own store, are added up; the output is then the mean of all so far. A
            model that is in already is not scored again.
    """
    from whence.commands.stores import task_of_store
    from whence.data import digest_of
    from whence.evaluate import save_table
    from whence.load import load_records
    from whence.pipeline import score_table
    from whence.store import open_store

    records = load_records(queries)
    opened = open_store(store)
    task = task_of_store(opened, store, model)
    asked = task.prepare(records)
    damping: dict[str, Any] = {
        "relative_damping": relative_damping,
        "absolute_damping": absolute_damping,
        "damping_rule": damping_rule,
    }
    kept = ("method", "method_version", "projection", "rank", "factor_rank", "curvature_rank", "dtype")
    settings = {name: getattr(opened.blueprint, name) for name in kept} | damping
    settings |= {"train": digest_of(*opened.ids()).hex(), "queries": asked.fingerprint}
    table = _counted_in(ensemble, settings, task, lambda: score_table(opened, task, asked, **damping))
    save_table(table, output)
    print(json.dumps({"table": str(output), "method": table.method, "queries": len(table.query_ids), "train": len(opened)}))


def attribute(
    model: str,
    data: str,
    queries: str,
    *,
    output: Annotated[Path, Parameter(alias="-o")],
    method: str = "ekfac",
    task: Literal["causal_lm", "classification"] = "causal_lm",
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
    ensemble: Path | None = None,
    largest_side: int = 1024,
    memory_gib: float | None = None,
) -> None:
    """Score every training example for every query from whole gradients, without a store, into a table for `whence evaluate`.

    Args:
        model: Hugging Face folder or hub name, or file.py:function that returns a task.
        data: Training data, as in build.
        queries: Queries, in any form that `whence build` takes as data.
        output: Folder of the table: scores.npy and table.json.
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
        run: Folder of a recorded training run, for method source.
        segments: Per stage of that run, within which curvature and gradients are taken as constant.
        ensemble: Folder where tables of several models (seeds, checkpoints) are added up, one model per command; the output is then the mean
            of all so far. A model that is in already is not scored again.
        largest_side: A longer side of a weight keeps the identity as its basis.
        memory_gib: Memory to take besides the model; most of what is free if left out. What does not fit is done in parts.
    """
    from whence.evaluate import save_table
    from whence.load import load_records, load_task
    from whence.methods import exact_method_named
    from whence.pipeline import SolveConfig, UnrollConfig
    from whence.pipeline import attribute as score_all

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
        "train": train.fingerprint,
        "queries": asked.fingerprint,
    }
    table = _counted_in(
        ensemble,
        known,
        loaded,
        lambda: score_all(
            loaded,
            train,
            asked,
            factors=factors,
            solving=solving,
            run=run,
            unrolling=UnrollConfig(segments=segments),
            memory_gib=memory_gib,
            **settings,
        ),  # fmt: skip
    )
    save_table(table, output)
    print(
        json.dumps(
            {"table": str(output), "method": table.method, "queries": len(table.query_ids), "train": len(table.train_ids)}
        )
    )


def evaluate(
    bank: Path,
    tables: Annotated[list[Path], Parameter(consume_multiple=True)],
    /,
    *,
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
    html: Path | None = None,
    as_json: Json = False,
) -> None:
    """Hold score tables against a bank: LDS with intervals and ceiling, calibration, quality per byte and second.

    Args:
        bank: Folder made by `whence bank`.
        tables: Folders with scores.npy and table.json, by `whence score` or by another program.
        output: Also write everything as JSON into this file.
        html: Also write a page with plots.
        as_json: Print JSON instead of the table.
    """
    from whence.evaluate import evaluate as run
    from whence.evaluate import load_table, open_bank
    from whence.pipeline import write_evaluation

    found = run([load_table(table) for table in tables], open_bank(bank))
    if html is not None:
        write_evaluation(html, found)
    show_evaluation(found, output=output, as_json=as_json)


def show_evaluation(found: Any, *, output: Path | None, as_json: bool, title: str = "") -> None:
    """Print an evaluation, and write it."""
    from whence.report import print_table
    from whence.store import disk_errors

    if output is not None:
        with disk_errors(output):
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text(json.dumps(found.to_dict(), indent=1) + "\n", encoding="utf-8")
    if as_json:
        print(json.dumps(found.to_dict()))
        return
    print_table(found.header, found.cells(), title=title)
    print(found.summary())


def _counted_in(folder: Path | None, settings: dict[str, Any], task: Any, make: Callable[[], Any]) -> Any:
    """The table of a model; with an ensemble's folder the mean that it is part of."""
    from whence.progress import say
    from whence.score import Ensemble

    if folder is None:
        return make()
    ensemble, member = Ensemble(folder, settings=settings), task.weights
    if member in ensemble:
        say(f"this model is one of the {len(ensemble)} in {folder} already")
    else:
        ensemble.add(make(), member=member)
    return ensemble.table()


def _array(name: str) -> Any:
    from whence.evaluate import read_array

    path, _, part = name.partition(":")
    return read_array(path, part or None)


def _ids(source: str) -> list[str]:
    from whence.load import load_records

    return [
        str(record["id"]) if isinstance(record, dict) and "id" in record else str(number)
        for number, record in enumerate(load_records(source))
    ]
