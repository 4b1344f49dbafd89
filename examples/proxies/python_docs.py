"""A small stranger attributes for a model: does it name the same documents? Minutes on two cores.

    python examples/proxies/python_docs.py proxies

The target is the demo's GPT-2 (width 64), trained on passages of the documentation inside this Python. Two proxies of half its width
attribute for it: one that was never trained, and one that never saw a label, distilled from the target's outputs on the training texts.
Both are held against the target itself on a probe of 200 documents and 12 passages that nobody was trained on. How well proxies predict
retraining is measured by `python benchmarks/proxies.py`.
"""

import argparse
import dataclasses
import json
import os
from pathlib import Path

import whence
from whence.demo.corpus import python_docs
from whence.demo.model import DEFAULTS, new_model
from whence.demo.trained import trained_on
from whence.evaluate import save_table
from whence.progress import say
from whence.report import print_table

QUERIES = 12


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--documents", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=DEFAULTS.epochs)
    arguments = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    records, folder = python_docs(max_documents=arguments.documents), arguments.folder
    step = len(records) // QUERIES
    queries = records[::step][:QUERIES]
    documents = [one for one in records if one not in queries]
    settings = dataclasses.replace(DEFAULTS, epochs=arguments.epochs)
    target = trained_on(documents, folder / "target", settings=settings)
    small = dataclasses.replace(settings, width=settings.width // 2)
    rows = []
    for name in ("untrained", "distilled"):
        proxy = whence.CausalLM(new_model(len(target.tokenizer), 1, small), target.tokenizer, long="truncate")
        if name == "distilled":
            config = whence.settings.DistilConfig(
                epochs=settings.epochs, batch_examples=settings.batch_examples, learning_rate=settings.learning_rate
            )
            found = whence.proxy.distil(target, proxy, documents, config)
            say(
                f"distance from the target per token: {found.losses[0]:.2f} after the first epoch, {found.losses[-1]:.2f} after the last"
            )
        table = whence.proxy.proxy_table(proxy, target, documents, queries, name=name, runtime=whence.Runtime(quiet=True))
        save_table(table, folder / name)
        alike = whence.proxy.proxy_agreement(
            proxy,
            target,
            documents,
            queries,
            probe=whence.settings.ProbeConfig(train=200, queries=QUERIES),
            runtime=whence.Runtime(quiet=True),
        )
        rows.append((name, str(alike.spearman), str(alike.top), str(alike.bottom), f"{alike.chance:.2f}"))
    header = ("proxy of half the width", "rank correlation", "shared top 10", "shared bottom 10", "by chance")
    print_table(header, rows, title="Agreement with the target itself")
    print(json.dumps({"tables": [str(folder / "untrained"), str(folder / "distilled")]}))


if __name__ == "__main__":
    main()
