"""Exported indices against the plain scan: recall of its ranking, and the time of a question.

    python benchmarks/export.py                          # 10,000 rows, a minute
    python benchmarks/export.py --rows 1000000           # 64 numbers of four bits each: the same store as the scan of 10^6 rows

Rows are codes of whole numbers in clusters, as documents come in kinds; queries are near some of them, so that the strongest rows
stand out as they do in a real store. Recall is the share of a scan's best 100 of each side that an index finds, mean over queries. A
question takes both sides of all queries; seconds are those of one of them. Without a model: rows are written by the store's own writer
and asked as prepared queries are.
"""

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from whence.data import Dataset, Example
from whence.pipeline import export
from whence.pipeline.stored.indexed import indexed_top, open_index
from whence.progress import meter
from whence.score import row_scores, top_scores
from whence.store import Blueprint, StoredUnit, open_store, write_store

FACTORIES = ("Flat", "SQfp16", "IVF{lists},Flat", "IVF{lists},SQ8", "HNSW32")
BEST, SHARD = 100, 4096


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a search needs of a prepared query."""

    store: object
    preconditioned: list
    norms_Q: None = None

    def scores(self, queries, rows):
        """As those of a prepared query."""
        return row_scores(self.store, [unit[queries.start : queries.stop] for unit in self.preconditioned], rows, norms_Q=None)


def vectors(count, width, generator, centers):
    kinds = torch.randint(len(centers), (count,), generator=generator)
    return centers[kinds] + 0.7 * torch.randn(count, width, generator=generator)


def random_store(folder, rows, width, centers):
    """A store of `aligned` whose codes are random, of four bits a number."""
    unit = StoredUnit("all parameters", ("weight",), 1, width, (1, width), 1.0)
    blueprint = Blueprint(
        method="aligned", method_version=1, projection="pca", rank=width, factor_rank=None, curvature_rank=None, seed=0, dtype="int4",
        rows_per_shard=SHARD, batch_positions=64, autocast=None, model="m" * 64, preprocessing="", task={"kind": "custom"}, units=(unit,),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    dataset = Dataset([Example(f"d{row}", {"x": np.zeros(1, np.int8)}) for row in range(rows)])
    with write_store(folder, blueprint, dataset, append=False) as writer:
        for shard in writer.pending:
            numbers = vectors(shard.stop - shard.start, width, generator, centers)
            writer.write(shard, blueprint.codec().encode([numbers[:, None]]))
        writer.finish({})
    return open_store(folder)


def recall(found, scanned):
    """Share of the scan's best rows that were found, mean over queries and sides."""
    shares = [
        len(set(mine.tolist()) & set(theirs.tolist())) / len(theirs)
        for side, other in zip(found, scanned, strict=True)
        for mine, theirs in zip(side.rows_QK, other.rows_QK, strict=True)
    ]
    return sum(shares) / len(shares)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--kinds", type=int, default=200, help="clusters of rows")
    parser.add_argument("--factory", nargs="+", default=[], help="kinds of FAISS index in place of five common ones")
    parser.add_argument("--lance", action="store_true", help="also a Lance table without an index")
    arguments = parser.parse_args()
    generator = torch.Generator().manual_seed(1)
    centers = torch.randn(arguments.kinds, arguments.width, generator=generator)
    lists = 1 << max(3, round(np.log2(4 * arguments.rows**0.5)))
    with tempfile.TemporaryDirectory() as scratch:
        store = random_store(Path(scratch, "store"), arguments.rows, arguments.width, centers)
        asked = Asked(store, [vectors(arguments.queries, arguments.width, generator, centers)[:, None]])
        started = time.monotonic()
        with meter("scan", len(store), quiet=True) as progress:
            scanned = top_scores(store, asked.preconditioned, BEST, norms_Q=None, progress=progress)
        print(
            f"{arguments.rows:,} rows of {arguments.width} numbers of 4 bits, {arguments.queries} queries, {torch.get_num_threads()} threads"
        )
        print("| index | recall of the best 100 | seconds a query | seconds to make | MiB |")
        print("|---|---|---|---|---|")
        size = sum(seal.tensors_bytes for seal in store.seals) / 2**20
        print(f"| plain scan | 1 | {(time.monotonic() - started) / arguments.queries:.4f} |  | {size:,.0f} |")
        kinds = [("faiss", name.format(lists=lists)) for name in arguments.factory or FACTORIES] + [
            ("lance", "")
        ] * arguments.lance
        for number, (to, factory) in enumerate(kinds):
            folder = Path(scratch, f"index-{number}")
            started = time.monotonic()
            export(store, folder, to=to, factory=factory, quiet=True)
            seconds = time.monotonic() - started
            index = open_index(folder, store)
            indexed_top(asked, index, BEST, quiet=True)  # whatever is read once
            started = time.monotonic()
            found = indexed_top(asked, index, BEST, quiet=True)
            each = (time.monotonic() - started) / arguments.queries
            size = sum(path.stat().st_size for path in folder.rglob("rows.*") if path.is_file()) / 2**20
            size = size or sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20
            print(f"| {to} {factory} | {recall(found, scanned):.3f} | {each:.4f} | {seconds:.0f} | {size:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
