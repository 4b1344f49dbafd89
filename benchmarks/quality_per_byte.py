"""What a store's bytes buy: every stored method at several sizes beside those of other systems, against retraining and exact scores.

whence bench text digits-mlp -o whence-bench        # models and banks; the rest is made here
OMP_NUM_THREADS=1 python benchmarks/quality_per_byte.py whence-bench/text whence-bench/digits-mlp --peers peers --figure quality.svg

Tables of peers come from benchmarks/peers, a folder per setting. A store and its table are made once and kept in the folder `quality` of the
setting, with the seconds of the processor that they took; a second run only prints. All tables are judged on all queries, with the same
bootstrap draws, so that differences are paired. Bytes per example are those of a row; shared bytes are everything else that scores are made
with (bases, axes, curvature), and the last column of bytes spreads them over the examples.
"""

import argparse
import json
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from quality_figure import Curve, Panel, draw

import whence
from whence.bench import load_setting
from whence.evaluate import Bank, Judge, Lds, agreement, load_table, save_table
from whence.records import ScoreTable
from whence.score import bm25

_SIZES = (64, 128, 256, 512, 1024, 2048, 16384)
_QUARTER = 256
_TYPES = ("int1", "int4", "int8", "bfloat16")
_TOP = 100
# The one aligned store that fits its curvature itself, so that its seconds are those of a build from nothing.
_ALONE = 512


@dataclass(frozen=True)
class Result:
    """One table with what it costs.

    Args:
        curve: Name of the method, the line in the figure.
        size: What tells it from the others of its curve.
        table: The scores.
        lds: Against retraining.
        shared: Bytes kept once for all examples; None where nobody measured them.
        build_seconds: Of the processor; None if not measured.
        query_seconds: The same for all queries.
    """

    curve: str
    size: str
    table: ScoreTable
    lds: Lds
    shared: int | None = None
    build_seconds: float | None = None
    query_seconds: float | None = None

    @property
    def name(self):
        """In tables."""
        return f"{self.curve}, {self.size}" if self.size else self.curve


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="+", type=Path, help="folders of the bench")
    parser.add_argument("--peers", type=Path, help="folder with a folder of tables per setting")
    parser.add_argument(
        "--bytes", nargs="+", type=int, default=_SIZES, help="that method aligned is asked for, 64 and 512 among them"
    )
    parser.add_argument("--figure", type=Path, help="where to draw it")
    arguments = parser.parse_args()
    panels = []
    for folder in arguments.settings:
        setting = load_setting(folder)
        bank = setting.bank(quiet=True)
        judge = Judge(bank)
        exact = references(setting, judge)
        found = [*stored(setting, judge, arguments.bytes), *peers(arguments.peers, setting, judge)]
        show(setting.name, bank, exact, found)
        claims(exact, found)
        times(found)
        panels.append(panel(setting.name, exact, found))
    if arguments.figure is not None:
        arguments.figure.write_text(draw(panels), encoding="utf-8")


def references(setting, judge):
    """Exact scores, and words: by name."""
    found = {}
    for method in ("ekfac", "grad-dot-exact"):
        folder = setting.folder / "quality" / method
        if not (folder / "table.json").exists():
            factors = setting.folder / "quality" / "factors" if method == "ekfac" else None
            save_table(
                whence.attribute(
                    setting.task,
                    setting.train,
                    setting.queries,
                    method=whence.settings.exact_settings(method, {"factors": factors}),
                ),
                folder,
            )
        table = load_table(folder)
        found[method] = Result(method, "", table, judge.lds(table))
    if setting.name == "text":
        table = bm25(setting.train, setting.queries)
        found["bm25"] = Result("BM25", "", table, judge.lds(table))
    return found


