"""What recording a run costs: the same training plain, with `whence.Recorder`, and with `whence.GradientLog`, in turn.

Run it as `OMP_NUM_THREADS=1 python benchmarks/record_overhead.py`. Times are the processor's, of the whole loop: with all checkpoints for the
recorder, without `finish()` for the log. A figure is the median over rounds of the ratio of neighbouring runs.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

import whence


class Tokens(whence.Custom):
    """Next-token loss of (tokens,) records."""

    def __init__(self, model):
        def loss(model, batch):
            (tokens,) = batch
            logits = model(tokens[:, :-1])
            return nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none").sum(1)

        super().__init__(model, loss, unit="nats")


def mlp(width=64):
    """A small network: the harder case, since a step of it is short."""
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    inputs, labels = torch.randn(1024, 64), torch.randint(10, (1024,))

    def loss(places):
        return nn.functional.cross_entropy(model(inputs[places]), labels[places])

    return model, loss, 32


def transformer():
    """Two layers of width 96 on 64 tokens."""
    body = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(96, 4, 384, batch_first=True, dropout=0.0), 2, enable_nested_tensor=False
    )
    model = nn.Sequential(nn.Embedding(2048, 96), body, nn.Linear(96, 2048))
    tokens = torch.randint(2048, (1024, 65))

    def loss(places):
        logits = model(tokens[places, :-1])
        return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[places, 1:].flatten())

    return model, loss, 16


def train(make, steps, folder):
    """Seconds of a run, recorded if there is a folder."""
    torch.manual_seed(0)
    model, loss, size = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batches = [torch.randint(1024, (size,)) for _ in range(steps)]

    def step(places):
        optimizer.zero_grad()
        loss(places).backward()
        optimizer.step()

    started = time.process_time(), time.perf_counter()
    if folder is None:
        for places in batches:
            step(places)
    else:
        with whence.Recorder(folder, model, optimizer, every=-(-steps // 6)) as run:
            for places in batches:
                run.batch(places.tolist())
                step(places)
    return time.process_time() - started[0], time.perf_counter() - started[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    for make, steps in ((mlp, 6000), (transformer, 60)):
        ratios = []
        with tempfile.TemporaryDirectory() as folder:  # imports and warm caches
            train(make, 20, Path(folder) / "run")
        for _ in range(rounds):
            plain = train(make, steps, None)
            with tempfile.TemporaryDirectory() as folder:
                recorded = train(make, steps, Path(folder) / "run")
                size = sum(file.stat().st_size for file in Path(folder).rglob("*")) / 2**20
            ratios.append([mine / other for mine, other in zip(recorded, plain, strict=True)])
        middle = [sorted(kind)[len(kind) // 2] for kind in zip(*ratios, strict=True)]
        print(
            f"{make.__name__}: {steps} steps, {1e3 * plain[0] / steps:.2f} ms each; recorded {middle[0] - 1:+.1%} of the processor's "
            f"time, {middle[1] - 1:+.1%} on the clock; {size:.1f} MiB on disk"
        )


if __name__ == "__main__":
    main()
