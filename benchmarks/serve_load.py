"""What the service adds to the scan, what sharing scans saves, and whether it holds a load.

    python benchmarks/serve_load.py [--users 16 --rows 60000 --rank 8 --seconds 20 --minutes 0 --requests 10000]

A store of made rows around a small GPT-2 (nothing here depends on what rows hold), and the real service in a process of its own, asked by
users that each ask again as soon as they are answered. "bare" makes the same queries' gradients and scans the store in this process without
any service, as many at a time as there are users: what is left is the service's own work. Every user asks something else. Latencies are
medians, turn by turn, since the machine may be shared; processor time is the service's alone, and says less about the machine's other work.
"sealed" is the service with credits and receipts of every answer. It and the plain one are asked in turns of a few answers, so that both meet
the same machine: the ratio of their p50 has a 95 % bootstrap interval over turns.
--minutes holds the load for so long; --requests counts that many. Both read the service's memory before and after, and count failures.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch

import whence
from whence.data import Dataset
from whence.demo.model import Settings, new_model, save, train_tokenizer
from whence.ledger import new_key
from whence.pipeline.stored.prepared import PreparedStore
from whence.progress import meter, say
from whence.records import Recipe
from whence.score import top_scores
from whence.tasks import CausalLM

PROMPT, COMPLETION = "word one two three four five six", " seven eight nine {}"


def question(user):
    return {"prompt": PROMPT, "completion": COMPLETION.format(user)}


def make_store(folder, rows, rank):
    texts = [f"word {number} and {number * 7919 % 10007} more" for number in range(rows)]
    tokenizer = train_tokenizer([*texts[:2000], "".join(question(1).values())], Settings(vocabulary=500))
    save(new_model(len(tokenizer), 0), tokenizer, Recipe("adamw", 1.0), folder / "model")
    task = CausalLM(new_model(len(tokenizer), 0).eval(), tokenizer)
    records = [{"id": str(number), "source": f"s{number % 20}", "text": text} for number, text in enumerate(texts)]
    origin = {"model": str(folder / "model"), "task": "causal_lm", "options": {}}
    # An inner product of rows of this size is the scan of any method; building it takes the least time.
    store = whence.build(
        task,
        records,
        folder / "store",
        origin=origin,
        config=whence.BuildConfig(method="grad-dot", rank=rank, dtype="bfloat16"),
        runtime=whence.Runtime(quiet=True),
    )
    return store, task


def bare(store, task, users, seconds):
    """Seconds of one round of as many queries as there are users, warm, without a service; and processor seconds of a query."""
    warm = PreparedStore.load(store, task)
    queries = task.prepare([{"id": str(user), **question(user)} for user in range(users)])
    found, until, spent = [], time.monotonic() + seconds, time.process_time()
    while not found or time.monotonic() < until:
        started = time.monotonic()
        asked = warm.prepare(Dataset(queries.examples), quiet=True)
        with meter("scan", len(store), quiet=True) as progress:
            high, low = top_scores(
                asked.store, asked.preconditioned, 10, norms_Q=asked.norms_Q, progress=progress, roots=asked.roots
            )
        store.examples_of(torch.cat([high.rows_QK, low.rows_QK], 1).flatten().tolist())
        found.append(time.monotonic() - started)
    return found, (time.process_time() - spent) / len(found) / users


class Service:
    """The service in a process of its own."""

    def __init__(self, folder, **options):
        given = [part for name, value in options.items() for part in _option(name, value)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "whence.cli", "serve", str(folder / "store"), "--port", "0", "--json", "--max-waiting", "256", *given],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self.client = whence.serve.Client(json.loads(self.process.stdout.readline())["url"], seconds=120)

    def memory(self):
        """MiB of the process that are its own: not the files of the store that it maps."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024

    def processor(self):
        """Processor seconds of the process so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def load(self, users, seconds=None, requests=None):
        """Latencies of all that was answered, failures, and the time it took."""
        latencies, failures, lock = [], [], threading.Lock()
        started = time.monotonic()

        def user(number):
            asked = question(number)
            while True:
                with lock:
                    is_over = len(latencies) + len(failures) >= requests if requests else time.monotonic() - started > seconds
                if is_over:
                    return
                began = time.monotonic()
                try:
                    self.client.attribute(asked["completion"], prompt=asked["prompt"], store="store", k=10)
                    with lock:
                        latencies.append(time.monotonic() - began)
                except whence.WhenceError as error:
                    with lock:
                        failures.append(str(error))
                    time.sleep(0.1)

        threads = [threading.Thread(target=user, args=(number,)) for number in range(users)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return latencies, failures, time.monotonic() - started

    def held(self, what, users, **how):
        """Load it and print what came of it; first a little, since a service takes its memory with its first answers."""
        self.load(users, requests=50 * users)
        before = self.memory()
        latencies, failures, spent = self.load(users, **how)
        after, cuts = self.memory(), statistics.quantiles(latencies, n=100)
        print(
            f"{what}: {len(latencies):,} answers in {spent / 60:.1f} minutes, {len(failures)} failures {failures[:1] or ''}; "
            f"p50 {1e3 * cuts[49]:.0f} ms, p99 {1e3 * cuts[98]:.0f} ms, longest {1e3 * max(latencies):.0f} ms; "
            f"memory {before:.1f} MiB, then {after:.1f}"
        )

    def stop(self):
        """End it."""
        self.process.terminate()
        self.process.wait()


def _option(name, value):
    return [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]


def sealed_service(folder):
    """A service that keeps credits and seals every answer."""
    new_key(folder / "sealing.key")
    return Service(
        folder, log=folder / "c.sqlite", credits=True, receipts=folder / "receipts.jsonl", sign_with=folder / "sealing.key"
    )


def compared(plain, sealed, users, seconds):
    """Latencies of two services by turn, and the processor seconds of an answer of each."""
    turns, until = [], time.monotonic() + seconds
    before = [service.processor() for service in (plain, sealed)]
    while len(turns) < 2 or time.monotonic() < until:
        found = {}
        for service in (plain, sealed) if len(turns) % 2 else (sealed, plain):
            found[service], failures, _ = service.load(users, seconds=0.05 if users == 1 else 0.5)
            assert not failures, failures[:1]
        turns.append((found[plain], found[sealed]))
    spent = [service.processor() - start for service, start in zip((plain, sealed), before, strict=True)]
    return turns, [seconds / sum(len(turn[side]) for turn in turns) for side, seconds in enumerate(spent)]


def print_compared(users, turns, spent):
    """The ratio of p50, its interval, and that of processor time."""

    def middles(drawn):
        return [statistics.median(latency for turn in drawn for latency in turn[side]) for side in (0, 1)]

    generator = random.Random(0)
    draws = [middles(generator.choices(turns, k=len(turns))) for _ in range(1000)]
    ratios = sorted(mine / theirs for theirs, mine in draws)
    plain, sealed = middles(turns)
    print(
        f"with credits and receipts, {users} user(s): p50 {1e3 * sealed:.1f} ms, without {1e3 * plain:.1f} ms, ratio {sealed / plain:.2f} "
        f"[{ratios[25]:.2f}, {ratios[-26]:.2f}] over {len(turns)} turns; processor time {1e3 * spent[1]:.1f} and {1e3 * spent[0]:.1f} ms"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=16)
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--rank", type=int, default=8, help="of the rows, whose bytes grow with its square")
    parser.add_argument("--seconds", type=float, default=20, help="of each measurement")
    parser.add_argument("--minutes", type=float, default=0, help="hold the load for so long besides")
    parser.add_argument("--requests", type=int, default=0, help="ask so often besides, and watch the memory")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        say(f"a store of {arguments.rows:,} rows ...")
        store, task = make_store(folder, arguments.rows, arguments.rank)
        size = len(store) * store.codec.row_bytes() / 2**20
        machine = f"{torch.get_num_threads()} threads, {os.cpu_count()} cores"
        print(f"{len(store):,} rows of {store.codec.row_bytes():,} bytes, {size:.0f} MiB; {machine}")
        shared, alone = Service(folder, log=folder / "a.sqlite"), Service(folder, log=folder / "b.sqlite", batch=1)
        sealed = sealed_service(folder)
        for service in (shared, alone, sealed):
            service.load(arguments.users, seconds=2)
        rounds = {"bare": [], "service": [], "one": [], "bare one": []}
        rates = {"shared": [], "alone": []}
        each = {"service": [], "bare": []}
        for _ in range(3):
            found, spent = bare(store, task, arguments.users, arguments.seconds / 3)
            rounds["bare"] += found
            each["bare"].append(spent)
            rounds["bare one"] += bare(store, task, 1, arguments.seconds / 6)[0]
            before = shared.processor()
            latencies, failures, spent = shared.load(arguments.users, seconds=arguments.seconds / 3)
            each["service"].append((shared.processor() - before) / len(latencies))
            rounds["service"] += latencies
            rates["shared"].append(len(latencies) / spent)
            rounds["one"] += shared.load(1, seconds=arguments.seconds / 6)[0]
            latencies, more, spent = alone.load(arguments.users, seconds=arguments.seconds / 3)
            rates["alone"].append(len(latencies) / spent)
            assert not failures and not more, (failures + more)[:1]
        middle = {key: statistics.median(values) for key, values in rounds.items()}
        one, bare_one = middle["one"], middle["bare one"]
        print(f"1 user: {1e3 * one:.0f} ms, bare {1e3 * bare_one:.0f} ms, ratio {one / bare_one:.2f}")
        print(
            f"{arguments.users} users: latency {1e3 * middle['service']:.0f} ms, a bare round of as many {1e3 * middle['bare']:.0f} ms"
        )
        print(f"ratio of latencies {middle['service'] / middle['bare']:.2f}")
        for users in (1, arguments.users):
            print_compared(users, *compared(shared, sealed, users, 2 * arguments.seconds))
        mine, theirs = (statistics.median(each[key]) for key in ("service", "bare"))
        print(f"processor time per query {1e3 * mine:.2f} ms, bare {1e3 * theirs:.2f} ms, ratio {mine / theirs:.2f}")
        shared_rate, alone_rate = (statistics.median(rates[key]) for key in ("shared", "alone"))
        print(f"throughput: {shared_rate:.1f} answers/s sharing scans, {alone_rate:.1f} without")
        alone.stop()
        sealed.stop()
        if arguments.minutes:
            shared.held(f"held {arguments.minutes:g} minutes", arguments.users, seconds=60 * arguments.minutes)
        if arguments.requests:
            shared.held(f"{arguments.requests:,} requests", arguments.users, requests=arguments.requests)
        shared.stop()


if __name__ == "__main__":
    main()
