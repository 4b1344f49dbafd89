"""What going back through a run is worth on one that converged, one that was stopped early and one of two stages, and what it costs.

    OMP_NUM_THREADS=1 python benchmarks/through_training.py -o whence-bench [digits-mlp digits-early digits-stages] [--methods NAME ...]

The settings and banks are those of `whence bench`, and are made if they are not there. Passes are examples that went forwards through the
model, by hand or under torch.func, over the examples there are; a step backwards comes with nearly each. The disk holds the recorded run,
counted with the first method that needs it, and the fitted curvature, which serve any further query; what the method before left is used.
LDS has 95 % intervals over queries and subsets.

    OMP_NUM_THREADS=1 python benchmarks/through_training.py -o whence-bench --front digits-mlp digits-early digits-stages table

prints the front between truth and cost instead: LDS, its difference from EK-FAC at the run's end in the same bootstrap draws, and processor
time in units of one training run and of that EK-FAC, all of the same process and each method from nothing: neither fits nor runs are used
twice, but recording the run is not counted.
"""

import argparse
import shutil
import statistics
import time
from pathlib import Path
from unittest.mock import patch

NAMES = ("grad-dot-exact", "ekfac", "ekfac-run", "tracin", "less", "dvemb", "source", "fast-source", "astra-source", "unroll")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", default=["digits-mlp", "digits-early", "digits-stages"])
    parser.add_argument("-o", "--output", type=Path, default=Path("whence-bench"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--methods", nargs="*", choices=NAMES, default=NAMES)
    parser.add_argument("--front", action="store_true", help="the front between truth and cost")
    arguments = parser.parse_args()
    for name in arguments.settings:
        if arguments.front:
            front(name, arguments.output, arguments.workers)
        else:
            run(name, arguments.output, arguments.workers, arguments.methods)


def run(name, output, workers, methods):
    from whence.bench import ENTRIES, prepare
    from whence.evaluate import evaluate

    setting = prepare(name, output)
    bank = setting.bank(workers=workers)
    entries = {entry.name: entry for entry in ENTRIES}
    work = setting.folder / "through"
    shutil.rmtree(work, ignore_errors=True)
    costs, tables = [], []
    for method in (known for known in methods if name not in entries[known].not_on):
        before, examples, started = _mebibytes(work), [0], time.process_time()
        task = setting.member(0)
        handle = task.model.register_forward_pre_hook(
            lambda _, inputs, named, seen=examples: _count(seen, [*inputs, *named.values()]), with_kwargs=True
        )
        tables.append(entries[method].make(setting, task, work / f"{method}-0"))
        handle.remove()
        costs.append((method, examples[0] / len(setting.train), time.process_time() - started, _mebibytes(work) - before))
    found = evaluate(tables, bank)
    row_of = {row.method: row for row in found.rows}
    print(f"\n## {name}\n\n| method | LDS | passes | processor, s | disk, MiB |\n|---|---|---|---|---|")
    for (method, passes, seconds, disk), table in zip(costs, tables, strict=True):
        print(f"| {method} | {row_of[table.method].lds.interval} | {passes:,.0f} | {seconds:,.1f} | {disk:,.1f} |", flush=True)
    print(found.summary())


def front(name, output, workers):
    from whence.bench import prepare
    from whence.evaluate import Judge
    from whence.runs import open_run

    setting = prepare(name, output)
    judge = Judge(setting.bank(workers=workers))
    folders = {count: setting.folder / "front" / f"run-{count}" for count in (6, 12)}
    for count, folder in folders.items():
        if not (folder / "run.json").exists():
            setting.retrain.recorded(0, folder, setting.train, checkpoints=count)
    runs = {count: open_run(folder) for count, folder in folders.items()}
    _, training = _timed(lambda: setting.fit(1))
    first = first_seconds = None
    print(f"\n## {name}: ceiling {judge.ceiling.reachable:.2f}\n")
    print("| method | LDS | over EK-FAC at the end | training runs | EK-FACs |\n|---|---|---|---|---|")
    for label, make in _rows(setting, runs).items():
        table, seconds = _timed(make)
        lds = judge.lds(table)
        first, first_seconds = first or lds, first_seconds or seconds
        print(
            f"| {label} | {lds.interval} | {lds.minus(first)} | {seconds / training:.2g} | {seconds / first_seconds:.2g} |",
            flush=True,
        )


def _rows(setting, runs):
    """By name, what makes the table of a method from nothing; first EK-FAC at the run's end."""
    import whence
    from whence.pipeline.through import exact_unroll
    from whence.score import mean_table
    from whence.unroll import Replay

    quiet, run = whence.Runtime(quiet=True), runs[6]

    def attributed(method, task=None):
        task = setting.task if task is None else task
        return whence.attribute(task, setting.train, setting.queries, method=method, runtime=quiet)

    def at_mean_weights():
        task = setting.task
        with run.weights(task.model, run.checkpoints[1:], at="measurements"):
            return attributed("ekfac", task)

    def apart(count):
        """EK-FAC of models trained apart, which are trained here."""
        tasks = [setting.task, *(setting.task_of(*setting.fit(seed)) for seed in range(1, count))]
        return mean_table([attributed("ekfac", task) for task in tasks])

    def last_steps(share):
        """The exact derivative of the run's last intervals, from the checkpoint before them on."""

        class Last(Replay):
            @property
            def intervals(self):
                intervals = super().intervals
                return intervals[-max(1, round(share * len(intervals))) :]

        with patch.object(exact_unroll, "Replay", Last):
            return attributed(whence.settings.Unroll(run=run.folder))

    along = {
        count: (lambda count=count, of=of: attributed(whence.EKFAC(run=runs[of].folder, checkpoints=count)))
        for count, of in ((3, 6), (12, 12))
    }
    shorts = {count: (lambda count=count: attributed(whence.EKFAC(run=run.folder, members=count))) for count in (1, 4)}
    return {
        "EK-FAC at the end": lambda: attributed("ekfac"),
        "EK-FAC at mean weights of 6 checkpoints": at_mean_weights,
        "EK-FAC along the run, 3 checkpoints a stage": along[3],
        "EK-FAC along the run, 12 checkpoints a stage": along[12],
        "EK-FAC, the end and 1 short run": shorts[1],
        "EK-FAC, the end and 4 short runs": shorts[4],
        "EK-FAC, 2 models trained apart": lambda: apart(2),
        "EK-FAC, 5 models trained apart": lambda: apart(5),
        "TracIn": lambda: attributed(whence.settings.TracIn(run=run.folder)),
        "FAST-SOURCE, 3 segments": lambda: attributed(whence.Source(run=run.folder, average_weights=True)),
        "SOURCE, 3 segments": lambda: attributed(whence.Source(run=run.folder)),
        "unrolling the last sixth of the run": lambda: last_steps(1 / 6),
        "unrolling all steps": lambda: last_steps(1.0),
    }


def _timed(make):
    """What it gives, and the median processor time of as many as take two seconds, three at most."""
    seconds = []
    while not seconds or (len(seconds) < 3 and sum(seconds) < 2):
        started = time.process_time()
        result = make()
        seconds.append(time.process_time() - started)
    return result, statistics.median(seconds)


def _count(seen, inputs):
    seen[0] += len(inputs[0]) if inputs[0].ndim > 1 else 1


def _mebibytes(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20


if __name__ == "__main__":
    main()
