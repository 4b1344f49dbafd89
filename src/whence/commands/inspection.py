"""Verbs that look: at a store, at what a run would take, at the methods there are."""

from dataclasses import asdict
from pathlib import Path

from whence.commands.recorded import recorded_needs_trust
from whence.commands.shared import Json
from whence.commands.stores import Flat
from whence.commands.task_options import Reading, TaskOptions
from whence.errors import BadInput
from whence.methods import EXACT_METHODS, METHODS
from whence.settings import BuildConfig
from whence.terminal import tell, tell_json

__all__ = ["forecast", "inspect", "methods", "verify"]

# Options of a task that say nothing about a model of which only sizes are known.
_PLAIN = {name: value for name, value in asdict(TaskOptions()).items() if name not in ("track", "ignore")}


def verify(folder: Path, *, seal: str | None = None, as_json: Json = False) -> int:
    """Check that a store is what was written: checksums, shapes, ids, finite numbers; or a report of shares, by computing it again.

    Args:
        folder: Folder made by `whence build`, or by `whence shares`.
        seal: Of a report of shares: the seal that was printed when it was made, to find a folder that was rewritten as a whole.
        as_json: Print JSON.

    Returns:
        Exit status: 0 if all is well, 1 if not.

    Raises:
        BadInput: If a seal is given for a store, or a report of shares has lost its record.
    """
    from whence.apply.shares.verify import is_share_report
    from whence.store import open_store, verify_store

    if is_share_report(folder):
        return _verify_shares(folder, seal, as_json)
    if (folder / "shares.json").exists():
        raise BadInput(
            found=f"a report of shares without its record.json in {folder}",
            needed="the record that its figures are held against",
            do="restore it from a copy, or make the report again",
        )
    opened = open_store(folder, check=False)
    if seal is not None:
        raise BadInput(found=f"a seal for the store in {folder}", needed="a report of shares", do="leave --seal out")
    faults = verify_store(opened)
    if as_json:
        tell_json({"rows": len(opened), "shards": len(opened.seals), "faults": faults})
        return 1 if faults else 0
    for fault in faults:
        tell(fault)
    if not faults:
        tell(f"{folder}: {len(opened):,} rows in {len(opened.seals)} shards, all as sealed")
    return 1 if faults else 0


