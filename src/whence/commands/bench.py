"""Verbs that tell the whole story: the demo, and every method on small real settings."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from whence.commands.shared import Json
from whence.commands.truth import show_evaluation
from whence.terminal import tell, tell_json

__all__ = ["bench", "demo"]


def bench(
    settings: tuple[str, ...] = (),
    /,
    *,
    output: Annotated[Path, Parameter(alias="-o")] = Path("whence-bench"),
    extra: Path | None = None,
    method: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    workers: int = 2,
    only_finished: bool = False,
    as_json: Json = False,
) -> None:
    """Every method on small real settings, held against retraining.

    The first run makes the banks, which takes most of the time; whatever is finished is kept.

    Args:
        settings: Some of digits-mlp, digits-cnn, text, table, digits-stages, digits-early, digits-noisy, digits-diffusion; all of them if
            left out. Or text-long, digits-certain or text-labels, which take long, or text-medium, slow: a language model of 10.5 million
            parameters whose bank takes a core about half an hour and whose tables take it an hour and more.
        output: Folder for models, banks, tables, results and pages.
        extra: Folder with a subfolder per setting of other systems' tables, see benchmarks/peers.
        method: Methods of your own, each as file.py:function, which is run: called with the task (task.model was trained on everything), the
            training examples and the queries, it returns scores of shape (queries, train). Made beside them are only controls; other
            methods' tables are shown where they are there already.
        workers: Training runs at a time.
        only_finished: Make nothing: hold the tables that earlier or running calls have made against the halves that they have retrained.
        as_json: Print JSON instead of tables.
    """
    from whence.bench import ONLY_NAMED, SETTINGS, own_entry, prepare, run_setting, write_leaderboard
    from whence.evaluate import write_evaluation
    from whence.report import Point
    from whence.store import write_bytes

    results, own = {}, [own_entry(name) for name in method]
    for name in settings or [name for name in SETTINGS if name not in ONLY_NAMED]:
        setting = prepare(name, output)
        result = run_setting(
            setting, own=own, extra=None if extra is None else extra / name, workers=workers, only_finished=only_finished
        )
        results[name] = result.to_dict()
        write_bytes(setting.folder / "results.json", [json.dumps(results[name], indent=1).encode() + b"\n"])
        series = {
            curve.method: [Point(fraction, *asdict(curve.rise(fraction)).values()) for fraction in curve.fractions]
            for curve in result.curves
        }
        write_evaluation(setting.folder / "results.html", result.evaluation, title=f"The bench: {name}", curves=series)
        if not as_json:
            _show_bench(name, result)
    page = write_leaderboard(output)
    if as_json:
        tell_json(results)
    else:
        tell(f"all settings on one page: {page}")


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


def _show_bench(name: str, result: Any) -> None:
    from whence.report import print_table

    show_evaluation(result.evaluation, output=None, as_json=False, title=name)
    if result.tuning is not None:
        show_evaluation(
            result.tuning, output=None, as_json=False, title=f"{name}: damping chosen without retraining, and tuned"
        )
    if result.formats:
        rows = [(each.methods[0], str(each.spearman), str(each.top)) for each in result.formats]
        header = ("method", "rank correlation", f"same top {result.formats[0].k}")
        print_table(header, rows, title=f"{name}: scores of the same queries in another format, held against those as they are")
    if result.curves:
        fractions = result.curves[0].fractions
        rows = [(curve.method, *(curve.over_random(fraction) for fraction in fractions)) for curve in result.curves]
        title = f"{name}: rise of the queries' mean loss without the highest scored, over that without random ones"
        print_table(("method", *(f"{fraction:.0%}" for fraction in fractions)), rows, title=title)
    if result.brittleness:
        ks = result.brittleness[0].ks
        rows = [
            (f"{each.method}: {condition}", *(f"{each.share(condition, k).mean:.0%}" for k in ks))
            for each in result.brittleness
            for condition in (each.flipped_at if each is result.brittleness[0] else ("proponents",))
        ]
        num_queries = len(result.brittleness[0].query_ids)
        print_table(
            ("removed", *map(str, ks)),
            rows,
            title=f"{name}: share of {num_queries} right queries that flip without their top k",
        )
    if result.mislabels is not None:
        rows = [
            (label, str(each.auc), f"{each.average_precision:.3f}", *(f"{share:.0%}" for share in each.found.values()))
            for label, each in result.mislabels.detections.items()
        ]
        shares = next(iter(result.mislabels.detections.values())).found
        header = ("score", "AUC", "average precision", *(f"found in top {share:.0%}" for share in shares))
        print_table(header, rows, title=f"{name}: {result.mislabels.num_flipped} wrong labels")
