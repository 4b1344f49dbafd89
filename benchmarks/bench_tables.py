"""The bench's results as the tables of docs/results.md.

whence bench -o whence-bench
python benchmarks/bench_tables.py [whence-bench]
"""

import json
import sys
from pathlib import Path


def cell(value, digits=3):
    return "" if value is None else f"{value:,.{digits}f}"


def table(evaluation):
    print("| method | LDS | 95 % interval | of ceiling | one seed | slope | bytes/example | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    for row in evaluation["rows"]:
        lds, share, calibration = row["lds"], row["share_of_ceiling"], row["calibration"]
        cells = (
            row["method"] + (" (tuned)" if row["is_tuned"] else ""),
            cell(lds["mean"]),
            f"{lds['low']:.3f} to {lds['high']:.3f}",
            "" if share is None else f"{share:.0%}",
            cell(row["same_seed"]),
            "" if calibration is None else f"{calibration['slope']['mean']:.2g}",
            cell(row["bytes_per_example"], 0),
            cell(row["seconds"], 1),
        )
        print(f"| {' | '.join(cells)} |")
    print(f"\n{evaluation['summary']}\n")


def damping(results):
    if not results["tuning"]:
        return
    rows = {row["method"]: row["lds"]["mean"] for row in results["tuning"]["rows"]}
    print("| method | LDS, damping chosen without retraining | LDS, tuned on the other queries | tuned value |")
    print("|---|---|---|---|")
    for name, found in results["tuned"].items():
        print(f"| {name} | {cell(rows[name])} | {cell(rows[found['method']])} | {found['label']} |")
    print(f"\nOn the {len(results['tuning']['query_ids'])} queries that nothing was tuned on.\n")


def main():
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "whence-bench")
    for path in sorted(folder.glob("*/results.json")):
        results = json.loads(path.read_text())
        print(f"### {path.parent.name}\n")
        table(results["evaluation"])
        damping(results)


if __name__ == "__main__":
    main()
