"""What each verb does: load, call the pipeline, print. stdout is data, stderr is progress."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from whence.config import BuildConfig
from whence.errors import BadInput
from whence.methods import EXACT_METHODS, METHODS

__all__ = ["build", "demo", "forecast", "inspect", "methods", "query", "task_of_store", "verify"]

Flat = Annotated[BuildConfig, Parameter(name="*")]


def build(
    model: str,
    data: str,
    *,
    output: Annotated[Path, Parameter(alias="-o")],
    task: Literal["causal_lm", "classification"] = "causal_lm",
    split: str = "train",
    long: Literal["error", "split", "truncate"] = "error",
    max_length: int | None = None,
    track: tuple[str, ...] = (),
    ignore: tuple[str, ...] = (),
    functional: bool = False,
    append: bool = False,
    factors: Path | None = None,
    config: Flat = BuildConfig(),  # noqa: B008
) -> None:
    """Compress the gradient of every training example into a store.

    Running it again goes on where it stopped.

    Args:
        model: Hugging Face folder or hub name, or file.py:function that returns a task.
        data: .jsonl, .json, .csv, .tsv or .txt file, folder of texts, dataset folder or hub name, or file.py:function.
        output: Folder of the store.
        task: What the model does.
        split: Split of a Hugging Face dataset.
        long: What to do with texts longer than the context.
        max_length: Tokens per example at most.
        track: Patterns of parameter names to attribute; all trainable ones if left out.
        ignore: Patterns of parameter names to leave out.
        functional: Attribute parameters of unknown layers through torch.func.
        factors: For method aligned, folder of a curvature fit of the same model and data, as attribute keeps it: used if there, kept if not.
        append: Add these examples to a store of other data.
        config: The options of the build.
    """
    from whence.functions import absolute, is_function
    from whence.load import load_records, load_task
    from whence.pipeline import build as run

    options = _task_options(task, model, long, max_length, track, ignore, functional)
    records = load_records(data, split=split)  # first: a wrong path should not wait for a large model
    loaded, origin = load_task(model, kind=task, **options)
    place = str(Path(data).resolve()) if Path(data).exists() else absolute(data) if is_function(data) else data
    origin |= {"data": place, "split": split}
    store = run(loaded, records, output, append=append, factors=factors, origin=origin, config=config)
    print(json.dumps({"store": str(output), "rows": len(store), "bytes_per_row": store.codec.row_bytes()}))


def query(
    store: Path,
    *,
    text: tuple[str, ...] = (),
    prompt: str | None = None,
    completion: str | None = None,
    file: str | None = None,
    k: Annotated[int, Parameter(name=["-k", "--k"])] = 10,
    model: str | None = None,
    relative_damping: float | None = None,
    absolute_damping: float | None = None,
    damping_rule: Literal["mean", "lorif", "lorif-paper", "recipe"] | None = None,
    tokens: bool = False,
    rerank: str | None = None,
    train: tuple[str, ...] = (),
    shortlist: int | None = None,
    html: Path | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Rank the training examples behind a behaviour.

    Args:
        store: Folder made by `whence build`.
        text: A text whose log-probability is asked about; may be repeated.
        prompt: Together with --completion: only the completion is asked about.
        completion: See --prompt.
        file: Queries from a file, in any form that `whence build` takes as data.
        k: Examples on each side.
        model: Load the model from here instead of from where it was at the build.
        relative_damping: Damping as a share of each layer's mean curvature.
        absolute_damping: Damping in units of the loss's curvature.
        damping_rule: A published rule instead of a number: .1 x the mean curvature, .5 x (LoRIF's code), .1 x the mean of the kept directions
            (LoRIF's paper), or what the training run implies.
        tokens: Score the tokens of each hit and highlight the strongest passage.
        rerank: Ask in two stages: the store leaves a shortlist, and this scores it. "exact" runs the model again on the examples of the
            shortlist (for stores of method aligned); the folder of another store of the same data takes their rows there.
        train: For --rerank exact, where the training data is now, if not where it was at the build; repeated for data that was appended.
        shortlist: Training examples kept on each side of every query; 10 k if left out, and 400 at least.
        html: Also write a page with the answer.
        as_json: Print JSON instead of tables.

    Raises:
        BadInput: If there is no query, or half a query.
    """
    from whence.load import load_records
    from whence.pipeline import query as run
    from whence.report import hits_fragment, write_page
    from whence.store import open_store

    if (prompt is None) != (completion is None):
        raise BadInput(found="only one of --prompt and --completion", needed="both", do="add the other, or use --text")
    queries: list[Any] = [*text]
    if prompt is not None:
        queries.append({"prompt": prompt, "completion": completion})
    if file is not None:
        queries.extend(load_records(file))
    if not queries:
        raise BadInput(found="no query", needed="--text, --prompt with --completion, or --file", do="add one")
    opened = open_store(store)
    loaded = task_of_store(opened, store, model)
    data = _train_records(opened, store, train) if train or rerank == "exact" else None
    hits = run(
        opened, loaded, queries, k=k, relative_damping=relative_damping, absolute_damping=absolute_damping,
        damping_rule=damping_rule, tokens=tokens, rerank=rerank, train=data, shortlist=shortlist,
    )  # fmt: skip
    if html is not None:
        write_page(html, "whence", [("Answers", hits_fragment(hits))], intro=f"{len(opened):,} training examples in {store}")
    if as_json:
        print(json.dumps(hits.to_dict(), ensure_ascii=False))
    else:
        hits.show()