def sizes():
    """Curve, size and options of every store."""
    for dtype in _TYPES:
        yield "logra rank 32", dtype, {"method": "logra", "rank": 32, "dtype": dtype}
        yield "lorif rank 32, 2 factors", dtype, {"method": "lorif", "rank": 32, "factor_rank": 2, "dtype": dtype}
        yield "lorif rank 32, 1 factor", dtype, {"method": "lorif", "rank": 32, "factor_rank": 1, "dtype": dtype}
        yield "logra rank 16", dtype, {"method": "logra", "rank": 16, "dtype": dtype}
    yield "logra-pca", "rank 16", {"method": "logra-pca", "rank": 16}
    for rank in (16, 32):
        yield "factgrass", f"rank {rank}", {"method": "factgrass", "rank": rank}
        yield "trackstar", f"rank {rank}", {"method": "trackstar", "rank": rank}
    yield "trak", "512", {"method": "trak", "rank": 512}
    yield "trak", "2,048, sparse", {"method": "trak", "rank": 2048, "projection": "sparse"}
    yield "grass", "512", {"method": "grass", "rank": 512}
    yield "grass-selective", "512", {"method": "grass-selective", "rank": 512}


def stored(setting, judge, bytes_asked):
    """All of our stores."""
    everyone = min(len(setting.train), whence.methods.METHODS["aligned"].axes_examples)
    for curve, axes in (("aligned", everyone), (f"aligned, axes from {_QUARTER} documents", _QUARTER)):
        options = {} if axes == everyone else {"axes_examples": axes}
        for size in sorted(bytes_asked):
            yield one(setting, judge, curve, f"up to {size:,}", {"method": "aligned", "bytes_per_example": size, **options})
            if size >= 2 * axes:
                break  # a bfloat16 for every axis that the sample has
    for curve, size, options in sizes():
        yield one(setting, judge, curve, size, options)


def one(setting, judge, curve, size, options):
    """One store's result, made if it is not there."""
    folder = setting.folder / "quality" / "-".join(f"{value}" for value in (*options.values(), len(options)))
    if not (folder / "cost.json").exists():
        print(f"{setting.name}: {curve}, {size}", file=sys.stderr, flush=True)
        place = folder / "store"
        shutil.rmtree(place, ignore_errors=True)
        is_shared = options["method"] == "aligned" and (options["bytes_per_example"] != _ALONE or "axes_examples" in options)
        factors = setting.folder / "quality" / "factors" if is_shared else None
        started = time.process_time()
        store = whence.build(
            setting.task,
            setting.train,
            place,
            config=whence.BuildConfig(factors=factors, **options),
            runtime=whence.Runtime(quiet=True),
        )
        built = time.process_time()
        table = whence.score_table(store, setting.task, setting.queries, runtime=whence.Runtime(quiet=True))
        asked = time.process_time()
        save_table(table, folder)
        cost = {
            "shared": sum(path.stat().st_size for path in place.glob("*.safetensors")),
            "build_seconds": None if is_shared else built - started,
            "query_seconds": asked - built,
        }
        (folder / "cost.json").write_text(json.dumps(cost))
        shutil.rmtree(place)
    table = load_table(folder)
    return Result(curve, size, table, judge.lds(table), **json.loads((folder / "cost.json").read_text()))


def peers(folder, setting, judge):
    """Tables of other systems, those with stores and the exact ones of bergson."""
    if folder is None:
        return
    for path in sorted((folder / setting.name).glob("*/table.json")):
        table, facts = load_table(path.parent), json.loads(path.read_text())
        if table.bytes_per_example is None and "bergson EK-FAC" not in table.method:
            continue
        # Their stages are told on the wall.
        share = facts["fit_seconds"] / (facts["fit_seconds"] + facts["score_seconds"])
        cpu = facts.get("cpu_seconds")
        seconds = (None, None) if cpu is None else (cpu * share, cpu * (1 - share))
        head, size, *rest = table.method.split(", ")
        curve = ", ".join([head, *rest])
        yield Result(curve, size, table, judge.lds(table), None, *seconds)


