"""The verb about many queries at once."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from whence.commands.recorded import Trust, task_of_store
from whence.commands.shared import Json
from whence.commands.task_options import TaskOptions
from whence.errors import BadInput
from whence.terminal import tell

__all__ = ["study"]


def study(
    store: str,
    data: str | None = None,
    /,
    *,
    sets: Annotated[tuple[str, ...], Parameter(name="--set", negative="")],
    output: Annotated[Path, Parameter(alias="-o")],
    k: Annotated[int | None, Parameter(name=["-k", "--k"])] = None,
    kinds: str | None = None,
    model: str | None = None,
    trust: Trust = False,
    task: Literal["causal_lm", "classification"] = "causal_lm",
    split: str = "train",
    long: Literal["error", "split", "truncate"] = "error",
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
        trust: Also load a recorded model or data that is Python code, a relative path or a name on the hub: code that the store names is run.
        task: What the model does; a store knows.
        split: Split of a Hugging Face dataset.
        long: For training data, what to do with texts longer than the context; a store knows.
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
    from whence.apply.study.study import study as run
    from whence.load import load_records
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
        unused = {"task": task != "causal_lm", "split": split != "train", "long": long != "error"}
        corpus: Any = open_store(store)
        loaded = task_of_store(corpus, Path(store), model, trust=trust)
    else:
        unused = {"model": model is not None, "trust": trust}
        corpus = load_records(data, split=split)
        loaded, _ = TaskOptions(task=task, long=long).load(store)
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
        tell(*(output / "study.json").read_text("utf-8").rstrip("\n").split("\n"))
        return
    print_table(found.header, found.cells())
    for caution in found.cautions():
        tell(f"note: {caution}")
    tell(f"{output / 'study.html'} shows the rest, {output / 'study.json'} has every number")


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
