"""Two-stage queries: how much of the exact ranking a shortlist from small codes holds, and what asking that way costs.

    python benchmarks/two_stage.py bench/text                          # the bench's setting, its model made if it is not there
    python benchmarks/two_stage.py docstrings --documents 8192         # a larger corpus: docstrings of the packages installed here

The truth is EK-FAC over all examples (`whence.attribute`, the stores' own fit and damping). Recall is the share of the true top 100 among the
shortlist of each side, mean over queries and over both sides; "worst" is the query and side with the least. Bytes are those of the scan and of a
second stage with rows of 16 KB (as of a large store, 2 rows per place of the shortlist), over those of scanning all such rows. Seconds are of
`whence.query`, against `whence.attribute` with the fit at hand. Fits, stores and tables are kept in the folder: a second run takes no time.
"""

import argparse
import ast
import sysconfig
import time
from pathlib import Path

import numpy as np
import torch

import whence
from whence.bench import load_setting, prepare
from whence.data import Dataset
from whence.demo.corpus import passages
from whence.demo.model import Settings, load, new_model, save, train_tokenizer
from whence.demo.train import train
from whence.records import Recipe

TOP, LARGE_ROW, QUERIES = 100, 16384, 64
SETTINGS = Settings(context=64, epochs=4, batch_examples=16)


def docstrings(count):
    """Passages of the docstrings of installed packages, 200 to 420 characters, in a fixed random order."""
    known = set()
    for path in sorted(Path(sysconfig.get_paths()["purelib"]).rglob("*.py")):
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module) and (text := ast.get_docstring(node)):
                known.update(part for part in passages(text.split("\n\n"), 420) if len(part) >= 200)
    texts = sorted(known)
    chosen = np.random.default_rng(0).permutation(len(texts))[: count * 2]
    return [{"id": f"d{place}", "text": texts[place]} for place in chosen]


def large(folder, count):
    """Task, training data and queries: a demo model trained on so many docstrings."""
    records = docstrings(count)
    tokenizer = train_tokenizer((record["text"] for record in records), SETTINGS)
    prepared = whence.CausalLM(new_model(len(tokenizer), 0, SETTINGS), tokenizer, long="truncate").prepare(records)
    whole = [example for example in prepared.examples if example.length == SETTINGS.context]
    data, queries = Dataset(whole[:count]), Dataset(whole[count:][:QUERIES])
    if len(data) < count or len(queries) < QUERIES:
        raise SystemExit(f"only {len(whole)} docstrings are long enough: pass fewer --documents")
    place = folder / "model"
    if not (place / "config.json").exists():
        made = train(data, len(tokenizer), seed=0, settings=SETTINGS, quiet=False)
        save(made.model, tokenizer, made.recipe, place)
    model, tokenizer = load(place)[:2]
    return whence.CausalLM(model, tokenizer, long="truncate", recipe=Recipe("adamw", 1.0)), data, queries


def kept(path, make):
    if not path.exists():
        table = make()
        torch.save((table.scores.float(), table.seconds), path)
    return torch.load(path)


def strongest(scores_QN, size):
    return torch.stack([side.topk(min(size, scores_QN.shape[1])).indices for side in (scores_QN, -scores_QN)])


def recalls(truth_QN, found_QN, sizes):
    """By size of the shortlist, recall per side and query, shape (2, Q)."""
    wanted = torch.zeros(2, *truth_QN.shape).scatter(2, strongest(truth_QN, TOP), 1.0)
    return {size: wanted.gather(2, strongest(found_QN, size)).sum(2) / TOP for size in sizes}


def timed(run):
    started = time.monotonic()
    run()
    return time.monotonic() - started


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--documents", type=int, help="the larger corpus, of so many")
    parser.add_argument("--sample", type=int, default=0, help="axes_examples")
    parser.add_argument("--bytes", type=int, nargs="+", default=[64, 128, 256, 512])
    arguments = parser.parse_args()
    folder = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.documents:
        task, data, queries = large(folder, arguments.documents)
    else:
        known = (folder / "setting.json").exists()
        setting = load_setting(folder) if known else prepare(folder.name, folder.parent)
        task, data, queries = setting.task, setting.train, setting.queries
    place = folder / "two-stage"
    place.mkdir(exist_ok=True)
    stores = {
        size: whence.build(
            task, data, place / f"store-{size}",
            method="aligned", bytes_per_example=size, factors=place / "factors", axes_examples=arguments.sample,
        )
        for size in arguments.bytes
    }  # fmt: skip
    fit_on = min(len(data), 8192)  # as many as a build fits on

    def exact(asked):
        return whence.attribute(task, data, asked, relative_damping=0.1, factors=place / "factors", fit_on=fit_on, quiet=True)

    truth, _ = kept(place / "exact.pt", lambda: exact(queries))
    sizes = [size for size in (100, 150, 200, 300, 500, 1000, 2000) if 2 * size <= len(data)]
    print(f"\n{len(data):,} documents, {len(queries)} queries\n")
    print(
        "| code | bytes | shortlist a side | recall of the top 100 | worst | documents run again | bytes / all rows of 16 KB |"
    )
    print("|---|---|---|---|---|---|---|")
    for size, store in stores.items():
        found, _ = kept(place / f"scores-{size}.pt", lambda store=store: whence.score_table(store, task, queries, quiet=True))
        code = f"{store.blueprint.rank:,} of {store.blueprint.dtype}"
        row = store.codec.row_bytes()
        for short, recall_2Q in recalls(truth, found, sizes).items():
            read = (len(data) * row + 2 * short * LARGE_ROW) / (len(data) * LARGE_ROW)
            print(
                f"| {code} | {row} | {short:,} | {recall_2Q.mean():.3f} | {recall_2Q.min():.2f} | "
                f"{min(1, 2 * short / len(data)):.1%} | {read:.3f} |"
            )


if __name__ == "__main__":
    main()
