"""How well do scores predict retraining? Linear datamodeling score of the stored methods on the demo's corpus.

    python benchmarks/demo_lds.py [--subsets 40] [--folder whence-lds]

Every 16th document is a query, the rest is trained on. Random halves are retrained once each (resumable, in parallel); the score of a half
is the sum of its documents' scores, and the figure is the Spearman correlation over halves with the measured log-probability, averaged over
queries, with the standard error over queries. One seed and one model, so compare rows of one run with each other and with nothing else.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

import whence
from whence.data import Dataset
from whence.demo.corpus import python_docs
from whence.demo.model import DEFAULTS, load, new_model, save, train_tokenizer
from whence.demo.train import QueryLosses, Retrain, train
from whence.evaluate import Run, measure_runs

SETTINGS = (
    ("grad-dot", {"rank": 16}),
    ("grad-cos", {"rank": 16}),
    ("logra", {"rank": 16}),
    ("logra", {"rank": 32}),
    ("logra-pca", {"rank": 16}),
    ("lorif", {"rank": 32, "factor_rank": 1}),
    ("lorif", {"rank": 32, "factor_rank": 2}),
    ("lorif", {"rank": 64, "factor_rank": 2}),
)


def prepare(folder):
    documents = python_docs()
    if not (folder / "model" / "recipe.json").exists():
        tokenizer = train_tokenizer(document["text"] for document in documents)
        dataset = whence.CausalLM(new_model(len(tokenizer), 0), tokenizer, long="truncate").prepare(documents)
        kept = Dataset([e for i, e in enumerate(dataset.examples) if i % 16])
        trained = train(kept, len(tokenizer), seed=0, quiet=False)
        save(trained.model, tokenizer, trained.recipe, folder / "model")
    model, tokenizer, recipe = load(folder / "model")
    task = whence.CausalLM(model, tokenizer, long="truncate", recipe=recipe)
    dataset = task.prepare(documents)
    examples = dataset.examples
    return task, Dataset([e for i, e in enumerate(examples) if i % 16]), Dataset(examples[::16])


def lds(scores, masks, actual):
    predicted = scores.double() @ masks.T.double()
    values = [spearmanr(predicted[q], actual[:, q]).statistic for q in range(len(predicted))]
    return np.mean(values), np.std(values) / len(values) ** 0.5


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subsets", type=int, default=40)
    parser.add_argument("--folder", type=Path, default=Path("whence-lds"))
    arguments = parser.parse_args()
    task, train_set, queries = prepare(arguments.folder)
    count = len(train_set)
    removed = [
        tuple(sorted(np.random.default_rng(seed).choice(count, count // 2, replace=False).tolist()))
        for seed in range(arguments.subsets)
    ]
    runs = [Run(rows, 1000 + seed) for seed, rows in enumerate(removed)]
    retrain, measure = Retrain(train_set, len(task.tokenizer), DEFAULTS), QueryLosses(queries)
    losses = measure_runs(
        retrain,
        measure,
        runs,
        num_examples=count,
        folder=arguments.folder / "retrained",
        fingerprint=retrain.fingerprint + queries.fingerprint,
        workers=2,
    )
    masks = torch.ones(len(runs), count)
    for place, rows in enumerate(removed):
        masks[place, list(rows)] = 0
    actual = -torch.stack([losses[run] for run in runs])

    print(f"{count} documents, {len(queries)} queries, {len(runs)} halves")
    print("| method | settings | bytes a row | damping | LDS |")
    print("|---|---|---|---|---|")
    for method, options in SETTINGS:
        name = "-".join([method, *map(str, options.values())])
        store = whence.build(task, train_set, arguments.folder / name, method=method, quiet=True, **options)
        dampings = [{}]
        if whence.METHODS[method].curvature == "fisher":
            dampings += [{"relative_damping": value} for value in (1e-3, 1e-2, 0.1, 1.0, 10.0)]
        for damping in dampings:
            table = whence.score_table(store, task, queries, quiet=True, **damping)
            mean, error = lds(table.scores, masks, actual)
            shown = ", ".join(f"{key} {value}" for key, value in options.items())
            label = f"{damping['relative_damping']:g} x mean" if damping else "chosen"
            print(f"| {method} | {shown} | {store.codec.row_bytes():,} | {label} | {mean:.3f} ± {error:.3f} |", flush=True)


if __name__ == "__main__":
    main()
