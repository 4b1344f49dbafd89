"""Verbs about many queries at once, and about models that cannot be asked themselves."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from whence.commands.shared import Json, task_of_store
from whence.errors import BadInput

__all__ = ["proxy", "study"]


def study(
    store: str,
    data: str | None = None,
    /,
    *,
    sets: Annotated[tuple[str, ...], Parameter(name="--set")],
    output: Annotated[Path, Parameter(alias="-o")],
    k: Annotated[int | None, Parameter(name=["-k", "--k"])] = None,
    kinds: str | None = None,
    model: str | None = None,
    task: Literal["causal_lm", "classification"] = "causal_lm",
    split: str = "train",
    method: str | None = None,
    relative_damping: float | None = None,
    absolute_damping: float | None = None,
    damping_rule: Literal["mean", "lorif", "lorif-paper", "recipe"] | None = None,
    factors: Path | None = None,
    fit_on: int | None = None,
    query_rank: int | None = None,
    memory_gib: float | None = None,
    seed: int = 0,
    as_json: Json = False,
) -> None:
    """Compare named sets of queries by where in a corpus they come from: tails, histograms, rank correlations, kinds of document.

    Writes study.json and a page, study.html. Running it again goes on where it stopped.

    Args:
        store: Folder made by `whence build`; or, with training data after it, a model as build takes it.
        data: Training data as build takes it, to go through it with whole gradients instead of a store.
        sets: A set of queries as name=file, the file as build takes data; once per set.
        output: Folder of the study; all scores are kept there, 4 bytes for each query and document.
        k: Documents of a tail on each side; 50, or a tenth of a small corpus, if left out.
        kinds: File with id and kind of every document; the source is its kind if left out.
        model: For a store, load the model from here instead of from where it was at the build.
        task: What the model does; a store knows.
        split: Split of a Hugging Face dataset.
        method: For training data, one of the exact methods of `whence methods`; ekfac if left out.
        relative_damping: Damping as a share of each layer's mean curvature.
        absolute_damping: Damping in units of the loss's curvature.
        damping_rule: For a store, a published rule instead of a number, as in query.
        factors: For training data, folder where the fitted curvature is kept; the study's own if left out.
        fit_on: For training data, fit the curvature on so many examples instead of all.
        query_rank: For training data, singular directions kept of every query's gradient of a weight: less memory.
        memory_gib: For training data, memory to take besides the model.
        seed: Of bootstrap and permutation draws.
        as_json: Print JSON instead of a table.

    Raises:
        BadInput: If a set is not named, or an option is given that has no use here.
    """
    from whence.apply import study as run
    from whence.load import load_records, load_task
    from whence.report import print_table
    from whence.store import open_store

    named = [part.partition("=") for part in sets]
    wrong = [part for part, (name, _, file) in zip(sets, named, strict=True) if not name or not file]
    if wrong or len({name for name, _, _ in named}) != len(named):
        raise BadInput(
            found=f"--set {wrong[0] if wrong else ' '.join(sets)}",
            needed="name=file, every name once",
            do="such as: --set facts=facts.jsonl --set code=code.jsonl",
        )
    asked = {name: load_records(file) for name, _, file in named}
    kind_of = None if kinds is None else _kinds(kinds, load_records(kinds))
    if data is None:
        unused = {"task": task != "causal_lm", "split": split != "train"}
        corpus: Any = open_store(store)
        loaded = task_of_store(corpus, Path(store), model)
    else:
        unused = {"model": model is not None}
        corpus = load_records(data, split=split)
        loaded, _ = load_task(store, kind=task)
        corpus = loaded.prepare(corpus)
    given = [name for name, is_given in unused.items() if is_given]
    if given:
        raise BadInput(
            found=f"--{given[0]} for {'a store' if data is None else 'training data'}",
            needed="what the other kind of corpus takes",
            do=f"leave --{given[0]} out",
        )
    found = run(
        loaded, corpus, asked, output,
        k=k, kinds=kind_of, method=method, relative_damping=relative_damping, absolute_damping=absolute_damping,
        damping_rule=damping_rule, factors=factors, fit_on=fit_on, query_rank=query_rank, memory_gib=memory_gib, seed=seed,
    )  # fmt: skip
    if as_json:
        print((output / "study.json").read_text("utf-8"), end="")
        return
    print_table(found.header, found.cells())
    print(f"{output / 'study.html'} shows the rest, {output / 'study.json'} has every number")


def proxy(
    model: str,
    data: str,
    queries: str,
    *,
    output: Annotated[Path, Parameter(alias="-o")],
    target: str | None = None,
    target_name: str | None = None,
    name: str = "",
    probe: int = 0,
    probe_train: int = 256,
    distil: int = 0,
    learning_rate: float = 1e-3,
    batch_examples: int = 16,
    sampled: bool = False,
    save_model: Path | None = None,
    task: Literal["causal_lm", "classification"] = "causal_lm",
    split: str = "train",
    method: str = "ekfac",
    relative_damping: float | None = None,
    absolute_damping: float | None = None,
    factors: Path | None = None,
    query_rank: int | None = None,
    seed: int = 0,
    memory_gib: float | None = None,
    as_json: Json = False,
) -> None:
    """Score training examples for a target model by the gradients of another one, which may be smaller or read text differently.

    The table says who attributed for whom; `whence evaluate` judges it as any other.

    Args:
        model: The proxy: Hugging Face folder or hub name, or file.py:function that returns a task.
        data: The target's training data, as in build.
        queries: Queries, in any form that build takes as data.
        output: Folder of the table: scores.npy and table.json.
        target: The model that the scores are about, in the forms of the proxy.
        target_name: Instead, a name for a target that cannot be loaded.
        name: What to call the proxy in tables; its digest if left out.
        probe: Also attribute so many queries with the target itself and say how well the two agree.
        probe_train: Training examples of that probe.
        distil: Train the proxy on the target's outputs first, for so many passes over the training inputs.
        learning_rate: Of --distil, at its highest.
        batch_examples: Of --distil, inputs per step.
        sampled: Of --distil: show the proxy drawn answers of the target instead of its distributions.
        save_model: Of --distil: folder for the trained proxy.
        task: What both models do.
        split: Split of a Hugging Face dataset.
        method: One of the exact methods of `whence methods`.
        relative_damping: Damping as a share of each layer's mean curvature.
        absolute_damping: Damping in units of the loss's curvature.
        factors: Folder where the proxy's fitted curvature is kept.
        query_rank: Singular directions kept of every query's gradient of a weight: less memory.
        seed: Of everything random.
        memory_gib: Memory to take besides the models.
        as_json: Print JSON.

    Raises:
        BadInput: If it is not said which model the target is, or something is asked of one that is only named.
    """
    from whence.apply import DistilConfig, proxy_agreement, proxy_table
    from whence.apply import distil as train_proxy
    from whence.evaluate import save_table
    from whence.load import load_records, load_task

    if (target is None) == (target_name is None):
        raise BadInput(
            found="no target" if target is None else "both --target and --target-name",
            needed="one of the two",
            do="pass --target, or --target-name for a model that cannot be loaded",
        )
    if target is None and (probe or distil):
        raise BadInput(
            found=f"--{'probe' if probe else 'distil'} for a target that is only named",
            needed="--target, to run it",
            do="leave it out, or pass --target",
        )
    settings = {"learning-rate": learning_rate != 1e-3, "batch-examples": batch_examples != 16}
    unused = [name for name, value in {**settings, "sampled": sampled, "save-model": save_model is not None}.items() if value]
    if unused and not distil:
        raise BadInput(found=f"--{unused[0]} without --distil", needed="a proxy to train", do="leave it out, or add --distil 4")
    if probe_train != 256 and not probe:
        raise BadInput(found="--probe-train without --probe", needed="a probe", do="leave it out, or add --probe 16")
    records, asked = list(load_records(data, split=split)), list(load_records(queries))
    loaded, _ = load_task(model, kind=task)
    aim: Any = target_name if target is None else load_task(target, kind=task)[0]
    content: dict[str, Any] = {"table": str(output)}
    if distil:
        config = DistilConfig(epochs=distil, batch_examples=batch_examples, learning_rate=learning_rate, is_sampled=sampled)
        content["distil"] = list(train_proxy(aim, loaded, records, config, seed=seed).losses)
        if save_model is not None:
            _save(loaded, save_model)
    options: dict[str, Any] = {
        "method": method, "relative_damping": relative_damping, "absolute_damping": absolute_damping, "query_rank": query_rank,
        "seed": seed, "memory_gib": memory_gib,
    }  # fmt: skip
    table = proxy_table(loaded, aim, records, asked, name=name, factors=factors, **options)
    save_table(table, output)
    content |= {"method": table.method, "queries": len(table.query_ids), "train": len(table.train_ids), **table.provenance}
    if probe:
        k = min(10, max(1, min(probe_train, len(records)) // 4))
        found = proxy_agreement(loaded, aim, records, asked, num_train=probe_train, num_queries=probe, k=k, **options)
        content["agreement"] = found.to_dict()
    if as_json:
        print(json.dumps(content))
        return
    print(f"{table.method}: {content['queries']:,} queries, {content['train']:,} training examples in {output}")
    print(table.notes[0])
    if distil:
        print(f"distance from the target per position, by epoch: {', '.join(f'{loss:.3g}' for loss in content['distil'])} nats")
    if probe:
        print(
            f"agreement with the target on {len(found.query_ids)} queries and {found.num_examples} examples, 95 % interval over queries:"
        )
        print(
            f"  rank correlation {found.spearman}; shared top {found.k} {found.top}, bottom {found.bottom}, by chance {found.chance:.2g}"
        )


def _kinds(file: str, records: Iterable[Any]) -> Mapping[str, str]:
    """Kind by id.

    Raises:
        BadInput: If a record does not have both.
    """
    found = {}
    for number, record in enumerate(records):
        if not isinstance(record, dict) or not {"id", "kind"} <= record.keys():
            raise BadInput(found=f"record {number} of {file}", needed="mappings with 'id' and 'kind'", do="add the fields")
        found[str(record["id"])] = str(record["kind"])
    return found


def _save(task: Any, folder: Path) -> None:
    """Write a Hugging Face model and its tokenizer.

    Raises:
        BadInput: If it is another kind of model.
    """
    from whence.store import disk_errors

    if not hasattr(task.model, "save_pretrained") or getattr(task, "tokenizer", None) is None:
        raise BadInput(
            found=f"--save-model for a {type(task.model).__name__}",
            needed="a Hugging Face model with a tokenizer",
            do="leave it out, or call whence.distil from Python and save the model there",
        )
    with disk_errors(folder):
        task.model.save_pretrained(folder)
        task.tokenizer.save_pretrained(folder)
