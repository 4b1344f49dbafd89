"""What watching a training run costs: the same training plain, with `whence.Recorder`, and with `whence.pipeline.GradientLog`, in turn.

Run it as `OMP_NUM_THREADS=1 python benchmarks/record_overhead.py --mlp`. Times are the processor's, of the whole loop: with all checkpoints
for the recorder, without `finish()` for the log. A figure is the median over rounds of the ratio of neighbouring runs.
"""

import argparse
import tempfile
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import nn

import whence

EXAMPLES = 1024


class Block(nn.Module):
    """A transformer block of plain linear layers."""

    def __init__(self, width, heads=4):
        super().__init__()
        self.heads = heads
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, hidden):  # noqa: D102
        batch, length, width = hidden.shape
        parts = self.mix(self.before(hidden)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        seen = nn.functional.scaled_dot_product_attention(*parts, is_causal=True)
        hidden = hidden + self.out(seen.transpose(1, 2).reshape(batch, length, width))
        return hidden + self.down(nn.functional.gelu(self.up(self.after(hidden))))


def token_losses(model, tokens):
    return nn.functional.cross_entropy(model(tokens[:, :-1]).transpose(1, 2), tokens[:, 1:], reduction="none").sum(1)


def mlp():
    """A small network: the harder case, since a step of it is short."""
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    inputs, labels = torch.randn(EXAMPLES, 64), torch.randint(10, (EXAMPLES,))
    task = whence.Classification(model)
    records = list(zip(inputs, labels.tolist(), strict=True))
    return model, task, records, lambda at: nn.functional.cross_entropy(model(inputs[at]), labels[at]), 32


def transformer(width):
    """Two blocks on 64 tokens."""
    model = nn.Sequential(nn.Embedding(512, width), Block(width), Block(width), nn.Linear(width, 512))
    tokens = torch.randint(512, (EXAMPLES, 65))
    task = whence.Custom(model, token_losses, unit="nats")

    def loss(at):
        logits = model(tokens[at, :-1])
        return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[at, 1:].flatten())

    return model, task, list(tokens), loss, 16


def train(make, steps, watch, folder):
    """Seconds of a run: of the processor, and on the clock."""
    torch.manual_seed(0)
    model, task, records, loss, size = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batches = [torch.randint(EXAMPLES, (size,)) for _ in range(steps)]
    log = None
    if watch not in ("plain", "recorder"):
        factors = folder / "factors" if watch.endswith("factors") else None
        log = whence.pipeline.GradientLog(
            folder / "log",
            task,
            records,
            factors=factors,
            quiet=True,
            config=whence.BuildConfig(method=watch.split()[0], rank=int(watch.split()[1])),
        )
    recorder = whence.Recorder(folder / "run", model, optimizer, every=-(-steps // 6)) if watch == "recorder" else None
    divisor = None if make is mlp else 64.0 * size
    started = time.process_time(), time.perf_counter()
    with recorder or nullcontext():
        for at in batches:
            optimizer.zero_grad()
            if recorder is not None:
                recorder.batch(at.tolist())
            with nullcontext() if log is None else log.batch(at.tolist(), divided_by=divisor):
                loss(at).backward()
            optimizer.step()
    return time.process_time() - started[0], time.perf_counter() - started[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--watch", nargs="*", default=["recorder", "logra 16", "logra 4", "factgrass 16", "logra 16 factors"])
    parser.add_argument("--widths", type=int, nargs="*", default=[96, 384, 768], help="of transformers")
    parser.add_argument("--mlp", action="store_true", help="a small network, too, whose steps are short")
    options = parser.parse_args()
    settings = {"mlp": (mlp, 6000)} if options.mlp else {}
    settings |= {f"transformer of width {w}": (partial(transformer, w), 30 if w < 200 else 6) for w in options.widths}
    for name, (make, steps) in settings.items():
        for watch in options.watch:
            ratios, size = [], 0.0
            for turn in range(options.rounds + 1):  # the first for imports and warm caches
                with tempfile.TemporaryDirectory() as folder:
                    plain = train(make, steps, "plain", Path(folder))
                    watched = train(make, steps, watch, Path(folder))
                    size = sum(file.stat().st_size for file in Path(folder).rglob("*")) / 2**20
                if turn:
                    ratios.append([mine / other for mine, other in zip(watched, plain, strict=True)])
            middle = [sorted(kind)[len(kind) // 2] for kind in zip(*ratios, strict=True)]
            print(
                f"{name}, {watch}: {steps} steps of {1e3 * plain[0] / steps:.2f} ms; watched {middle[0] - 1:+.1%} of the processor's "
                f"time, {middle[1] - 1:+.1%} on the clock; {size:.1f} MiB on disk",
                flush=True,
            )


if __name__ == "__main__":
    main()
