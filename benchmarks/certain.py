"""Classifiers that are certain of everything they learned: which scores are right, and are their sizes?

    python benchmarks/certain.py whence-bench/digits-certain    # a setting of `whence bench`; made if it is not there
    python benchmarks/certain.py whence-bench/text-labels

LDS with a 95 % interval over queries and subsets, the difference from the plain product of gradients in the same draws, and the slope:
what the loss changed by per unit of predicted change. A slope far below 1 means sizes that cannot be believed.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import whence
from whence.bench import load_setting, prepare
from whence.evaluate import evaluate, load_table, save_table
from whence.settings import EKFAC, Damping, FitConfig, GradDot

ROWS = {
    "gradient dot product": ("loss", GradDot()),
    "EK-FAC, default damping": ("loss", EKFAC()),
    "EK-FAC, 1 x mean": ("loss", EKFAC(damping=Damping(relative=1.0))),
    "EK-FAC, .01 x mean": ("loss", EKFAC(damping=Damping(relative=0.01))),
    "EK-FAC, labels of the data": ("loss", EKFAC(fit=FitConfig(labels="dataset"))),
    "gradient dot product, log-odds": ("margin", GradDot()),
    "EK-FAC, log-odds": ("margin", EKFAC()),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path, help="of a setting of the bench")
    parser.add_argument("--workers", type=int, default=2, help="retrainings at a time, where the bank is not there")
    options = parser.parse_args()
    folder = options.folder
    setting = load_setting(folder) if (folder / "setting.json").exists() else prepare(folder.name, folder.parent)
    bank = setting.bank(workers=options.workers)
    tables = [table_of(setting, folder / "certain", name, *how) for name, how in ROWS.items()]
    evaluation = evaluate(tables, bank)
    rows = {row.method: row for row in evaluation.rows}
    first = rows["gradient dot product"].lds
    print(f"\n{setting.name}: {len(setting.train):,} examples, ceiling {evaluation.ceiling.reachable:.2f}")
    print("\n| scores | LDS | over the dot product | slope | largest score |\n|---|---|---|---|---|")
    for table in tables:
        row = rows[table.method]
        largest = float(table.scores.abs().max())
        print(
            f"| {table.method} | {row.lds.interval} | {row.lds.minus(first)} | {row.calibration.slope.mean:.2g} | {largest:.2g} |"
        )


def table_of(setting, folder, name, measure, method):
    """Scores of a method, made once; the bank measures losses, so log-odds are held against these, too."""
    kept = folder / name.replace(" ", "-").replace(",", "")
    if not (kept / "table.json").exists():
        task = whence.Classification(setting.task.model, measure=measure, recipe=setting.task.recipe)
        table = whence.attribute(task, setting.train, setting.queries, method=method, runtime=whence.Runtime(quiet=True))
        save_table(replace(table, method=name, unit=setting.task.unit), kept)
    return load_table(kept)


if __name__ == "__main__":
    main()
