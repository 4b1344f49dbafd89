"""What going back through a run is worth on one that converged, one that was stopped early and one of two stages, and what it costs.

    OMP_NUM_THREADS=1 python benchmarks/through_training.py -o whence-bench [digits-mlp digits-early digits-stages]

The settings and banks are those of `whence bench`, and are made if they are not there. Passes are examples that went forwards through the
model, by hand or under torch.func, over the examples there are; a step backwards comes with nearly each. The disk holds the recorded run,
counted with the first method that needs it, and the fitted curvature, which serve any further query; what the method before left is used.
LDS has 95 % intervals over queries and subsets.
"""

import argparse
import shutil
import time
from pathlib import Path

NAMES = ("grad-dot-exact", "ekfac", "ekfac-run", "tracin", "less", "source", "fast-source", "astra-source", "unroll")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", default=["digits-mlp", "digits-early", "digits-stages"])
    parser.add_argument("-o", "--output", type=Path, default=Path("whence-bench"))
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    for name in arguments.settings:
        run(name, arguments.output, arguments.workers)


def run(name, output, workers):
    from whence.bench import ENTRIES, prepare
    from whence.evaluate import evaluate

    setting = prepare(name, output)
    bank = setting.bank(workers=workers)
    entries = {entry.name: entry for entry in ENTRIES}
    work = setting.folder / "through"
    shutil.rmtree(work, ignore_errors=True)
    costs, tables = [], []
    for method in (known for known in NAMES if name not in entries[known].not_on):
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


def _count(seen, inputs):
    seen[0] += len(inputs[0]) if inputs[0].ndim > 1 else 1


def _mebibytes(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20


if __name__ == "__main__":
    main()
