"""Verbs about the training data itself: what to keep of it, and what is in it."""

import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from whence.commands.recorded import Trust, task_of_store
from whence.commands.select_inputs import amount_of, check_options, dataset_of, for_data, groups_of
from whence.commands.shared import Json
from whence.errors import BadInput
from whence.terminal import tell, tell_json

__all__ = ["clusters", "select"]


def select(
    data: str,
    *,
    output: Annotated[Path, Parameter(alias="-o")],
    by: Literal["influence", "self-influence", "loss", "random"] = "influence",
    keep: str | None = None,
    drop: str | None = None,
    prefer: Literal["high", "low"] | None = None,
    table: Path | None = None,
    model: str | None = None,
    task: Literal["causal_lm", "classification"] | None = None,
    long: Literal["error", "truncate"] = "error",
    validation: str | None = None,
    method: str | None = None,
    balance: str | None = None,
    quota: Literal["proportional", "equal"] = "proportional",
    per_token: bool = False,
    duplicates: float | None = None,
    store: Path | None = None,
    reweight: bool = False,
    prove: str | None = None,
    command: str | None = None,
    against: tuple[Literal["self-influence", "loss"], ...] = (),
    seeds: int | None = None,
    workers: int | None = None,
    seed: int = 0,
    as_json: Json = False,
) -> None:
    """Keep, drop or re-weight training examples by what they are worth, and prove it by retraining.

    Writes list.jsonl (a decision, a weight and a reason for every example) and summary.json; with --prove also proof.json and the finished
    runs, so that a command that was stopped goes on.

    Args:
        data: Training data, as in build.
        output: Folder for the lists.
        by: What to rank by: influence on a validation set, self-influence, the example's own loss, or chance.
        keep: How much to keep: 500 (examples), 50%, or "20000 tokens".
        drop: How much to drop instead.
        prefer: Which end to keep; high influence, low self-influence and low loss if left out.
        table: Values from a table of `whence score` or `whence attribute` instead of from --model.
        model: As in build; for values, losses and lengths.
        task: What the model does; causal_lm if left out.
        long: What to do with texts beyond the model's context. Parts of a text cannot be chosen apart, so they are not split.
        validation: Examples that the model should get right, in any form that `whence build` takes as data.
        method: An exact method of `whence methods`, for both kinds of influence; ekfac if left out.
        balance: Give every class ("class"), source ("source") or value of another field of the records a quota of its own.
        quota: The same share of each, or as much of each.
        per_token: Rank by value over length in tokens.
        duplicates: Of examples whose gradients have at least this cosine keep only the best; needs --store.
        store: A store of method aligned of the same data.
        reweight: Weights for all instead of a choice, as uneven as the choice would be.
        prove: file.py:function, called with a boolean tensor (True for what to train on) and a seed, that trains and returns the loss of each
            test query.
        command: A command instead, as in bank.
        against: Also train on what these would select; random data of the same make always is.
        seeds: Training runs per selection; 5 if left out.
        workers: Training runs at a time; 1 if left out.
        seed: Of random choices.
        as_json: Print JSON.

    Raises:
        BadInput: If options are missing, or have nothing to act on.
    """
    from whence.apply.select import select as choose
    from whence.apply.select.budget import Budget
    from whence.apply.select.duplicates import near_duplicates
    from whence.apply.select.values import value_table
    from whence.evaluate import load_table
    from whence.load import load_records, load_task
    from whence.report import print_table

    check_options(locals())
    for amount in map(amount_of, (keep, drop)):
        if amount is not None:
            Budget.read(amount)  # before anything long: a wrong one is an error
    records = list(load_records(data))
    of_task: dict[str, Any] = {} if long == "error" else {"long": long}
    loaded = load_task(model, kind=task or "causal_lm", **of_task)[0] if model is not None else None
    train = dataset_of(loaded, records)
    if by == "random":
        values = value_table(None, train, "random", seed=seed)
    elif table is not None:
        values = for_data(load_table(table), train.ids, table)
    else:
        asked = load_records(validation) if validation is not None else None
        values = value_table(loaded, train, by, validation=asked, method=method or "ekfac", seed=seed)
    settings: dict[str, Any] = {
        "keep": amount_of(keep),
        "drop": amount_of(drop),
        "groups": None if balance is None else groups_of(records, train, balance),
        "quota": quota,
        "tokens": None if loaded is None else [example.length for example in train.examples],
        "per_token": per_token,
        "duplicates": None if store is None or duplicates is None else near_duplicates(store, cosine=duplicates),
    }
    found = choose(values, by=by, prefer=prefer, reweight=reweight, **settings)
    found.save(output)
    content: dict[str, Any] = {"folder": str(output), **found.summary()}
    proof = None
    if prove is not None or command is not None:
        rivals = {name: choose(value_table(loaded, train, name), by=name, **settings) for name in against}
        proof = _prove(found, rivals, prove, command, output, range(seed, seed + (seeds or 5)), workers or 1)
        content["proof"] = proof.to_dict()
    if as_json:
        tell_json(content)
        return
    groups = content.pop("groups", {})
    for name, value in content.items():
        if name != "proof":
            tell(f"{name.replace('_', ' '):>23}  {_shown(value)}")
    if groups:
        print_table(("group", "examples", "kept"), [(name, one["examples"], one["kept"]) for name, one in groups.items()])
    if proof is not None:
        print_table(
            proof.header,
            proof.cells(),
            title=f"mean loss after training on each, {len(proof.result.seeds)} seeds; less is better",
        )