def show(name, bank: Bank, exact, found):
    """The table."""
    print(f"### {name}\n")
    print(
        "| store | bytes/example | shared, MiB | bytes/example with the shared | LDS | 95 % interval "
        "| Spearman with gradient dot | with EK-FAC | top-100 overlap with gradient dot | with EK-FAC |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for result in sorted([*exact.values(), *found], key=lambda result: -result.lds.interval.mean):
        size, shared = result.table.bytes_per_example, result.shared
        alike = [agreement(exact[other].table, result.table, k=_TOP) for other in ("grad-dot-exact", "ekfac")]
        cells = (
            result.name,
            "" if size is None else f"{size:,.0f}",
            "" if shared is None else f"{shared / 2**20:.1f}",
            "" if size is None or shared is None else f"{size + shared / len(bank.train_ids):,.0f}",
            f"{result.lds.interval.mean:.3f}",
            f"{result.lds.interval.low:.3f} to {result.lds.interval.high:.3f}",
            *(f"{found.spearman.mean:.3f}" for found in alike),
            *(f"{found.top.mean:.2f}" for found in alike),
        )
        print(f"| {' | '.join(cells)} |")
    chance = _TOP / len(bank.train_ids)
    print(f"\n{len(bank.train_ids):,} examples, {len(bank.query_ids)} queries; an overlap of {chance:.2f} is chance.\n")


def claims(exact, found):
    """Paired differences for what matters."""
    print("| LDS of | minus that of | difference | 95 % interval |")
    print("|---|---|---|---|")
    aligned = {result.size: result for result in found if result.curve == "aligned"}
    quarter = [result for result in found if result.curve.startswith("aligned, axes")]
    largest = list(aligned.values())[-1]
    rivals = [result for result in found if not result.curve.startswith("aligned") and result.table.bytes_per_example]
    rivals.sort(key=lambda result: -result.lds.interval.mean)
    ours = {(result.curve, result.size): result for result in found}
    pairs = [(largest, exact["ekfac"]), (quarter[-1], exact["ekfac"])]
    pairs += [(aligned["up to 512"], result) for result in found if not result.table.bytes_per_example]
    pairs += [(aligned["up to 64"], rival) for rival in rivals[:3]]
    pairs += [(quarter[0], rivals[0])]
    for dtype in _TYPES:
        lorif = ours["lorif rank 32, 1 factor", dtype]
        pairs += [(lorif, ours[f"logra rank {rank}", dtype]) for rank in (16, 32)]
    for first, second in pairs:
        gap = first.lds.minus(second.lds)
        sizes = [
            f" ({result.table.bytes_per_example:,.0f} bytes)" if result.table.bytes_per_example else ""
            for result in (first, second)
        ]
        print(f"| {first.name}{sizes[0]} | {second.name}{sizes[1]} | {gap.mean:+.3f} | {gap.low:+.3f} to {gap.high:+.3f} |")
    print()


def times(found):
    """Seconds of the processor of the builds that were timed whole."""
    print("| store | build, CPU s | all queries, CPU s |\n|---|---|---|")
    for result in sorted(found, key=lambda result: result.build_seconds or 0):
        if result.build_seconds is not None:
            print(f"| {result.name} | {result.build_seconds:.1f} | {result.query_seconds:.1f} |")
    print()


def panel(name, exact, found):
    """What the figure shows of a setting: the best ridge or damping of each peer's method only."""
    curves = {}
    for result in found:
        if result.table.bytes_per_example:
            interval = result.lds.interval
            point = (result.table.bytes_per_example, interval.mean, interval.low, interval.high)
            curves.setdefault(result.curve, {})[point[0]] = point
    best = {}
    for curve, points in curves.items():
        is_peer = curve.split()[0] in ("bergson", "dattri", "traker")
        key = curve.split(",")[0] if is_peer else curve
        if key not in best or max(p[1] for p in points.values()) > max(p[1] for p in best[key].values()):
            best[key] = points
    lines = {
        "exact EK-FAC": exact["ekfac"],
        **{result.curve.split(",")[0]: result for result in found if "EK-FAC" in result.name},
    }
    lines |= {"BM25": exact["bm25"]} if "bm25" in exact else {}
    return Panel(
        name,
        tuple(Curve(curve, tuple(sorted(points.values()))) for curve, points in best.items()),
        {label: result.lds.interval.mean for label, result in lines.items()},
    )


if __name__ == "__main__":
    main()
