"""What the functional twin costs where no hook covers a layer, against a training step over the same batch.

    python benchmarks/twin_speed.py

64 examples of 40 positions, one thread; the smallest of five runs. The CNN and the transformer say what hooks cost, for comparison.
"""

from time import perf_counter

import torch
from torch import nn

import whence
from whence.capture import capture, plan_units

EXAMPLES, POSITIONS, WIDTH = 64, 40, 64


class Reader(nn.Module):
    """Token ids, a layer over their positions, and the mean of what it gives."""

    def __init__(self, layer):
        super().__init__()
        self.table, self.layer, self.head = nn.Embedding(500, WIDTH), layer, nn.Linear(WIDTH, 4)

    def forward(self, ids):
        """Logits."""
        found = self.layer(self.table(ids))
        return self.head((found[0] if isinstance(found, tuple) else found).mean(1))


LAYERS = {
    "LSTM": lambda: nn.LSTM(WIDTH, WIDTH, batch_first=True),
    "GRU": lambda: nn.GRU(WIDTH, WIDTH, batch_first=True),
    "RNN": lambda: nn.RNN(WIDTH, WIDTH, batch_first=True),
    "packed attention": lambda: nn.TransformerEncoderLayer(WIDTH, 4, 128, 0.0, batch_first=True),
    "two linear layers (hooks)": lambda: nn.Sequential(nn.Linear(WIDTH, 128), nn.ReLU(), nn.Linear(128, WIDTH)),
}


def smallest(run):
    """Seconds of the fastest of five runs, after one to warm up."""
    run()
    found = []
    for _ in range(5):
        start = perf_counter()
        run()
        found.append(perf_counter() - start)
    return min(found)


def main():
    """Print milliseconds of capture and of a training step, and their ratio."""
    torch.set_num_threads(1)
    print("| layer | capture, ms | training step, ms | ratio |\n|---|---|---|---|")
    for name, make in LAYERS.items():
        torch.manual_seed(0)
        task = whence.Classification(Reader(make()), functional=True)
        examples = task.prepare([(torch.randint(500, (POSITIONS,)), n % 4) for n in range(EXAMPLES)]).examples
        batch, each = task.collate(examples), [task.collate([example]) for example in examples]
        plan = plan_units(task)
        options = {"num_examples": EXAMPLES, "alone": each.__getitem__}
        captured = smallest(lambda: capture(task, plan, batch, lambda index, pair: None, **options))  # noqa: B023
        trained = smallest(lambda: task.loss(task.model, batch).sum().backward())  # noqa: B023
        print(f"| {name} | {1e3 * captured:.0f} | {1e3 * trained:.1f} | {captured / trained:.1f} |")


if __name__ == "__main__":
    main()
