"""Scores held against retraining, in about two minutes and without a network.

    python examples/truth/digits.py -o FOLDER

writes 400 digits that scikit-learn carries and 60 others as queries into FOLDER, and runs, and prints, the commands that anyone runs for data
and a model of their own: `whence bank` trains a small network on 40 random halves, twice each; `whence attribute` makes the tables of three
methods; beside them stand controls, which know nothing of the question or nothing of gradients; `whence evaluate` compares.
"""

import argparse
import json
import shlex
from pathlib import Path

import torch

import whence
from whence.bench.data import digits
from whence.bench.small import SmallLosses, SmallRetrain, SmallSettings
from whence.cli import app
from whence.evaluate import save_table
from whence.score import loss_scores, random_scores, representation_similarity

TRAIN, QUERIES = 400, 60
SETTINGS = SmallSettings(epochs=20)
METHODS = ("ekfac", "kfac", "grad-dot-exact")
CONTROLS = {
    "random": lambda task, train, queries: random_scores(train, queries),
    "loss": lambda task, train, queries: loss_scores(task, train, queries, quiet=True),
    "similarity": lambda task, train, queries: representation_similarity(task, train, queries, quiet=True),
}


def data():
    """Images and classes to train on, and those of the queries."""
    (train, labels), (queries, asked) = digits()
    return SmallRetrain(train[:TRAIN], labels[:TRAIN], SETTINGS), SmallLosses(queries[:QUERIES], asked[:QUERIES])


def retrain(keep: torch.Tensor, seed: int) -> torch.Tensor:
    """As `whence bank` calls it: trains on what is kept, returns the queries' losses."""
    fit, losses = data()
    return losses(fit(keep, seed))


def task() -> whence.Classification:
    """The model that is attributed, trained on everything with a seed that no run of the bank has."""
    return whence.Classification(data()[0](torch.ones(TRAIN, dtype=torch.bool), 1000), recipe=SETTINGS.recipe(TRAIN))


def main(folder: Path, subsets: int = 40) -> None:
    """Write the data, run the commands."""
    folder.mkdir(parents=True, exist_ok=True)
    fit, losses = data()
    files = {"train": (fit.inputs_ND, fit.targets_N), "queries": (losses.inputs_QD, losses.targets_Q)}
    for name, (images, labels) in files.items():
        pairs = enumerate(zip(images.tolist(), labels.tolist(), strict=True))
        lines = [
            json.dumps({"id": f"{name}-{number}", "inputs": image, "label": label}) + "\n" for number, (image, label) in pairs
        ]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    train, queries = folder / "train.jsonl", folder / "queries.jsonl"
    run("bank", "--train", f"{__file__}:retrain", "--data", train, "--queries", queries, "--subsets", subsets, "--seeds", 2,
        "-o", folder / "bank")  # fmt: skip
    for method in METHODS:
        run("attribute", f"{__file__}:task", train, queries, "--method", method, "-o", folder / "tables" / method)
    model = task()
    prepared = [model.prepare(whence.load_records(str(file))) for file in (train, queries)]
    for name, control in CONTROLS.items():
        save_table(control(model, *prepared), folder / "tables" / name)
    tables = [folder / "tables" / name for name in (*METHODS, *CONTROLS)]
    run("evaluate", folder / "bank", *tables, "--html", folder / "evaluation.html", "-o", folder / "evaluation.json")


def run(*words: object) -> None:
    """A command of whence, printed first."""
    written = [str(word) for word in words]
    print("whence " + shlex.join(written))
    app(written, result_action="return_value")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("truth-digits"))
    main(parser.parse_args().output)