def inspect(store: Path, *, as_json: Json = False) -> None:
    """Say what a store holds, and what of its model and data would be loaded with --trust only. Nothing of it is loaded.

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
        "needs_trust": recorded_needs_trust(opened, store),
    }
    if as_json:
        tell_json(content)
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
        tell(f"{name:>16}  {content[name]}")
    tell(f"{'model':>16}  {blueprint.task.get('model', 'given in Python')} (weights {blueprint.model[:12]})")
    tell(f"{'data':>16}  {blueprint.task.get('data', 'given in Python')}")
    for why in content["needs_trust"]:
        tell(f"{'with --trust':>16}  {why}")
    tell(f"{'units':>16}  {len(blueprint.units)}: {', '.join(unit.name for unit in blueprint.units[:3])} ...")


def forecast(
    model: str | None = None,
    data: str | None = None,
    *,
    exact: str | None = None,
    queries: str | None = None,
    query_rank: int | None = None,
    factors: Path | None = None,
    largest_side: int | None = None,
    memory_gib: float | None = None,
    run: Path | None = None,
    segments: int | None = None,
    model_shape: str | None = None,
    examples: float | None = None,
    tokens_per_example: int | None = None,
    num_queries: int | None = None,
    gpus: int | None = None,
    gpu: str | None = None,
    tflops: float | None = None,
    utilisation: float | None = None,
    disk_gbps: float | None = None,
    as_json: Json = False,
    reading: Reading = TaskOptions(),
    config: Flat = BuildConfig(),
) -> None:
    """Say what a build would take in memory, disk and time, without building; or, with --exact, what `whence attribute` would take.

    With --model-shape and --examples instead of a model and data, nothing is run: arithmetic for a size that is not at hand, on so many GPUs.

    Args:
        model: As in build.
        data: As in build.
        exact: An exact method of `whence methods`, as --method of attribute, instead of a build.
        queries: As in attribute; for --exact.
        query_rank: As in attribute.
        factors: As in attribute.
        largest_side: As in attribute.
        memory_gib: As in attribute.
        run: As in attribute.
        segments: As in attribute.
        model_shape: Sizes of a known model: llama-1b, llama-8b, llama-70b, olmo-1b, olmo-7b or olmo-32b.
        examples: Training examples, such as 1e9; for --model-shape, as all that follow.
        tokens_per_example: Of every example; 512 if left out.
        num_queries: Asked at once; 1 if left out.
        gpus: Devices, one process each; 1 if left out.
        gpu: a100, h100 (if left out), h200 or b200.
        tflops: Operations a second of a large product on one device, in 10^12, instead of the data sheet's.
        utilisation: Share of them that a build reaches; .4 if left out.
        disk_gbps: 10^9 bytes a second that each process reads and writes; 2 if left out.
        as_json: Print JSON.
        reading: As in build.
        config: As in build.

    Raises:
        BadInput: If options of the one are given for the other.
    """
    cluster = {"gpus": gpus, "gpu": gpu, "tflops": tflops, "utilisation": utilisation, "disk_gbps": disk_gbps}
    sizes = {"examples": examples, "tokens_per_example": tokens_per_example, "num_queries": num_queries} | cluster
    if model_shape is not None:
        of_a_run = {
            "a model": model, "--exact": exact, "--queries": queries, "--query-rank": query_rank, "--factors": factors,
            "--largest-side": largest_side, "--memory-gib": memory_gib, "--run": run, "--segments": segments,
            **{f"--{name.replace('_', '-')}": value != _PLAIN[name] for name, value in asdict(reading).items() if name in _PLAIN},
        }  # fmt: skip
        given = [name for name, value in of_a_run.items() if value is not None and value is not False]
        if given or examples is None:
            raise BadInput(
                found=f"--model-shape with {given[0]}" if given else "--model-shape without --examples",
                needed="sizes alone: --examples, and what the cluster is",
                do="leave the other out, or --model-shape" if given else "add --examples, such as 1e9",
            )
        if examples != examples // 1:  # which NaN and infinity are not either
            raise BadInput(found=f"--examples {examples:g}", needed="a whole number", do="correct it, such as 1e9")
        _at_scale(model_shape, sizes, cluster, reading.track, reading.ignore, config, as_json)
        return
    unused = [name for name, value in sizes.items() if value is not None]
    if unused or model is None or data is None:
        raise BadInput(
            found=f"--{unused[0].replace('_', '-')} without --model-shape" if unused else "a forecast of nothing",
            needed="a model and its data, or --model-shape and --examples",
            do="add --model-shape and --examples, or leave it out" if unused else "such as: whence forecast MODEL DATA",
        )
    from whence.load import load_records
    from whence.pipeline import forecast_build, forecast_exact

    of_exact = {
        "queries": queries,
        "query_rank": query_rank,
        "factors": factors,
        "largest_side": largest_side,
        "memory_gib": memory_gib,
        "run": run,
        "segments": segments,
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
            do="add --queries FILE" if queries is None else "leave the options of a build out, or --exact",
        )
    records = load_records(data, split=reading.split)
    loaded, _ = reading.load(model)
    if exact is None:
        found = forecast_build(loaded, records, config)
    else:
        asked = loaded.prepare(load_records(str(queries)))
        found = forecast_exact(
            loaded, records, len(asked), method=exact, query_rank=query_rank, factors=factors,
            largest_side=largest_side, memory_gib=memory_gib, run=run, segments=segments,
        )  # fmt: skip
    tell_json(found.to_dict()) if as_json else tell(*str(found).split("\n"))


def _at_scale(shape, sizes, cluster, track, ignore, config: BuildConfig, as_json: bool) -> None:
    from whence.pipeline import Cluster, forecast_scale

    found = forecast_scale(
        shape, int(sizes["examples"]), config, Cluster(**{name: value for name, value in cluster.items() if value is not None}),
        tokens_per_example=512 if sizes["tokens_per_example"] is None else sizes["tokens_per_example"],
        queries=1 if sizes["num_queries"] is None else sizes["num_queries"], track=track, ignore=ignore,
    )  # fmt: skip
    tell_json(found.to_dict()) if as_json else tell(*str(found).split("\n"))


def methods(*, as_json: Json = False) -> None:
    """List the attribution methods, what each is made of and where it comes from.

    Args:
        as_json: Print everything as JSON.
    """
    from whence.report import print_methods

    if as_json:
        tell_json([asdict(method) for method in (*METHODS.values(), *EXACT_METHODS.values())])
    else:
        print_methods(METHODS.values(), EXACT_METHODS.values())


def _verify_shares(folder: Path, seal: str | None, as_json: bool) -> int:
    from whence.apply.shares.verify import verify_shares

    found = verify_shares(folder, seal=seal)
    if as_json:
        tell_json(asdict(found))
        return 1 if found.faults else 0
    for fault in found.faults:
        tell(fault)
    for note in found.notes:
        tell(f"note: {note}")
    if not found.faults:
        tell(
            f"{folder}: {found.sources:,} sources, {found.queries:,} queries; all files as recorded, all figures computed again"
        )
    return 1 if found.faults else 0