def clusters(
    store: Path,
    *,
    k: Annotated[int, Parameter(name=["-k", "--k"])] = 12,
    queries: str | None = None,
    model: str | None = None,
    trust: Trust = False,
    central: int = 5,
    shared: int = 32,
    seed: int = 0,
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
    html: Path | None = None,
    as_json: Json = False,
) -> None:
    """Cluster a store's training examples by what they teach, and name the clusters.

    Args:
        store: Folder made by `whence build` with method aligned.
        k: How many clusters.
        queries: Also say which of these queries each cluster helps and harms; in any form that `whence build` takes as data.
        model: For queries: load the model from here instead of from where it was at the build.
        trust: Also load a recorded model or data that is Python code, a relative path or a name on the hub: code that the store names is run.
        central: Examples shown per cluster.
        shared: Principal directions of the rows that are clustered; more tells finer things apart, and has more noise.
        seed: Of the starts.
        output: Also write everything as JSON into this file, the cluster of every example included.
        html: Also write a page.
        as_json: Print JSON instead of the table.

    Raises:
        BadInput: If there is a model or trust without queries.
    """
    from whence.apply.clusters import clusters as find
    from whence.apply.clusters.page import show_clusters, write_clusters
    from whence.load import load_records
    from whence.pipeline import score_table
    from whence.store import open_store, write_json

    if model is not None and queries is None:
        raise BadInput(found="--model without --queries", needed="queries to score with it", do="leave --model out")
    if trust and queries is None:
        raise BadInput(found="--trust without --queries", needed="queries, for which a model is loaded", do="leave --trust out")
    opened = open_store(store)
    table = None
    if queries is not None:
        table = score_table(opened, task_of_store(opened, store, model, trust=trust), load_records(queries))
    found = find(opened, k=k, table=table, central=central, shared=shared, seed=seed)
    if output is not None:
        write_json(output, found.to_dict())
    if html is not None:
        write_clusters(html, found)
    if as_json:
        tell_json(found.to_dict())
    else:
        show_clusters(found)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _prove(
    found: Any, rivals: dict[str, Any], prove: str | None, command: str | None, output: Path, seeds: range, workers: int
):
    from whence.apply.select.proof import prove as run
    from whence.data import digest_of
    from whence.evaluate import CommandTrain, FileTrain, as_reported
    from whence.functions import absolute, sources_of
    from whence.store import write_json

    runner = CommandTrain(command) if command is not None else FileTrain(absolute(str(prove)))
    named = [Path(word) for word in shlex.split(command or "") if Path(word).is_file()]
    files = sources_of(str(prove)) if command is None else named
    ids = [decision.id for decision in found.decisions]
    fingerprint = digest_of(command or str(prove), *ids, *(file.read_bytes().hex() for file in files)).hex()
    proof = run(
        found, runner, as_reported,
        rivals=rivals, seeds=seeds, folder=output / "runs", fingerprint=fingerprint, workers=workers,
    )  # fmt: skip
    write_json(output / "proof.json", proof.to_dict())
    return proof