def task_of_store(opened: Any, store: Path, model: str | None) -> Any:
    """The task that a store was built with, loaded from where it was then, or from `model`.

    Raises:
        BadInput: If it is not known where the model is, or it is not there.
    """
    from whence.load import load_task

    origin = opened.blueprint.task
    if model is None and "model" not in origin:
        raise BadInput(
            found=f"a store built from Python in {store}",
            needed="to know where its model is",
            do="pass --model, or query it from Python",
        )
    recorded = str(origin.get("model", ""))
    place = Path(recorded.rsplit(":", 1)[0] if ".py:" in recorded else recorded)
    if model is None and place.is_absolute() and not place.exists():
        raise BadInput(
            found=f"no model at {origin['model']}, where it was when {store} was built",
            needed="the same model",
            do="pass --model with the place where it is now",
        )
    found, _ = load_task(model or origin["model"], kind=origin.get("task", origin["kind"]), **origin.get("options", {}))
    return found


def verify(store: Path, *, as_json: Annotated[bool, Parameter(name="--json", negative="")] = False) -> int:
    """Check that a store is what was written: checksums, shapes, ids, finite numbers.

    Args:
        store: Folder made by `whence build`.
        as_json: Print JSON.

    Returns:
        Exit status: 0 if all is well, 1 if not.
    """
    from whence.store import open_store, verify_store

    opened = open_store(store, check=False)
    faults = verify_store(opened)
    if as_json:
        print(json.dumps({"rows": len(opened), "shards": len(opened.seals), "faults": faults}))
        return 1 if faults else 0
    for fault in faults:
        print(fault)
    if not faults:
        print(f"{store}: {len(opened):,} rows in {len(opened.seals)} shards, all as sealed")
    return 1 if faults else 0


def inspect(store: Path, *, as_json: Annotated[bool, Parameter(name="--json", negative="")] = False) -> None:
    """Say what a store holds.

    Args:
        store: Folder made by `whence build`.
        as_json: Print everything as JSON.
    """
    from whence.store import open_store

    opened = open_store(store, check=False)
    blueprint = opened.blueprint
    content = {
        **blueprint.to_json(),
        "rows": len(opened),
        "shards": len(opened.seals),
        "bytes_per_row": opened.codec.row_bytes(),
    }
    if as_json:
        print(json.dumps(content))
        return
    for name in (
        "rows",
        "shards",
        "bytes_per_row",
        "method",
        "rank",
        "factor_rank",
        "curvature_rank",
        "dtype",
        "seed",
        "recipe",
    ):
        print(f"{name:>16}  {content[name]}")
    print(f"{'model':>16}  {blueprint.task.get('model', 'given in Python')} (weights {blueprint.model[:12]})")
    print(f"{'units':>16}  {len(blueprint.units)}: {', '.join(unit.name for unit in blueprint.units[:3])} ...")


