"""Two-stage queries: how much of the exact ranking a shortlist from small codes holds, and what asking that way costs.

    python benchmarks/two_stage.py bench/text                          # the bench's setting; its model is made if it is not there
    python benchmarks/two_stage.py docstrings --documents 8192 --sample 2048   # a larger corpus: docstrings of the packages installed here

The truth is EK-FAC over all examples (`whence.attribute`, with the fit and the damping of the stores). Recall is the share of the true
top 10 and top 100 that the shortlist of their side holds, mean over queries. Score is what the answer's hundred add
up to over what the true hundred do: examples that are missed at the end of a ranking are worth least. Bytes are those of a scan and of a
second stage with rows of 16 KB, as a large store has, over those of scanning all such rows. With --time N, processor seconds of
`whence.query` with k = 10 against `whence.attribute` with the fit at hand, one thread. Fits, stores and tables are kept in the folder: a
second run takes no time.
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

LARGE_ROW, QUERIES = 16384, 64
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
    """Rows of both sides, shape (2, Q, size)."""
    return torch.stack([side.topk(min(size, scores_QN.shape[1])).indices for side in (scores_QN, -scores_QN)])


def found_of(truth_QN, found_QN, top, short):
    """Recall and share of the score, of the true top by a shortlist of so many on each side."""
    signed_2QN = torch.stack([truth_QN, -truth_QN])
    held = torch.zeros_like(signed_2QN, dtype=torch.bool).scatter(2, strongest(found_QN, short), True)
    true_2QT = strongest(truth_QN, top)
    best = signed_2QN.gather(2, true_2QT).sum(2)
    answer = signed_2QN.masked_fill(~held, float("-inf")).topk(top).values.sum(2)
    return held.gather(2, true_2QT).float().mean(2), answer / best


def spent(run):
    started = time.process_time()
    run()
    return time.process_time() - started


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--documents", type=int, help="the larger corpus, of so many")
    parser.add_argument("--sample", type=int, default=0, help="axes_examples")
    parser.add_argument("--bytes", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--time", type=int, nargs="+", default=[], metavar="QUERIES", help="also ask so many at a time")
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
            config=whence.BuildConfig(method="aligned", bytes_per_example=size, factors=place / "factors", axes_examples=arguments.sample),
        )
        for size in arguments.bytes
    }  # fmt: skip
    fit_on = min(len(data), 8192)  # as many as a build fits on

    def exact(asked):
        return whence.attribute(
            task,
            data,
            asked,
            method=whence.EKFAC(damping=whence.Damping(relative=0.1), factors=place / "factors", fit_on=fit_on),
            runtime=whence.Runtime(quiet=True),
        )

    truth, _ = kept(place / "exact.pt", lambda: exact(queries))
    sizes = [size for size in (100, 200, 400, 800, 1600) if 2 * size < len(data)]
    print(f"\n{len(data):,} documents, {len(queries)} queries\n")
    print(
        "| code | bytes | shortlist a side | top 10: proponents, opponents | top 100 | score of 100 | run again | bytes / 16 KB rows |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for size, store in stores.items():
        found, _ = kept(
            place / f"scores-{size}.pt",
            lambda store=store: whence.score_table(store, task, queries, runtime=whence.Runtime(quiet=True)),
        )
        code, row = f"{store.blueprint.rank:,} of {store.blueprint.dtype}", store.codec.row_bytes()
        for short in sizes:
            (few, _), (many, score) = (found_of(truth, found, top, short) for top in (10, 100))
            cells = [", ".join(f"{part:.3f}" for part in recall_2Q.mean(1)) for recall_2Q in (few, many)]
            read = (len(data) * row + 2 * short * LARGE_ROW) / (len(data) * LARGE_ROW)
            print(
                f"| {code} | {row:,} | {short:,} | {cells[0]} | {cells[1]} | {score.mean():.3f} | "
                f"{2 * short / len(data):.0%} | {read:.2f} |"
            )
    if arguments.time:
        torch.set_num_threads(1)
        print("\n| queries | store | scan, s | two stages, s | all examples exactly, s |")
        print("|---|---|---|---|---|")
        for count in arguments.time:
            asked = Dataset(queries.examples[:count])
            whole = spent(lambda asked=asked: exact(asked))
            for size, store in stores.items():
                scan, both = (
                    spent(
                        lambda asked=asked, store=store, rerank=rerank: whence.query(
                            store, task, asked, rerank=rerank, runtime=whence.Runtime(quiet=True)
                        )
                    )
                    for rerank in (None, whence.Rerank(train=data))
                )
                print(f"| {count} | {size} bytes | {scan:.2f} | {both:.2f} | {whole:.2f} |")


if __name__ == "__main__":
    main()
