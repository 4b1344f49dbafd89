"""Two processes against one on the same work, and how soon the work of a killed process is taken over.

    python benchmarks/ranks.py [--examples 256 --layers 4 --width 256 --vocabulary 2048 --length 128 --queries 4 --repeats 3]

A Llama model with random weights. Each process has one thread and loads the model before the clock starts: what is timed goes from the moment
all of them are ready to the moment the last one is done. Jobs with one and with two processes take turns; the ratio is the median over
pairs, of 2 at best, less where the machine is busy or has fewer than two free cores. Figures go to stdout, progress to stderr.
"""

import argparse
import contextlib
import multiprocessing
import os
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

from whence.settings import BuildConfig, Runtime, exact_settings

os.environ["OMP_NUM_THREADS"] = "1"
SHARD = 16


def job(arguments):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    import whence
    import whence.pipeline  # noqa: F401, so that no time is spent importing when it counts

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        num_hidden_layers=arguments.layers, hidden_size=arguments.width, intermediate_size=2 * arguments.width,
        num_attention_heads=arguments.width // 32, vocab_size=arguments.vocabulary, max_position_embeddings=arguments.length,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    task = whence.CausalLM(LlamaForCausalLM(config), tokenizer=None, track=["*proj.weight"])
    count = arguments.examples + arguments.queries
    texts = [{"input_ids": torch.randint(arguments.vocabulary, (arguments.length,)).tolist()} for _ in range(count)]
    return task, task.prepare(texts[: arguments.examples]), texts[arguments.examples :]


def work(what, task, train, queries, folder, ranks):
    import whence

    runtime = Runtime(batch_positions=1024, quiet=True, ranks=ranks)
    if what == "build":
        build(task, train, folder, ranks)
    elif what == "curvature":
        whence.pipeline.fit_curvature(task, train, folder, runtime=runtime)
    else:
        solving = {"iterations": 3} if what == "pcg" else {}
        whence.attribute(
            task,
            train,
            queries,
            method=exact_settings(what, {"factors": folder, **solving}),
            runtime=runtime,
        )


def build(task, train, folder, ranks):
    import whence

    whence.build(
        task,
        train,
        folder,
        config=BuildConfig(method="logra", rank=16, rows_per_shard=SHARD, batch_positions=1024),
        runtime=Runtime(quiet=True, ranks=ranks),
    )


def timed(rank, count, port, what, folder, arguments, pipe):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    from whence.distributed import Ranks

    ranks = Ranks(rank, count)
    task, train, queries = job(arguments)
    with ranks.connected():
        ranks.wait()
        started = time.monotonic()
        work(what, task, train, queries, folder, ranks)
        ranks.wait()
        pipe.send(time.monotonic() - started)


def seconds(what, count, port, arguments, factors):
    """Of a job with so many processes; a fit that scores need is made before."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as place:
        folder = factors if what in ("ekfac", "pcg") else Path(place) / "made"
        here, there = context.Pipe(duplex=False)
        children = [
            context.Process(target=timed, args=(rank, count, port, what, folder, arguments, there)) for rank in range(count)
        ]
        for child in children:
            child.start()
        for child in children:
            child.join()
        if any(child.exitcode for child in children):
            raise SystemExit(f"{what} with {count} processes failed")
        return max(here.recv() for _ in children)


def held(rank, folder, arguments, pipe):
    """A rank of a build that says which shards it gets; rank 1 stays with its first one for ever."""
    from whence.distributed import Ranks
    from whence.store.writer import Writer

    claims = Writer.claims

    def told(self):
        for shard in claims(self):
            pipe.send((rank, shard.number, time.monotonic()))
            if rank == 1:
                time.sleep(3600)
            yield shard

    Writer.claims = told
    task, train, _ = job(arguments)
    build(task, train, folder, Ranks(rank, 2))
    pipe.send((rank, None, time.monotonic()))


def recovery(arguments):
    """Seconds from a kill to the other rank having the shard, and to the store being whole."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as place:
        here, there = context.Pipe(duplex=False)
        children = [context.Process(target=held, args=(rank, Path(place) / "store", arguments, there)) for rank in (1, 0)]
        children[0].start()
        _, lost, _ = here.recv()
        children[1].start()
        shards = -(-arguments.examples // SHARD)
        for _ in range(shards - 1):  # all others are the second one's
            here.recv()
        # It makes its last one and then waits for the one that is held.
        time.sleep(2 + SHARD * arguments.length / 1000)
        killed = time.monotonic()
        os.kill(children[0].pid, signal.SIGKILL)
        rank, number, taken = here.recv()
        _, end, finished = here.recv()
        for child in children:
            child.join()
        if (rank, number, end) != (0, lost, None):
            raise SystemExit("the shard was not taken over")
        return taken - killed, finished - killed


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {
        "examples": 256,
        "layers": 4,
        "width": 256,
        "vocabulary": 2048,
        "length": 128,
        "queries": 4,
        "repeats": 3,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    port = 21000 + os.getpid() % 9000
    with tempfile.TemporaryDirectory() as place:
        factors = Path(place) / "factors"
        task, train, _ = job(arguments)
        with contextlib.redirect_stdout(sys.stderr):
            import whence

            whence.pipeline.fit_curvature(task, train, factors, runtime=Runtime(batch_positions=1024, quiet=True))
        print("| work | one process, s | two, s | ratio |\n|---|---|---|---|", flush=True)
        for what in ("build", "curvature", "ekfac", "pcg"):
            pairs = []
            for _ in range(arguments.repeats):
                pairs.append(tuple(seconds(what, count, (port := port + 1), arguments, factors) for count in (1, 2)))
                print(f"{what}: {pairs[-1][0]:.2f} s, {pairs[-1][1]:.2f} s", file=sys.stderr)
            one, two = (statistics.median(column) for column in zip(*pairs, strict=True))
            print(f"| {what} | {one:.2f} | {two:.2f} | {statistics.median(a / b for a, b in pairs):.2f} |", flush=True)
    found = [recovery(arguments) for _ in range(arguments.repeats)]
    taken, whole = (statistics.median(column) for column in zip(*found, strict=True))
    print(f"\nfrom a kill to the other process having the shard {taken * 1000:.1f} ms, to the whole store {whole:.2f} s")


if __name__ == "__main__":
    main()
