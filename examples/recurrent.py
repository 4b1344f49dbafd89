"""A recurrent network: an LSTM reads digits row by row, and its training images are ranked for each prediction.

    python examples/recurrent.py

Needs `pip install 'whence-tda[bench]'`. Takes about a minute on two cores.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import whence


class Reader(nn.Module):
    """Eight rows of eight pixels, one after the other."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.LSTM(8, 32, batch_first=True), nn.Linear(32, 10)

    def forward(self, rows):
        """Logits of the ten digits, from the state after the last row."""
        return self.head(self.layer(rows)[0][:, -1])


def main():
    """Share of the ten strongest proponents that show the query's digit; one in ten would be chance."""
    torch.manual_seed(0)
    digits = load_digits()
    records = whence.load_arrays(digits.images / 16, digits.target)
    train, queries = records[:400], records[1000:1020]
    model = Reader()
    # No layer rule covers the weights of an LSTM: they go through the twin, one example at a time.
    task = whence.Classification(model, functional=True)
    batch = task.collate(task.prepare(train).examples)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(30):
        for rows in torch.randperm(400).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(batch["inputs"]["inputs"][rows]), batch["target"][rows]).backward()
            optimizer.step()
    table = whence.attribute(task, train, queries, method="ekfac", runtime=whence.Runtime(quiet=True))
    labels = torch.from_numpy(digits.target)
    strongest = labels[:400][table.scores.topk(10, 1).indices]
    share = float((strongest == labels[1000:1020, None]).double().mean())
    print(f"{share:.0%} of the ten strongest proponents show the digit that is asked about (chance: 10%)")
    return share


if __name__ == "__main__":
    main()
