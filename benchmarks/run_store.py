"""Does a store of a run beat a store of its end? The same bytes for each example, spent on one checkpoint or on several.

    for s in digits-stages digits-early digits-mlp; do python benchmarks/run_store.py whence-bench/$s; done

LDS with a 95 % interval over queries and subsets, and the difference from the store of the final weights in the same draws. The run is the
first model's, recorded again with six checkpoints a stage. An example has rows in the stores of the stages that met it.
"""

import argparse
import tempfile
from pathlib import Path

import whence
from whence.bench import load_setting, prepare
from whence.evaluate import Judge
from whence.pipeline import build, build_along, score_along, score_table
from whence.pipeline.through.along import points_of

QUIET = whence.Runtime(quiet=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path, help="of a setting of the bench")
    folder = parser.parse_args().folder
    setting = load_setting(folder) if (folder / "setting.json").exists() else prepare(folder.name, folder.parent)
    judge, task, where = Judge(setting.bank()), setting.task, folder / "along" / "run"
    if not (where / "run.json").exists():
        setting.retrain.recorded(0, where, setting.train)
    run = whence.runs.open_run(where)
    print(f"\n{setting.name}\n\n| store | bytes/example | LDS | over the end |\n|---|---|---|---|")
    for size in (512, 128):
        with tempfile.TemporaryDirectory() as work:
            store = build(task, setting.train, work, config=whence.BuildConfig(bytes_per_example=size), runtime=QUIET)
            end = score_table(store, task, setting.queries, runtime=QUIET)
        first = judge.lds(end)
        print(f"| the end | {end.bytes_per_example:.0f} | {first.interval} | |", flush=True)
        for count in (1, 2, 3):
            met = sum(len(point.shares) for point in points_of(run, count)) / len(setting.train)
            with tempfile.TemporaryDirectory() as work:
                config = whence.BuildConfig(bytes_per_example=int(size / met))
                build_along(
                    task, setting.train, work, run=where, checkpoints=count, config=config, runtime=QUIET
                )  # fmt: skip
                table = score_along(work, task, setting.queries, runtime=QUIET)
            row = judge.lds(table)
            print(f"| {count} a stage | {table.bytes_per_example:.0f} | {row.interval} | {row.minus(first)} |", flush=True)


if __name__ == "__main__":
    main()
