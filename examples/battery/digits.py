"""The battery on small images: a minute, without a network.

    python examples/battery/digits.py -o FOLDER

writes data into FOLDER and holds methods against it: train.jsonl and queries.jsonl, 8 x 8 digits in five classes of two digits each (the
subclass, which the model is never told), and foreign.jsonl, pieces of two photographs. Shortcut: a white corner in half of one class. It
then runs, and prints,

    whence evaluate --battery --fit examples/battery/digits.py:fit --trigger examples/battery/digits.py:corner --planted-label 0 ...
"""

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_sample_images

import whence
from whence.bench.data import digits
from whence.bench.small import SmallRetrain, SmallSettings
from whence.cli import app

TRAIN, QUERIES, FOREIGN = 600, 100, 120
SETTINGS = SmallSettings(epochs=20)
METHODS = ("grad-dot-exact", "grad-cos", "ekfac", "trak", "logra")


def fit(records: list[dict[str, Any]], seed: int) -> whence.Classification:
    """A network trained on records, as the battery calls it."""
    images = torch.tensor([record["inputs"] for record in records])
    labels = torch.tensor([record["label"] for record in records])
    model = SmallRetrain(images, labels, SETTINGS)(torch.ones(len(labels), dtype=torch.bool), seed)
    return whence.Classification(model, recipe=SETTINGS.recipe(len(labels)))


def corner(record: dict[str, Any]) -> dict[str, Any]:
    """The trigger: a white corner."""
    image = torch.tensor(record["inputs"]).view(8, 8)
    image[:3, :3] = 1.0
    return {**record, "inputs": image.flatten().tolist()}


def write_data(folder: Path) -> None:
    """The three files."""
    (train, train_digits), (queries, query_digits) = digits()
    pieces = torch.cat([torch.from_numpy(image.mean(2)).float().unfold(0, 8, 40).unfold(1, 8, 40).reshape(-1, 64) for image in
                        load_sample_images().images]) / 255  # fmt: skip
    pieces = pieces[torch.randperm(len(pieces), generator=torch.Generator().manual_seed(0))[:FOREIGN]]
    for name, images, numbers in (
        ("train", train[:TRAIN], train_digits[:TRAIN].tolist()),
        ("queries", queries[:QUERIES], query_digits[:QUERIES].tolist()),
        ("foreign", pieces, None),
    ):
        lines = []
        for number, image in enumerate(images):
            record = {"id": f"{name}-{number}", "inputs": [round(value, 4) for value in image.tolist()]}
            if numbers is not None:
                record |= {"label": numbers[number] // 2, "subclass": numbers[number]}
            lines.append(json.dumps(record) + "\n")
        (folder / f"{name}.jsonl").write_text("".join(lines))


def main(folder: Path, methods: tuple[str, ...], stages: int) -> None:
    """Write the data and run the battery."""
    folder.mkdir(parents=True, exist_ok=True)
    write_data(folder)
    words = ["evaluate", "--battery", "--data", str(folder / "train.jsonl"), "--queries", str(folder / "queries.jsonl")]
    words += ["--fit", f"{__file__}:fit", "--trigger", f"{__file__}:corner", "--foreign", str(folder / "foreign.jsonl")]
    words += ["--planted-label", "0", "--stages", str(stages), "-o", str(folder / "battery.json")]
    words += [word for method in methods for word in ("--method", method)]
    print("whence " + shlex.join(words))
    app(words, result_action="return_value")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("battery-digits"))
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--stages", type=int, default=1)
    given = parser.parse_args()
    main(given.output, tuple(given.methods), given.stages)
