"""Would an index of approximate nearest neighbours make a better shortlist than the plain scan? Needs `pip install faiss-cpu`.

    python benchmarks/ann_shortlist.py bench/text/two-stage/store-128 bench/text --rows 100000 1000000 --kind mixture

Rows are synthetic, made from those of a real store of codes. "mixture": each is the sum of two real rows, over the root of two, which keeps
their second moment and gives every row relatives, far more than real documents have. "gaussian": of the real rows' second moment and norms,
without relatives. Queries are the setting's own. The index holds the decoded rows as float32. Recall is of the 100 rows with the highest
inner product with the rows as stored; for opponents an index has to be searched once more with the query negated, so times of an index are
of two searches. Seconds are of the processor, one thread, for one query at a time.
"""

import argparse
import resource
import tempfile
import time
from functools import partial
from pathlib import Path

import faiss
import torch

from whence.bench import load_setting
from whence.data import Dataset, Example
from whence.pipeline.stored.prepared import PreparedQuery
from whence.progress import meter
from whence.score import top_scores
from whence.settings import Damping
from whence.store import open_store, write_store

TOP = 100


def mixtures(real_NK, count, generator):
    first, second = (torch.randint(len(real_NK), (count,), generator=generator) for _ in range(2))
    return (real_NK[first] + real_NK[second]) / 2**0.5


def gaussians(real_NK, count, generator):
    signs_BN = torch.randn(count, len(real_NK), generator=generator)
    rows_BK = signs_BN @ real_NK
    norms_B = real_NK.norm(dim=1)[torch.randint(len(real_NK), (count,), generator=generator)]
    return rows_BK * (norms_B / rows_BK.norm(dim=1))[:, None]


def write_rows(folder, like, make, count):
    """A store of synthetic rows, and those as they come back out of it."""
    decoded = []
    dataset = Dataset([Example(str(number), {"x": number}) for number in range(count)])
    with write_store(folder, like.blueprint, dataset, append=False) as writer:
        for shard in writer.pending:
            tensors = like.codec.encode([make(shard.stop - shard.start)[:, None]])
            writer.write(shard, tensors)
            decoded.append(like.codec.decode(tensors, 0).flatten(1).float())
        writer.finish({})
    return open_store(folder), torch.cat(decoded)


def scanned(store, query_K):
    with meter("scan", len(store), quiet=True) as progress:
        return spent(lambda: top_scores(store, [query_K[None, None]], TOP, norms_Q=None, progress=progress))


def filled(index, numbers, step):
    def fill():
        index.train(numbers[::step])
        index.add(numbers)

    return spent(fill)[0]


def spent(run):
    started = time.process_time()
    result = run()
    return time.process_time() - started, result


KINDS = {"mixture": mixtures, "gaussian": gaussians}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("setting", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000])
    parser.add_argument("--kind", choices=sorted(KINDS), default="mixture")
    parser.add_argument("--queries", type=int, default=32)
    parser.add_argument("--slow", type=int, default=100_000, help="most rows for graphs and product codes")
    arguments = parser.parse_args()
    faiss.omp_set_num_threads(1)
    torch.set_num_threads(1)
    like, setting = open_store(arguments.store), load_setting(arguments.setting)
    queries = Dataset(setting.queries.examples[: arguments.queries])
    ready_QK = (
        PreparedQuery.prepare(like, setting.task, queries, Damping(), True).preconditioned[0].flatten(1).float().contiguous()
    )
    real_NK = torch.cat([like.codec.decode(tensors, 0).flatten(1) for _, tensors in like.shards()]).float()
    print("| rows | shortlist by | recall of 100 | ms a query | to make, s | MiB in memory |")
    print("|---|---|---|---|---|---|")
    for count in arguments.rows:
        with tempfile.TemporaryDirectory() as folder:
            generator = torch.Generator().manual_seed(0)
            store, rows_NK = write_rows(
                Path(folder) / "s", like, partial(KINDS[arguments.kind], real_NK, generator=generator), count
            )
            scan = [scanned(store, query_K) for query_K in ready_QK]
        truth = [set(high.rows_QK[0].tolist()) for _, (high, _) in scan]
        ms = 1e3 * sum(seconds for seconds, _ in scan) / len(scan)
        print(
            f"| {count:,} | plain scan | 1.000 | {ms:.1f} | 0 | {count * like.codec.row_bytes() / 2**20:,.0f} (on disk) |",
            flush=True,
        )
        numbers = rows_NK.numpy()
        size = numbers.nbytes / 2**20
        lists = min(4 * int(count**0.5), 2048)
        makers = {"flat": ("Flat", [None]), "ivf": (f"IVF{lists},Flat", [1, 8, 32, 128, 512])}
        if count <= arguments.slow:
            makers["ivf-pq"] = (f"IVF{lists},PQ{real_NK.shape[1] // 4}", [32, 128, 512])
            makers["hnsw"] = ("HNSW32,Flat", [128, 512, 2048])
        for name, (recipe, efforts) in makers.items():
            index = faiss.index_factory(numbers.shape[1], recipe, faiss.METRIC_INNER_PRODUCT)
            made = filled(index, numbers, max(1, count // (40 * lists)))
            held = {"flat": size, "ivf": size, "ivf-pq": count * (real_NK.shape[1] // 4 + 8) / 2**20}.get(
                name, size + count * 33 * 2 * 4 / 2**20
            )
            for effort in efforts:
                if effort is not None:
                    faiss.ParameterSpace().set_index_parameter(index, "efSearch" if name == "hnsw" else "nprobe", effort)
                hits, taken = 0, 0.0
                for query_K, wanted in zip(ready_QK, truth, strict=True):
                    both = torch.stack([query_K, -query_K]).numpy()
                    seconds, (_, found) = spent(lambda index=index, both=both: index.search(both, TOP))
                    taken += seconds
                    hits += len(wanted & set(found[0].tolist()))
                label = {"flat": "flat float32", "hnsw": f"{recipe}, efSearch {effort}"}.get(name, f"{recipe}, nprobe {effort}")
                print(
                    f"| {count:,} | {label} | {hits / TOP / len(truth):.3f} | {1e3 * taken / len(truth):.1f} | {made:.0f} | {held:,.0f} |",
                    flush=True,
                )
            del index
    print(f"\nPeak of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:,.0f} MiB")


if __name__ == "__main__":
    main()
