"""Do scores follow content or format? Methods on the same queries in another format, against the truth of the queries as they are.

    for s in digits-early digits-mlp; do python benchmarks/other_format.py whence-bench/$s; done

Digits are dimmed by a quarter, texts are wrapped as JSON. LDS with 95 % intervals over queries and subsets, of both in the same draws; and
how alike the scores of both are, query by query.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from whence.bench import ENTRIES, load_setting, prepare, run_setting
from whence.score import loss_scores


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path, help="of a setting of the bench")
    folder = parser.parse_args().folder
    setting = load_setting(folder) if (folder / "setting.json").exists() else prepare(folder.name, folder.parent)
    bench = run_setting(
        setting,
        entries=[replace(entry, has_damping=False, is_ensembled=False) for entry in ENTRIES if entry.has_format],
        removal=(),
        quiet=True,
    )
    rows = {row.method: row.lds for row in bench.evaluation.rows}
    name, other = setting.other_format
    losses = [float(loss_scores(setting.task, data, data, quiet=True).scores[0].mean()) for data in (setting.queries, other)]
    print(f"\n{setting.name}: mean loss of the queries {losses[0]:.2f}, {name} {losses[1]:.2f}")
    print(f"\n| method | LDS | queries {name} | difference | rank correlation | same top 10 |\n|---|---|---|---|---|---|")
    for alike in bench.formats:
        first, second = rows[alike.methods[0]], rows[alike.methods[1]]
        print(
            f"| {alike.methods[0]} | {first.interval} | {second.interval} | {second.minus(first)} | {alike.spearman} | {alike.top} |"
        )


if __name__ == "__main__":
    main()
