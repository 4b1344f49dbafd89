"""Scanning a store against this machine's memory and disk: bytes per second, in one run.

    python benchmarks/query_speed.py [--rows 16384 --queries 1 16]

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

from whence.compress import RowCodec
from whence.data import Dataset, Example
from whence.progress import meter
from whence.score import top_scores
from whence.store import Blueprint, StoredUnit, open_store, write_store

SHAPES = {
    "logra": ([(16, 16)] * 48 + [(1, 64)] * 25 + [(16, 16)], None),
    "lorif": ([(32, 32)] * 48 + [(1, 128)] * 25 + [(32, 32)], 2),
}


def make_store(folder, method, rows):
    shapes, factor_rank = SHAPES[method]
    units = tuple(StoredUnit(str(i), (str(i),), *shape, shape, 1.0) for i, shape in enumerate(shapes))
    blueprint = Blueprint(
        method=method, method_version=1, projection="rademacher", rank=16, factor_rank=factor_rank, curvature_rank=None, seed=0,
        dtype="bfloat16", rows_per_shard=2048, batch_positions=1, autocast=None, model="", preprocessing="", task={}, units=units,
    )  # fmt: skip
    dataset = Dataset([Example(str(number), {"x": number}) for number in range(rows)])
    generator = torch.Generator().manual_seed(0)
    codec: RowCodec = blueprint.codec()
    with write_store(folder, blueprint, dataset, append=False) as writer:
        for shard in writer.pending:
            count = shard.stop - shard.start
            layout = {
                name: torch.randn(count, *shape, generator=generator).to(codec.dtype) for name, shape in codec.layout().items()
            }
            writer.write(shard, {**layout, "norms": torch.ones(count)})
        writer.finish({})
    return open_store(folder), [torch.randn(16, *shape, generator=generator) for shape in shapes]


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
    arguments = parser.parse_args()
    print(f"{arguments.rows:,} rows, bf16, {torch.get_num_threads()} threads; GB/s")
    print("| store | bytes a row | queries | scan | memory read | memory copy | scan / read | cold scan | cold read | ratio |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for method in SHAPES:
        with tempfile.TemporaryDirectory(dir=".") as folder:
            store, queries = make_store(Path(folder), method, arguments.rows)
            size = store.codec.row_bytes() * len(store)
            block = torch.ones(size // 4)
            target = torch.empty_like(block)

            def read(store=store):
                for path in sorted(store.folder.rglob("*.safetensors")):
                    with open(path, "rb", buffering=0) as file:
                        while file.read(4 << 20):
                            pass

            for count in (1, 16):
                chosen = [query[:count] for query in queries]

                def scan(store=store, chosen=chosen):
                    with meter("", len(store), quiet=True) as progress:
                        top_scores(store, chosen, 100, norms_Q=None, progress=progress)

                scan()
                # In turns, so that a busy moment hits all three.
                warm = [
                    (
                        rate(size, scan, 1),
                        rate(size, block.sum, 1),
                        rate(size, lambda a=target, b=block: a.copy_(b), 1),
                    )
                    for _ in range(arguments.rounds)
                ]
                a, b, c = (statistics.median(column) for column in zip(*warm, strict=True))
                ratio = statistics.median(x / y for x, y, _ in warm)
                cold, disk = (rate(size, run, arguments.rounds, before=lambda store=store: drop(store)) for run in (scan, read))
                print(
                    f"| {method} | {store.codec.row_bytes():,} | {count} | {a:.2f} | {b:.2f} | {c:.2f} | {ratio:.2f} "
                    f"| {cold:.2f} | {disk:.2f} | {cold / disk:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
