"""What grows with the number of training examples: time and memory of opening, scanning, verifying and appending to a store.

    python benchmarks/growth.py [--rows 1000 10000 100000 1000000] [--shape factors|codes --dtype int4]

The rows are synthetic: random numbers in the shape of one factor per layer of a small model (six 16 x 16 units) or of one code of 1,024
numbers, ids and short texts made up. Every step runs in a process of its own; memory is that process's peak above what the imports take.
The store lies in the system's temporary folder (`TMPDIR` chooses another) and in the page cache.
"first open" reads and checks every byte, as the first open after a copy does; "open" finds the notes of
that check.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from whence.data import Dataset, Example
from whence.progress import meter
from whence.score import top_scores
from whence.store import Blueprint, StoredUnit, open_store, verify_store, write_store
from whence.store.cache import note_path

SHAPES = {"factors": ([(16, 16)] * 6, 1), "codes": ([(1, 1024)], None)}
APPENDED = 1000
STEPS = ("first open", "open", "scan", "verify", "append")


def blueprint(shape, dtype):
    shapes, factor_rank = SHAPES[shape]
    units = tuple(StoredUnit(str(i), (str(i),), *each, each, 1.0) for i, each in enumerate(shapes))
    return Blueprint(
        method="lorif", method_version=1, projection="rademacher", rank=16, factor_rank=factor_rank, curvature_rank=None, seed=0, dtype=dtype,
        rows_per_shard=4096, batch_positions=1, autocast=None, model="", preprocessing="", task={}, units=units,
    )  # fmt: skip


def add(folder, made, first, count):
    """As a build does: rows shard by shard, then the manifest."""
    dataset = Dataset([Example(str(number), {"x": number}, text=f"text {number}") for number in range(first, first + count)])
    with write_store(folder, made, dataset, append=first > 0) as writer:
        shapes = [unit.projected for unit in made.units]
        codec, generator = made.codec(), torch.Generator().manual_seed(first)
        for shard in writer.pending:
            rows = [torch.randn(64, *shape, generator=generator) for shape in shapes]
            repeat = -(-(shard.stop - shard.start) // 64)
            tensors = {
                name: tensor.repeat(repeat, *[1] * (tensor.ndim - 1))[: shard.stop - shard.start]
                for name, tensor in codec.encode(rows).items()
            }
            writer.write(shard, {**tensors, "norms": torch.ones(shard.stop - shard.start)})
        writer.finish({})


def run(step, folder):
    if step == "append":
        store = open_store(folder, check=False)
        return add(folder, store.blueprint, len(store), APPENDED)
    if step == "first open":
        note = note_path(folder)
        if note is not None:
            note.unlink(missing_ok=True)
    store = open_store(folder, check=step in ("first open", "open"))
    if step == "scan":
        with meter("", len(store), quiet=True) as progress:
            top_scores(store, [torch.randn(1, *shape) for shape in store.codec.shapes], 10, norms_Q=None, progress=progress)
    if step == "verify":
        assert verify_store(store) == []
    return None


def peak_mib():
    # Not getrusage: its peak outlives exec, so that of the parent would be counted.
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--shape", choices=list(SHAPES), default="factors")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument(
        "--step", nargs=2, metavar=("STEP", "FOLDER"), help="one step in this process; used by the benchmark itself"
    )
    arguments = parser.parse_args()
    if arguments.step:
        before, started = peak_mib(), time.perf_counter()
        run(arguments.step[0], Path(arguments.step[1]))
        print(json.dumps([time.perf_counter() - started, peak_mib() - before]))
        return
    print(f"synthetic rows, {arguments.shape}, {arguments.dtype}; each cell: seconds, MiB")
    print(f"| rows | shards | {' | '.join(STEPS)} |\n|{'---|' * (2 + len(STEPS))}")
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory(prefix="whence-") as folder:
            # In parts, so that making them does not take the memory of a million examples.
            for first in range(0, rows, 250_000):
                add(Path(folder), blueprint(arguments.shape, arguments.dtype), first, min(250_000, rows - first))
            cells = [str(len(open_store(folder, check=False).seals))]
            for step in STEPS:
                command = [sys.executable, __file__, "--step", step, folder]
                seconds, mib = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                cells.append(f"{seconds:.3f}, {mib:.0f}")
        print(f"| {rows:,} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
