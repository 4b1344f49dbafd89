"""Scanning a store against what this machine's memory, arithmetic and disk allow, in one run.

    python benchmarks/query_speed.py [--stores aligned logra lorif --queries 1 16 256 --dtypes bfloat16 int8 int4 int2 int1 --cold]

Stores of random rows in the system's temporary folder (`TMPDIR` chooses another):
one unit of 1,024 numbers, as codes of `aligned` are, and the shapes of a GPT-2 with 12 layers. "scan" is `top_scores`
with k = 100 over files that are in the page cache. "multiply" is a float32 matrix of as many bytes in memory times one vector, a product
that does nothing else; "read" is a sum over them. "arithmetic" is what the fastest large matrix product of this machine would allow, on
float32 numbers or on int8 ones with three digits a query: no exact scan can be faster. The share is the scan's, of the smaller of "multiply"
and "arithmetic". "cold" is the scan after the files were dropped from the page cache, against a plain sequential read of them. All are
measured in turns: the machine may be shared.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch

from whence.data import Dataset, Example
from whence.matmul import times_transposed
from whence.progress import meter
from whence.score import top_scores
from whence.store import Blueprint, StoredUnit, open_store, write_store

SHAPES = {
    "aligned": ([(1, 1024)], None),
    "logra": ([(16, 16)] * 48 + [(1, 64)] * 25 + [(16, 16)], None),
    "lorif": ([(32, 32)] * 48 + [(1, 128)] * 25 + [(32, 32)], 2),
}


def make_store(folder, method, dtype, arguments, rows_per_shard=4096):
    shapes, factor_rank = SHAPES[method]
    units = tuple(StoredUnit(str(i), (str(i),), *shape, shape, 1.0) for i, shape in enumerate(shapes))
    blueprint = Blueprint(
        method=method, method_version=1, projection="rademacher", rank=16, factor_rank=factor_rank, curvature_rank=None, seed=0,
        dtype=dtype, rows_per_shard=rows_per_shard, batch_positions=1, autocast=None, model="", preprocessing="", task={}, units=units,
    )  # fmt: skip
    rows = min(arguments.rows, (arguments.mib << 20) // blueprint.codec().row_bytes()) // rows_per_shard * rows_per_shard
    dataset = Dataset([Example(str(number), {"x": number}) for number in range(rows)])
    generator = torch.Generator().manual_seed(0)
    codec = blueprint.codec()
    with write_store(folder, blueprint, dataset, append=False) as writer:
        for shard in writer.pending:
            count = shard.stop - shard.start
            # Numbers of one row as they come, all others drawn: encoding would take most of the benchmark's time.
            sample = codec.encode([torch.randn(1, *shape, generator=generator) for shape in shapes])
            tensors = {name: random_like(tensor.expand(count, *tensor.shape[1:]), generator) for name, tensor in sample.items()}
            writer.write(shard, {**tensors, "norms": torch.ones(count)})
        writer.finish({})
    return open_store(folder), [torch.randn(256, *shape, generator=generator) for shape in shapes]


def random_like(tensor, generator):
    if tensor.dtype in (torch.uint8, torch.int8):
        return torch.randint(0, 256, tensor.shape, dtype=torch.uint8, generator=generator).view(tensor.dtype)
    return torch.randn(tensor.shape, generator=generator).to(tensor.dtype)


def drop(store):
    for path in store.folder.rglob("*.safetensors"):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def rate(amount, run, *, clock=time.perf_counter, cold=None):
    if cold is not None:
        drop(cold)
    started = clock()
    run()
    return amount / (clock() - started) / 1e9


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=256, help="size of each store at most")
    parser.add_argument("--rows", type=int, default=1 << 18, help="rows of each store at most")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 16, 256])
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "int8", "int4", "int2", "int1"])
    parser.add_argument("--stores", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument(
        "--processor-time", action="store_true", help="with one thread on a busy machine: leave out waiting for others"
    )
    parser.add_argument("--cold", action="store_true", help="also with the files dropped from the page cache")
    arguments = parser.parse_args()
    clock = "processor" if arguments.processor_time else "wall-clock"
    print(f"{torch.get_num_threads()} threads, {clock} time; GB/s of stored bytes")
    head = ["store", "dtype", "bytes a row", "queries", "rows/s", "scan", "read", "multiply", "arithmetic", "share"]
    head += ["cold scan", "cold read", "ratio"] if arguments.cold else []
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for method in arguments.stores:
        for dtype in arguments.dtypes:
            with tempfile.TemporaryDirectory(prefix="whence-") as folder:
                store, queries = make_store(Path(folder), method, dtype, arguments)
                for count in arguments.queries:
                    cells = measure(store, [query[:count] for query in queries], arguments)
                    print(f"| {method} | {dtype} | {store.codec.row_bytes():,} | {count} | {' | '.join(cells)} |", flush=True)


def measure(store, queries, arguments):
    size, row_bytes = store.codec.row_bytes() * len(store), store.codec.row_bytes()
    matrix, vector = torch.ones(size // 4096, 1024), torch.ones(1024)
    whole = store.blueprint.dtype.startswith("int") and store.blueprint.factor_rank is None
    square = torch.ones(2048, 2048, dtype=torch.int8 if whole else torch.float32)
    columns = -(-3 * len(queries[0]) // 4) * 4 if whole else len(queries[0])
    # Of factored rows nothing is written out: each factor meets the query on one side and its partner on the other.
    ranks = zip(store.codec.ranks, store.codec.shapes, strict=True)
    numbers = sum(p * r if rank is None else min(p * r, rank * (p * r + max(p, r))) for rank, (p, r) in ranks)

    def product():
        torch._int_mm(square, square) if whole else times_transposed(square, square)

    def read():
        for path in sorted(store.folder.rglob("*.safetensors")):
            with open(path, "rb", buffering=0) as file:
                while file.read(4 << 20):
                    pass

    def scan():
        with meter("", len(store), quiet=True) as progress:
            top_scores(store, queries, 100, norms_Q=None, progress=progress)

    # In turns, so that a busy moment hits all of them. Of each the middle one; of what arithmetic allows the best.
    scan()
    clock = time.process_time if arguments.processor_time else time.perf_counter
    jobs = [(size, scan), (size, matrix.sum), (size, lambda: torch.mv(matrix, vector)), (2048**3, product)]
    turns = [[rate(amount, run, clock=clock) for amount, run in jobs] for _ in range(arguments.rounds)]
    found = [sorted(column) for column in zip(*turns, strict=True)]
    scanned, summed, multiplied = (statistics.median(column) for column in found[:3])
    arithmetic = found[3][-1] / (numbers * columns) * row_bytes
    share = statistics.median(turn[0] / min(turn[2], arithmetic) for turn in turns)
    cells = [f"{scanned * 1e9 / row_bytes:,.0f}", *(f"{x:.2f}" for x in (scanned, summed, multiplied, arithmetic, share))]
    if arguments.cold:
        pairs = [(rate(size, scan, cold=store), rate(size, read, cold=store)) for _ in range(3)]
        cold, disk = (statistics.median(column) for column in zip(*pairs, strict=True))
        cells += [f"{cold:.2f}", f"{disk:.2f}", f"{cold / disk:.2f}"]
    return cells


if __name__ == "__main__":
    main()
