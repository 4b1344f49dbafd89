"""What reading a store by copying its bytes, and holding each tensor against its checksum, adds to a scan.

    OMP_NUM_THREADS=1 python benchmarks/read_checks.py [--mib 512 --rounds 7]

A store of random rows of 28,288 bytes in bfloat16, shards of 28 MiB, in the page cache, and one query. "mapped" multiplies the rows of
mapped files; "copied" is a scan once every tensor was held against its checksum, "summed" one that does that on the way; "first" is a
new reader, whose memory is new, too; "memory" is a reader that kept what it read. "opened" is `open_store` with its notes, "checked"
takes the SHA-256 of everything. All are measured in turns: a thread of its own copies ahead of the scan, so that processor time is more
than what the scan waits.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from query_speed import make_store
from safetensors import safe_open

from whence.progress import meter
from whence.score import top_scores
from whence.store import open_store


class _Mapped:
    """A store whose shards are mapped."""

    def __init__(self, store):
        self.store, self.codec, self.seals, self.blueprint = store, store.codec, store.seals, store.blueprint

    def __len__(self):
        return len(self.store)

    def shards(self, ranks=None):
        wanted = [*self.codec.layout(), *self.blueprint.columns()]
        for start, seal in zip(self.store.starts, self.seals, strict=True):
            with safe_open(self.store.folder / f"shards/{seal.number:05d}.safetensors", framework="pt") as file:
                yield start, {name: file.get_tensor(name) for name in wanted}


def scan(store, queries):
    with meter("", len(store), quiet=True) as progress:
        top_scores(store, queries, 100, norms_Q=None, progress=progress)


def timed(run):
    wall, processor = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - processor


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    arguments.rows = 1 << 30
    with tempfile.TemporaryDirectory(prefix="whence-") as folder:
        store, queries = make_store(Path(folder), "logra", "bfloat16", arguments, rows_per_shard=1024)
        queries = [query[:1] for query in queries]
        time.sleep(2.1)  # files as young as this are not noted
        open_store(folder)
        kept = store.in_memory()
        jobs = {
            "mapped": lambda: scan(_Mapped(store), queries),
            "copied": lambda: scan(store, queries),
            "summed": lambda: (store.opened._summed.clear(), scan(store, queries)),
            "first": lambda: scan(open_store(folder), queries),
            "memory": lambda: scan(kept, queries),
            "opened": lambda: open_store(folder),
            "checked": lambda: open_store(folder).bad_files(),
        }
        for job in jobs.values():
            job()
        turns = [{name: timed(job) for name, job in jobs.items()} for _ in range(arguments.rounds)]
        size = store.codec.row_bytes() * len(store)
        print(f"{torch.get_num_threads()} threads, {len(store.seals)} shards, {size / 2**20:,.0f} MiB")
        print("| how | wall, ms | processor, ms | GB/s, wall | GB/s, processor |\n|---|---|---|---|---|")
        for name in jobs:
            wall, processor = (statistics.median(turn[name][place] for turn in turns) for place in (0, 1))
            print(
                f"| {name} | {wall * 1e3:.1f} | {processor * 1e3:.1f} | {size / wall / 1e9:.2f} | {size / processor / 1e9:.2f} |"
            )


if __name__ == "__main__":
    main()
