"""Scanning a store against this machine's memory and disk: bytes per second, in one run.

    python benchmarks/query_speed.py [--rows 16384 --queries 1 16 256 --dtypes bfloat16 int8 int4 int1]

A store of random rows in the shape of a GPT-2 with 12 layers. "scan" is `top_scores` with k = 100 over files that are in the page cache;
"cold" is the same after the files were dropped from it. Beside them a read-only sweep and a copy of as many bytes of memory, and a plain
sequential read of the same files, cold. Ratios are what to look at: the machine is shared.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch

from whence.data import Dataset, Example
from whence.progress import meter
from whence.score import top_scores
from whence.store import Blueprint, StoredUnit, open_store, write_store

SHAPES = {
    "logra": ([(16, 16)] * 48 + [(1, 64)] * 25 + [(16, 16)], None),
    "lorif": ([(32, 32)] * 48 + [(1, 128)] * 25 + [(32, 32)], 2),
}


def make_store(folder, method, dtype, rows):
    shapes, factor_rank = SHAPES[method]
    units = tuple(StoredUnit(str(i), (str(i),), *shape, shape, 1.0) for i, shape in enumerate(shapes))
    blueprint = Blueprint(
        method=method, method_version=1, projection="rademacher", rank=16, factor_rank=factor_rank, curvature_rank=None, seed=0,
        dtype=dtype, rows_per_shard=2048, batch_positions=1, autocast=None, model="", preprocessing="", task={}, units=units,
    )  # fmt: skip
    dataset = Dataset([Example(str(number), {"x": number}) for number in range(rows)])
    generator = torch.Generator().manual_seed(0)
    codec = blueprint.codec()
    with write_store(folder, blueprint, dataset, append=False) as writer:
        for shard in writer.pending:
            count = shard.stop - shard.start
            # Encoding random matrices would take most of the benchmark's time, and what the numbers are does not matter to a scan.
            sample = codec.encode([torch.randn(64, *shape, generator=generator) for shape in shapes])
            tensors = {name: tensor.repeat(count // 64, *[1] * (tensor.ndim - 1)) for name, tensor in sample.items()}
            writer.write(shard, {**tensors, "norms": torch.ones(count)})
        writer.finish({})
    return open_store(folder), [torch.randn(256, *shape, generator=generator) for shape in shapes]


def drop(store):
    for path in store.folder.rglob("*.safetensors"):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def rate(size, run, rounds, before=lambda: None):
    found = []
    for _ in range(rounds):
        before()
        started = time.perf_counter()
        run()
        found.append(size / (time.perf_counter() - started) / 1e9)
    return statistics.median(found)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=16384)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 16, 256])
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "int8", "int4", "int1"])
    parser.add_argument("--stores", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--cold", action="store_true", help="also with the files dropped from the page cache")
    arguments = parser.parse_args()
    print(f"{arguments.rows:,} rows, {torch.get_num_threads()} threads; GB/s of stored bytes")
    head = ["store", "dtype", "bytes a row", "queries", "rows/s", "scan", "memory read", "memory copy", "scan / read"]
    head += ["cold scan", "cold read", "ratio"] if arguments.cold else []
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for method in arguments.stores:
        for dtype in arguments.dtypes:
            with tempfile.TemporaryDirectory(dir=".") as folder:
                store, queries = make_store(Path(folder), method, dtype, arguments.rows)
                for count in arguments.queries:
                    cells = measure(store, [query[:count] for query in queries], arguments)
                    print(f"| {method} | {dtype} | {store.codec.row_bytes():,} | {count} | {' | '.join(cells)} |", flush=True)


def measure(store, queries, arguments):
    size = store.codec.row_bytes() * len(store)
    block = torch.ones(size // 4)
    target = torch.empty_like(block)

    def read():
        for path in sorted(store.folder.rglob("*.safetensors")):
            with open(path, "rb", buffering=0) as file:
                while file.read(4 << 20):
                    pass

    def scan():
        with meter("", len(store), quiet=True) as progress:
            top_scores(store, queries, 100, norms_Q=None, progress=progress)

    scan()
    # In turns, so that a busy moment hits all three.
    turns = [
        (rate(size, scan, 1), rate(size, block.sum, 1), rate(size, lambda: target.copy_(block), 1))
        for _ in range(arguments.rounds)
    ]
    a, b, c = (statistics.median(column) for column in zip(*turns, strict=True))
    ratio = statistics.median(x / y for x, y, _ in turns)
    cells = [f"{a * 1e9 / store.codec.row_bytes():,.0f}", f"{a:.2f}", f"{b:.2f}", f"{c:.2f}", f"{ratio:.2f}"]
    if arguments.cold:
        cold, disk = (rate(size, run, arguments.rounds, before=lambda: drop(store)) for run in (scan, read))
        cells += [f"{cold:.2f}", f"{disk:.2f}", f"{cold / disk:.2f}"]
    return cells


if __name__ == "__main__":
    main()
