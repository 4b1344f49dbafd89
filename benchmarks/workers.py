"""What several processes gain over one, what it costs to ask them, and how long a killed one holds an answer up.

    OMP_NUM_THREADS=1 python benchmarks/workers.py [--mib 2048 --rounds 9 --examples 2000 --no-ray]

1. A store of made rows (see query_speed.py; `TMPDIR` says where it lies),
   asked for 100 hits a side. "scan" is one process's `top_scores`, "round trip" the same question
   to workers: everything that is sent and put together is in it. The ideal is the scan over the number of workers, and "added" the rest.
   Under torchrun every process has the question, and what is gathered is their hits.
2. A worker is killed after a third of a scan, without warning. "held up" is how much longer that answer took than a calm one.
3. The commands `whence build` and `whence query` as they are typed, on a small GPT-2, alone and under torchrun with two processes. What the
   same command takes on 64 examples, which is starting, is taken off; twice as fast is ideal.

Medians of rounds taken in turns. With one thread a process; more processes than free cores cannot be faster.
"""

import argparse
import json
import logging
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from query_speed import make_store

import whence
from whence.demo.model import Settings, new_model, save, train_tokenizer
from whence.distributed import Ranks
from whence.progress import meter, say
from whence.records import Recipe
from whence.score import top_scores

HITS = 100
COUNTS = (1, 16)


def seconds(run, *arguments):
    started = time.perf_counter()
    run(*arguments)
    return time.perf_counter() - started


def scan(store, queries, ranks=Ranks()):
    with meter("", len(store), quiet=True) as progress:
        top_scores(store, queries, HITS, norms_Q=None, progress=progress, ranks=ranks)


def ask(workers, store, queries):
    return workers.top_scores(store, queries, HITS, norms_Q=None)


def ms(value):
    return f"{1e3 * value:,.1f}"


def round_trips(store, queries, engines, rounds):
    print(
        "\n| workers | queries | scan, ms | round trip, ms | ideal, ms | added, ms | ratio to the scan |\n|---|---|---|---|---|---|---|"
    )
    for name, ray in engines:
        for workers in (1, 2):
            with whence.workers.Workers(workers, ray=ray) as pool:
                for count in COUNTS:
                    some = [unit[:count] for unit in queries]
                    for _ in range(3):  # each worker maps its own shards
                        ask(pool, store, some)
                    scan(store, some)
                    pairs = [(seconds(scan, store, some), seconds(ask, pool, store, some)) for _ in range(rounds)]
                    line(f"{workers} {name}", count, workers, *map(statistics.median, zip(*pairs, strict=True)))


def line(name, queries, workers, bare, trip):
    cells = [name, str(queries), ms(bare), ms(trip), ms(bare / workers), ms(trip - bare / workers), f"{bare / trip:.2f}"]
    print(f"| {' | '.join(cells)} |", flush=True)


