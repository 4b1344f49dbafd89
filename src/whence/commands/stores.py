"""Verbs that make a store and ask it."""

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from whence.commands.recorded import Trust, task_of_store, train_records
from whence.commands.shared import Json, Placed, read_token, workers_of
from whence.commands.task_options import Reading, TaskOptions
from whence.errors import BadInput
from whence.settings import BuildConfig, Placement
from whence.terminal import tell_json

__all__ = ["Flat", "build", "query"]

Flat = Annotated[BuildConfig, Parameter(name="*")]


def build(
    model: str,
    data: str,
    *,
    output: Annotated[Path, Parameter(alias="-o")],
    append: bool = False,
    factors: Path | None = None,
    spool: Path | None = None,
    reading: Reading = TaskOptions(),
    placement: Placed = Placement(),
    config: Flat = BuildConfig(),
) -> None:
    """Compress the gradient of every training example into a store.

    Running it again goes on where it stopped. Started by torchrun, or with RANK and WORLD_SIZE set, the processes share the shards.

    Args:
        model: Hugging Face folder or hub name, or file.py:function that returns a task.
        data: .jsonl, .json, .csv, .tsv, .txt or .npz file, folder of texts or images, dataset folder or hub name, or file.py:function.
        output: Folder of the store, or a URL such as s3://bucket/store.
        factors: For method aligned, folder of a curvature fit of the same model and data, as attribute keeps it: used if there, kept if not.
        spool: Keep prepared examples in this folder on a local disk instead of in memory; data is then also a folder of .jsonl, .jsonl.gz,
            .parquet, .arrow and .tar (WebDataset) files, or a pattern in quotes such as "data/*.parquet". Delete it when the store is built.
        append: Add these examples to a store of other data.
        reading: The options of the task.
        placement: How a model is loaded that is larger than a device.
        config: The options of the build.

    Raises:
        BadInput: If a split is asked of a spool, whose files have none.
    """
    from whence.distributed import Ranks
    from whence.functions import absolute, is_function
    from whence.load import load_records
    from whence.load.placement import connected_for
    from whence.load.tar_shards import Shards, stream_records
    from whence.pipeline import build as run
    from whence.pipeline import spool as run_spool

    ranks = Ranks.launched()
    if spool is not None and reading.split != "train":
        raise BadInput(
            found="--split with --spool",
            needed="files, which have no splits",
            do="leave it out, or name the files of the split",
        )
    # Data first: a wrong path should not wait for a large model.
    records = load_records(data, split=reading.split) if spool is None else stream_records(data)
    place = str(Path(data).resolve()) if Path(data).exists() else absolute(data) if is_function(data) else data
    with connected_for(placement, ranks):
        loaded, origin = reading.load(model, placement, ranks)
        origin |= {"data": place, "split": reading.split}
        if isinstance(records, Shards):
            records = run_spool(loaded, records, str(spool), source=records.identity, quiet=ranks.rank > 0)
        store = run(loaded, records, output, append=append, factors=factors, origin=origin, ranks=ranks, config=config)
    if ranks.rank == 0:
        tell_json({"store": str(store.folder), "rows": len(store), "bytes_per_row": store.codec.row_bytes()})


def query(
    store: Path,
    *,
    text: tuple[str, ...] = (),
    prompt: str | None = None,
    completion: str | None = None,
    file: str | None = None,
    k: Annotated[int, Parameter(name=["-k", "--k"])] = 10,
    model: str | None = None,
    trust: Trust = False,
    relative_damping: float | None = None,
    absolute_damping: float | None = None,
    damping_rule: Literal["mean", "lorif", "lorif-paper", "recipe"] | None = None,
    tokens: bool = False,
    rerank: str | None = None,
    train: tuple[str, ...] = (),
    shortlist: int | None = None,
    html: Path | None = None,
    url: str | None = None,
    token_file: Path | None = None,
    workers: int | None = None,
    ray: str | None = None,
    placement: Placed = Placement(),
    as_json: Json = False,
) -> None:
    """Rank the training examples behind a behaviour. Started by torchrun, the processes share the scan.

    Args:
        store: Folder or URL made by `whence build`; with --url the name of a store there.
        text: A text whose log-probability is asked about; may be repeated.
        prompt: Together with --completion: only the completion is asked about.
        completion: See --prompt.
        file: Queries from a file, in any form that `whence build` takes as data.
        k: Examples on each side.
        model: Load the model from here instead of from where it was at the build.
        trust: Also load a recorded model or data that is Python code, a relative path or a name on the hub: code that the store names is run.
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
        url: Ask a service that `whence serve` started, such as http://127.0.0.1:8420, instead of loading model and store.
        token_file: For --url, file with the token of that service.
        workers: Have so many processes scan the store, each a part of it, besides this one, which asks the model. One that is lost is
            replaced and its part is scanned again.
        ray: With --workers, have actors of a Ray cluster do that: its address, "auto" for the one that this machine is part of, or "local"
            for one on this machine only.
        placement: How a model is loaded that is larger than a device.
        as_json: Print JSON instead of tables.

    Raises:
        BadInput: If there is no query, or half a query, or an option that the service has no use for.
    """
    from whence.distributed import Ranks
    from whence.load import load_records
    from whence.load.placement import connected_for
    from whence.pipeline import query as run
    from whence.report import hits_fragment, write_page
    from whence.serve import Client
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
    ranks = Ranks.launched()
    if url is not None:
        given = {
            "model": model, "trust": trust or None, "relative-damping": relative_damping, "absolute-damping": absolute_damping,
            "damping-rule": damping_rule,
            "rerank": rerank, "train": train or None, "shortlist": shortlist, "workers": workers, "ray": ray,
            "device-map": placement.device_map, "shard-model": placement.shard_model or None,
            "gradient-checkpointing": placement.gradient_checkpointing or None,
            "model-dtype": None if placement.model_dtype == "auto" else placement.model_dtype,
        }  # fmt: skip
        unused = [name for name, value in given.items() if value is not None]
        if unused:
            raise BadInput(
                found=f"--{unused[0]} with --url",
                needed="options that a service takes",
                do="leave it out, or ask the store itself",
            )
        hits = Client(url, token=None if token_file is None else read_token(token_file)).query(
            queries, store=str(store), k=k, tokens=tokens
        )
        searched = hits.num_examples
    else:
        if token_file is not None:
            raise BadInput(
                found="--token-file without --url", needed="a service to show it to", do="add --url, or leave it out"
            )
        opened = open_store(store, ranks=ranks)
        data = train_records(opened, store, train, trust=trust) if train or rerank == "exact" else None
        with workers_of(workers, ray) as pool, connected_for(placement, ranks):  # workers start while the model is loaded
            loaded = task_of_store(opened, store, model, placement, ranks, trust=trust)
            hits = run(
                opened, loaded, queries, k=k, relative_damping=relative_damping, absolute_damping=absolute_damping,
                damping_rule=damping_rule, tokens=tokens, rerank=rerank, train=data, shortlist=shortlist, ranks=ranks, workers=pool,
            )  # fmt: skip
        searched = len(opened)
    if ranks.rank > 0:
        return
    if html is not None:
        write_page(html, "whence", [("Answers", hits_fragment(hits))], intro=f"{searched:,} training examples in {store}")
    if as_json:
        tell_json(hits.to_dict())
    else:
        hits.show()
