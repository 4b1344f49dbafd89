"""Does EK-FAC gain from a recorded run? Its scores at the final weights and averaged along the run, against retraining.

    python benchmarks/along_run.py whence-bench/digits-early             # a setting of `whence bench`; made if it is not there
    python benchmarks/along_run.py whence-bench/text-long --single       # also at every checkpoint alone

LDS with a 95 % interval over queries and subsets, the difference from the final weights in the same draws, and the time over that of the
final weights. The run is the first model's, recorded again; no model of the bank was part of it. Tables are kept in the folder.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import whence
from whence.bench import load_setting, prepare
from whence.evaluate import evaluate, load_table, save_table


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path, help="of a setting of the bench")
    parser.add_argument("--single", action="store_true", help="every checkpoint alone, too")
    parser.add_argument("--workers", type=int, default=2, help="retrainings at a time, where the bank is not there")
    asked = parser.parse_args()
    folder = asked.folder
    setting = load_setting(folder) if (folder / "setting.json").exists() else prepare(folder.name, folder.parent)
    bank = setting.bank(workers=asked.workers)
    run = recorded(setting, folder / "along" / "run")
    steps, last = run.checkpoints[1:], run.checkpoints[-1]
    rows = {"final weights": (last, {})}
    for count in (1, 2, 3, len(steps)):
        rows[f"{count} along the run"] = (last, {"run": run.folder, "checkpoints": count})
    if asked.single:
        rows |= {f"step {step} alone": (step, {}) for step in steps}
    tables = {name: table_of(setting, run, folder / "along", name, *how) for name, how in rows.items()}
    found = {row.method: row for row in evaluate(list(tables.values()), bank).rows}
    first = found["final weights"]
    print(f"\n{setting.name}: {len(setting.train):,} examples; checkpoints after {', '.join(map(str, steps))} steps")
    print("\n| scores | LDS | over the final weights | time |\n|---|---|---|---|")
    for name in tables:
        row = found[name]
        print(f"| {name} | {row.lds.interval} | {row.lds.minus(first.lds)} | {row.seconds / first.seconds:.1f} x |")


def recorded(setting, folder):
    if not (folder / "run.json").exists():
        setting.retrain.recorded(0, folder, setting.train)
    return whence.runs.open_run(folder)


def table_of(setting, run, folder, name, step, options):
    """EK-FAC with a run's weights after some steps."""
    kept = folder / name.replace(" ", "-")
    if not (kept / "table.json").exists():
        task = setting.task
        with run.weights(task.model, [step]):
            table = whence.attribute(
                task,
                setting.train,
                setting.queries,
                method=whence.settings.exact_settings("ekfac", options),
                runtime=whence.Runtime(quiet=True),
            )
        save_table(replace(table, method=name), kept)
    return load_table(kept)


if __name__ == "__main__":
    main()