def forecast(
    model: str,
    data: str,
    *,
    task: Literal["causal_lm", "classification"] = "causal_lm",
    split: str = "train",
    long: Literal["error", "split", "truncate"] = "error",
    max_length: int | None = None,
    track: tuple[str, ...] = (),
    ignore: tuple[str, ...] = (),
    functional: bool = False,
    exact: str | None = None,
    queries: str | None = None,
    query_rank: int | None = None,
    factors: Path | None = None,
    largest_side: int | None = None,
    memory_gib: float | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
    config: Flat = BuildConfig(),  # noqa: B008
) -> None:
    """Say what a build would take in memory, disk and time, without building; or, with --exact, what `whence attribute` would take.

    Args:
        model: As in build.
        data: As in build.
        task: As in build.
        split: As in build.
        long: As in build.
        max_length: As in build.
        track: As in build.
        ignore: As in build.
        functional: As in build.
        exact: An exact method of `whence methods`, as --method of attribute, instead of a build.
        queries: As in attribute; for --exact.
        query_rank: As in attribute.
        factors: As in attribute.
        largest_side: As in attribute.
        memory_gib: As in attribute.
        as_json: Print JSON.
        config: As in build.

    Raises:
        BadInput: If options of the one are given for the other.
    """
    from whence.load import load_records, load_task
    from whence.pipeline import forecast_build, forecast_exact

    of_exact = {
        "queries": queries,
        "query_rank": query_rank,
        "factors": factors,
        "largest_side": largest_side,
        "memory_gib": memory_gib,
    }
    given = [name for name, value in of_exact.items() if value is not None]
    if exact is None and given:
        raise BadInput(
            found=f"--{given[0].replace('_', '-')} for a build",
            needed="--exact METHOD with it",
            do="add it, or leave the other out",
        )
    if exact is not None and (queries is None or config != BuildConfig()):
        raise BadInput(
            found=f"--exact {exact} {'without --queries' if queries is None else 'with options of a build'}",
            needed="queries, and no options of a build",
            do="see `whence forecast --help`",
        )
    options = _task_options(task, model, long, max_length, track, ignore, functional)
    records = load_records(data, split=split)
    loaded, _ = load_task(model, kind=task, **options)
    if exact is None:
        found = forecast_build(loaded, records, config)
    else:
        asked = loaded.prepare(load_records(str(queries)))
        found = forecast_exact(
            loaded, records, len(asked), method=exact, query_rank=query_rank, factors=factors,
            largest_side=largest_side or 1024, memory_gib=memory_gib,
        )  # fmt: skip
    print(json.dumps(found.to_dict()) if as_json else found)


def methods(*, as_json: Annotated[bool, Parameter(name="--json", negative="")] = False) -> None:
    """List the attribution methods, what each is made of and where it comes from.

    Args:
        as_json: Print everything as JSON.
    """
    from whence.report import print_methods

    if as_json:
        print(json.dumps([asdict(method) for method in (*METHODS.values(), *EXACT_METHODS.values())]))
    else:
        print_methods(METHODS.values(), EXACT_METHODS.values())


def demo(
    *,
    output: Annotated[Path, Parameter(alias="-o")] = Path("whence-demo"),
    k: Annotated[int, Parameter(name=["-k", "--k"])] = 10,
    seeds: int = 3,
    seed: int = 0,
) -> None:
    """The whole story on real text: train, attribute, and prove it by retraining. A second run reuses what exists.

    Args:
        output: Folder for model, store, retrained runs and report.
        k: Documents ranked, and removed for the proof, per question.
        seeds: Retrainings per condition.
        seed: Of everything random.
    """
    from whence.demo import tell

    tell(output, k=k, seeds=seeds, seed=seed)


def _train_records(opened: Any, store: Path, train: tuple[str, ...]) -> list[Any]:
    """The records that a store was built from, from where they were then, or from where they are said to be now.

    Raises:
        BadInput: If it is not known where they are, or they are not there.
    """
    from whence.load import load_records

    origin = opened.blueprint.task
    recorded = str(origin.get("data", ""))
    place = Path(recorded.rsplit(":", 1)[0] if ".py:" in recorded else recorded)
    if not train and (not recorded or (place.is_absolute() and not place.exists())):
        gone = f"no training data at {recorded}, where it was when {store} was built"
        raise BadInput(
            found=gone if recorded else f"a store in {store} that does not say where its training data is",
            needed="the data that it was built from",
            do="pass --train with the place where it is now",
        )
    return [record for data in train or (recorded,) for record in load_records(data, split=origin.get("split", "train"))]


def _task_options(task, model, long, max_length, track, ignore, functional) -> dict[str, Any]:
    if ".py:" in model:
        chosen = {"long": long != "error", "max_length": max_length, "track": track, "ignore": ignore, "functional": functional}
        if any(chosen.values()):
            raise BadInput(
                found=f"{', '.join('--' + name.replace('_', '-') for name, value in chosen.items() if value)} for {model}",
                needed="these set in the function, which makes the task itself",
                do="pass them to the task there",
            )
        return {}
    options: dict[str, Any] = {}
    if task == "causal_lm":
        options |= {"long": long, "max_length": max_length}
    if track:
        options["track"] = list(track)
    if ignore:
        options["ignore"] = list(ignore)
    if functional:
        options["functional"] = True
    return options
