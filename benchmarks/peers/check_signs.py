"""Does every peer's table come out in whence's sign? Small settings whose queries are training examples, scored by the adapters.

    python benchmarks/peers/check_signs.py [--folder whence-peers-check] [--peer NAME ...]

More weight on an example lowers that example's own loss, so a query should find itself among the highest scores of its row. Printed per
table: the share of queries whose own score is negative (0 where the signs agree), and the mean share of training examples that score higher
than the own one.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from exchange import Setting
from torch import nn

import whence
from whence.data import Dataset

PEERS = ("kronfluence", "bergson", "dattri", "traker")
QUERIES = 8


def digits():
    """An MLP on noisy class means in 64 dimensions, some labels wrong."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(10, 64, generator=generator)
    labels = torch.arange(240) % 10
    inputs = means[labels] + 1.5 * torch.randn(240, 64, generator=generator)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    task = whence.Classification(model)
    _train(task, task.prepare(zip(inputs, labels.tolist(), strict=True)), steps=60, rate=0.01)
    return task, task.prepare(zip(inputs, labels.tolist(), strict=True))


def language_model():
    """A GPT-2 of two layers on chunks of 64 tokens of Python's documentation."""
    from whence.demo.corpus import python_docs
    from whence.demo.model import new_model, train_tokenizer

    documents = python_docs(max_documents=256)
    tokenizer = train_tokenizer(document["text"] for document in documents)
    ids = tokenizer("\n\n".join(document["text"] for document in documents), verbose=False)["input_ids"]
    task = whence.CausalLM(new_model(len(tokenizer), 0), tokenizer)
    train_set = task.prepare({"input_ids": ids[start : start + 64]} for start in range(0, 128 * 64, 64))
    _train(task, train_set, steps=150, rate=3e-3)
    return task, train_set


def _train(task, dataset, steps, rate):
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=rate)
    generator = np.random.default_rng(0)
    task.model.train()
    for _ in range(steps):
        batch = task.collate([dataset.examples[row] for row in generator.choice(len(dataset), 16)])
        optimizer.zero_grad()
        loss = task.loss(task.model, batch).sum() / (16 * dataset.examples[0].length)
        loss.backward()
        optimizer.step()
    task.model.eval()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("whence-peers-check"))
    parser.add_argument("--peer", nargs="+", choices=PEERS, default=PEERS)
    arguments = parser.parse_args()
    for name, make in (("digits", digits), ("gpt2", language_model)):
        folder = arguments.folder / name
        if not (folder / "setting.pt").exists():
            folder.mkdir(parents=True, exist_ok=True)
            task, train_set = make()
            torch.save(Setting(task, train_set, Dataset(train_set.examples[:QUERIES])), folder / "setting.pt")
        for peer in arguments.peer:
            script = Path(__file__).with_name(f"{peer}_scores.py")
            subprocess.run([sys.executable, script, "--setting", folder, "--output", folder / "tables"], check=False)
    print("| setting | table | own score negative | higher than the own |")
    print("|---|---|---|---|")
    for path in sorted(arguments.folder.glob("*/tables/*/scores.npy")):
        scores = np.load(path)
        own = np.diagonal(scores)
        rank = 100 * (scores > own[:, None]).mean()
        method = json.loads(path.with_name("table.json").read_text(encoding="utf-8"))["method"]
        print(f"| {path.parents[2].name} | {method} | {(own < 0).mean():.0%} | {rank:.1f} % |")


if __name__ == "__main__":
    main()
