"""Images by path: train a network on digits with some wrong labels, find them, and write a page with the images behind a prediction.

    python examples/images.py [cnn|vit] [folder]

Needs `pip install 'whence-tda[bench,images]'`. Takes about a minute on two cores.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

import whence
from whence.report import hits_fragment, write_page

WRONG = 30


def to_input(image):
    """The network sees one channel between 0 and 1."""
    return torch.from_numpy(np.asarray(image.convert("L"), np.float32))[None] / 255


class ViT(nn.Module):
    """Patches of 2 x 2, a class token, places, and two blocks with packed attention."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(1, 32, 2, stride=2)
        self.token, self.places = nn.Parameter(torch.zeros(1, 1, 32)), nn.Parameter(0.02 * torch.randn(1, 17, 32))
        self.blocks = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True), 2)
        self.head = nn.Linear(32, 10)

    def forward(self, images):
        """Logits of the ten digits."""
        patches = self.patches(images).flatten(2).mT
        return self.head(self.blocks(torch.cat([self.token.expand(len(images), -1, -1), patches], 1) + self.places)[:, 0])


def network(kind):
    """A task with an untrained model; parameters that no layer rule covers go through the twin, and only the ViT has some."""
    cnn = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.GroupNorm(4, 32), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip
    model = cnn if kind == "cnn" else ViT()
    return whence.Classification(model, preprocess=to_input, labels=list("0123456789"), functional=kind == "vit")


def save(folder):
    """600 digits to train on and 10 to ask about, each in the folder of its label; some training labels are wrong. Their ids."""
    digits = load_digits()
    wrong = set(np.random.default_rng(0).choice(600, WRONG, replace=False).tolist())
    for number, (pixels, label) in enumerate(zip(digits.images[:610], digits.target[:610], strict=True)):
        shown = (label + 3) % 10 if number in wrong else label
        place = folder / ("train" if number < 600 else "queries") / str(shown)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 255 / 16).astype(np.uint8)).save(place / f"{number}.png")
    return {f"{(digits.target[number] + 3) % 10}/{number}.png" for number in wrong}


def main(kind="cnn", place="whence-images"):
    """Train, find the wrong labels, write the page; the share of wrong labels found."""
    torch.manual_seed(0)
    folder = Path(place)
    wrong = save(folder)
    train, queries = whence.load_records(str(folder / "train")), whence.load_records(str(folder / "queries"))
    task = network(kind)
    batch = task.collate(task.prepare(train).examples)
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=3e-3)
    for _ in range(25):
        for rows in torch.randperm(len(train)).split(50):
            optimizer.zero_grad()
            logits = task.model(batch["inputs"]["inputs"][rows])
            nn.functional.cross_entropy(logits, batch["target"][rows]).backward()
            optimizer.step()
    self_influence = whence.self_influence(task, train, method="kfac", runtime=whence.Runtime(quiet=True)).scores[0].neg()
    order = self_influence.abs().argsort(descending=True)[: 2 * WRONG].tolist()
    found = sum(train[place]["id"] in wrong for place in order) / WRONG
    print(
        f"{kind}: {found:.0%} of {WRONG} wrong labels are among the {2 * WRONG} of 600 images with most influence on themselves"
    )
    whence.build(
        task, train, folder / f"store-{kind}", config=whence.BuildConfig(method="lorif"), runtime=whence.Runtime(quiet=True)
    )
    hits = whence.query(folder / f"store-{kind}", task, queries, k=5, runtime=whence.Runtime(quiet=True))
    print(write_page(folder / f"{kind}.html", "Digits", [("What each prediction comes from", hits_fragment(hits))]))
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