def gathered(store, queries, rounds):
    """The same under torchrun: this file again, as a rank."""
    torch.save(queries, store.folder / "queries.pt")
    command = [*torchrun(2), __file__, "--as-rank", str(store.folder), "--rounds", str(rounds)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    for count, trip in zip(COUNTS, found, strict=True):
        some = [unit[:count] for unit in queries]
        line("2 torchrun", count, 2, statistics.median(seconds(scan, store, some) for _ in range(rounds)), trip)


def as_rank(folder, rounds):
    ranks, store = Ranks.launched(), whence.open_store(folder, check=False)
    queries, found = torch.load(store.folder / "queries.pt"), []
    with ranks.connected():
        for count in COUNTS:
            some = [unit[:count] for unit in queries]
            scan(store, some, ranks)
            times = []
            for _ in range(rounds):
                ranks.wait()
                times.append(seconds(scan, store, some, ranks))
            found.append(statistics.median(times))
    if ranks.rank == 0:
        print(json.dumps(found))


def recoveries(store, queries, engines, rounds):
    print("\n| workers | calm answer, s | with one killed, s | held up, s |\n|---|---|---|---|")
    some = [unit[:16] for unit in queries]
    for name, ray in engines:
        for count in (1, 2):
            calm, disturbed = [], []
            with whence.workers.Workers(count, ray=ray) as pool:
                for _ in range(3):
                    ask(pool, store, some)
                for _ in range(rounds):
                    calm.append(seconds(ask, pool, store, some))
                    before = pool.losses
                    killer = threading.Timer(calm[-1] / 3, kill_first, [pool])
                    killer.start()
                    spent = seconds(ask, pool, store, some)
                    killer.join()
                    if pool.losses > before:  # else the answer was there first
                        disturbed.append(spent)
                    while pool._assignment.slots[0].worker is None or not pool._assignment.slots[0].is_ready:
                        ask(pool, store, some)
            if disturbed:
                a, b = statistics.median(calm), statistics.median(disturbed)
                print(f"| {count} {name} | {a:.3f} | {b:.3f} ({len(disturbed)} of {rounds}) | {b - a:.3f} |", flush=True)
            else:
                print(
                    f"| {count} {name} | {statistics.median(calm):.3f} | over too soon to kill: a larger --mib | |", flush=True
                )


def kill_first(pool):
    worker = pool._assignment.slots[0].worker
    if hasattr(worker, "process"):
        os.kill(worker.process.pid, signal.SIGKILL)
    else:
        worker.ray.kill(worker.actor)


def commands(folder, examples, rounds):
    texts = [f"word {number} and {number * 7919 % 10007} more, " * 3 for number in range(examples)]
    tokenizer = train_tokenizer(texts, Settings(vocabulary=500))
    save(new_model(len(tokenizer), 0), tokenizer, Recipe("adamw", 1.0), folder / "model")
    for name, some in (("few", texts[:64]), ("all", texts)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in some))
    took = {}
    for number in range(rounds):
        for count, starter in ((1, [sys.executable]), (2, torchrun(2))):
            for name in ("few", "all"):
                store = folder / f"{name}-{count}-{number}"
                build = [
                    "build",
                    folder / "model",
                    folder / f"{name}.jsonl",
                    "-o",
                    store,
                    "--method",
                    "logra",
                    "--rows-per-shard",
                    "64",
                ]
                query = ["query", store, "--text", texts[0], "-k", str(HITS), "--json"]
                for verb in (build, query):
                    command = [*starter, "-m", "whence", *map(str, verb)]
                    spent = seconds(lambda: subprocess.run(command, check=True, capture_output=True))  # noqa: B023
                    took.setdefault((verb[0], count, name), []).append(spent)
    print(
        "\n| command | one process, s | two, s | of it start, one, s | two, s | ratio without start |\n|---|---|---|---|---|---|"
    )
    for verb in ("build", "query"):
        all_1, few_1, all_2, few_2 = (statistics.median(took[verb, count, name]) for count in (1, 2) for name in ("all", "few"))
        ratio = (all_1 - few_1) / (all_2 - few_2) if all_1 > few_1 and all_2 > few_2 else float("nan")
        print(
            f"| {verb}, {examples:,} examples | {all_1:.1f} | {all_2:.1f} | {few_1:.1f} | {few_2:.1f} | {ratio:.2f} |",
            flush=True,
        )


def torchrun(count):
    return [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=2048, help="size of the store")
    parser.add_argument("--rows", type=int, default=1 << 22, help="rows of the store at most")
    parser.add_argument("--method", default="logra", help="of the store")
    parser.add_argument("--dtype", default="bfloat16", help="of the store")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--examples", type=int, default=2000, help="of the build; 0 leaves the commands out")
    parser.add_argument("--no-ray", action="store_true")
    parser.add_argument("--as-rank", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    if arguments.as_rank:
        as_rank(arguments.as_rank, arguments.rounds)
        return
    logging.getLogger("whence.workers").setLevel(logging.ERROR)  # the kills are meant
    engines = [("local", None)] + ([] if arguments.no_ray else [("Ray", "local")])
    with tempfile.TemporaryDirectory(prefix="whence-") as name:
        folder = Path(name)
        say("a store of made rows ...")
        store, queries = make_store(folder / "store", arguments.method, arguments.dtype, arguments)
        size = len(store) * store.codec.row_bytes() / 2**20
        print(
            f"{len(store):,} rows of {store.codec.row_bytes():,} bytes, {size:,.0f} MiB in {len(store.seals)} shards; {os.cpu_count()} cores"
        )
        round_trips(store, queries, engines, arguments.rounds)
        gathered(store, queries, arguments.rounds)
        recoveries(store, queries, engines, arguments.rounds)
        if arguments.examples:
            commands(folder, arguments.examples, max(1, arguments.rounds // 3))


if __name__ == "__main__":
    main()
