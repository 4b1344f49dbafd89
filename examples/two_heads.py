"""Several losses and a measurement of one's own: one network tells a digit and how much ink it has.

    python examples/two_heads.py

Needs `pip install 'whence-tda[bench]'`. Takes about a minute on two cores.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import whence


class TwoHeads(nn.Module):
    """One body, a class and a number."""

    def __init__(self):
        super().__init__()
        self.body, self.digit, self.ink = nn.Linear(64, 48), nn.Linear(48, 10), nn.Linear(48, 1)

    def forward(self, pixels):
        """Logits of the ten digits, and the ink."""
        hidden = torch.relu(self.body(pixels))
        return self.digit(hidden), self.ink(hidden)[:, 0]


def losses(model, batch):
    """Each example's loss is the sum of its two."""
    digits, ink = model(batch["pixels"])
    return nn.functional.cross_entropy(digits, batch["digit"], reduction="none") + 0.5 * (ink - batch["ink"]).square()


def confusion(model, batch):
    """What is asked: by how much the network prefers an 8 to a 3."""
    digits, _ = model(batch["pixels"])
    return digits[:, 8] - digits[:, 3]


def main():
    """Share of eights among the twenty proponents of "8 rather than 3", and of threes among its twenty opponents."""
    torch.manual_seed(0)
    found = load_digits()
    pixels = torch.from_numpy(found.data / 16).float()
    ink = (pixels.sum(1) - pixels.sum(1).mean()) / pixels.sum(1).std()
    records = [
        {"pixels": row, "digit": int(kind), "ink": dark} for row, kind, dark in zip(pixels, found.target, ink, strict=True)
    ]
    train, queries = records[:600], [record for record in records[1000:] if record["digit"] == 8][:5]
    model = TwoHeads()
    task = whence.Custom(model, losses, measure=confusion, unit="logits")
    batch = task.collate(task.prepare(train).examples)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        losses(model, batch).mean().backward()
        optimizer.step()
    # Two losses of different kinds have no outputs that whence knows of: curvature is that of the data's own gradients.
    table = whence.attribute(
        task,
        train,
        queries,
        method=whence.settings.KFAC(fit=whence.FitConfig(labels="dataset")),
        runtime=whence.Runtime(quiet=True),
    )
    kinds = torch.from_numpy(found.target[:600])
    order = table.scores.mean(0).argsort(descending=True)
    eights, threes = float((kinds[order[:20]] == 8).double().mean()), float((kinds[order[-20:]] == 3).double().mean())
    print(f"{eights:.0%} of the proponents of 8 rather than 3 are eights, {threes:.0%} of its opponents threes (chance: 10%)")
    return eights, threes


if __name__ == "__main__":
    main()
