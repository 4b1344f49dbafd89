"""The arithmetic of `whence forecast --model-shape` against captures that are small enough to run.

    python benchmarks/scale_check.py [--examples 8]

Llama models with random weights, one thread, processor seconds (the machine may be shared). The rate of a large float32 product and the share
of it that the first model's gradients reach are measured; the forecasts of the others are made with them. For method aligned the two passes
of the fit, the sample's pass and the rows are timed one by one, and with them eigenvectors and axes, which the forecast leaves out: they grow
with the model and the sample, not with the data. Axes are not rounded here. Last,
`whence forecast`, which runs a few examples, against a build of sixteen times as many: wall-clock seconds, so on a quiet machine only.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch  # noqa: E402

import whence  # noqa: E402
from whence.capture import plan_units  # noqa: E402
from whence.compress import Aligned  # noqa: E402
from whence.curvature import Code, ResolvedDamping, code_axes, whiten  # noqa: E402
from whence.curvature.ekfac import fit_values  # noqa: E402
from whence.curvature.kfac import FitRun, fit_factors, prepare_fit, solve_bases  # noqa: E402
from whence.pipeline import forecast_build, forecast_scale  # noqa: E402
from whence.pipeline.forecast.hardware import ModelShape  # noqa: E402
from whence.pipeline.stored.encoders import random_encoder  # noqa: E402
from whence.progress import meter  # noqa: E402
from whence.score import Batching, gradient_rows  # noqa: E402
from whence.settings import (
    BuildConfig,  # noqa: E402
    Cluster,
    FitConfig,
    Load,
)

PROJECTIONS = "*proj.weight"
CASES = [
    ("4 x 384, rank 16", ModelShape(layers=4, hidden=384, intermediate=1024, key_values=384, vocabulary=2048), 128, 16),
    ("4 x 384, rank 64", ModelShape(layers=4, hidden=384, intermediate=1024, key_values=384, vocabulary=2048), 128, 64),
    ("8 x 384, rank 16", ModelShape(layers=8, hidden=384, intermediate=1024, key_values=128, vocabulary=2048), 128, 16),
    ("4 x 512, rank 16", ModelShape(layers=4, hidden=512, intermediate=1408, key_values=512, vocabulary=4096), 256, 16),
]


def task_of(shape):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        num_hidden_layers=shape.layers, hidden_size=shape.hidden, intermediate_size=shape.intermediate, vocab_size=shape.vocabulary,
        num_attention_heads=shape.hidden // 64, num_key_value_heads=shape.key_values // 64, max_position_embeddings=512,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    return whence.CausalLM(LlamaForCausalLM(config), tokenizer=None, track=[PROJECTIONS])


def product_rate():
    """Operations a second of a large float32 product, the best of a few."""
    left, right, best = torch.randn(1024, 1024), torch.randn(1024, 1024), 0.0
    for _ in range(8):
        started = time.process_time()
        left @ right
        best = max(best, 2 * 1024**3 / (time.process_time() - started))
    return best


def rows_seconds(task, plan, encoder, dataset):
    """Of the dataset's rows, the best of three."""
    seconds = []
    with meter("", 1, quiet=True) as progress:
        for _ in range(3):
            started = time.process_time()
            gradient_rows(task, plan, encoder, dataset.examples, batching=Batching(1024), progress=progress)
            seconds.append(time.process_time() - started)
    return min(seconds)


def aligned_seconds(task, plan, dataset, rank):
    """Processor seconds of each part of an aligned build, by name."""
    fit, found = prepare_fit(task, plan, dataset, FitConfig(), FitRun(max_positions=1024, quiet=True)), {}

    def timed(name, make):
        started = time.process_time()
        made = make()
        found[name] = time.process_time() - started
        return made

    with meter("", 1, quiet=True) as progress:
        fit_factors(fit, progress)  # the first pass of all warms up
        factors = timed("factors", lambda: fit_factors(fit, progress))
        bases = timed("eigenvectors", lambda: solve_bases(fit, factors, progress))
        values = timed("eigenvalues", lambda: fit_values(fit, bases, progress, range(len(plan.units))))
        whitened = whiten(fit.finish(bases, values), ResolvedDamping(0.1, None, ""), 1 << 40)
        rows = timed(
            "sample", lambda: gradient_rows(task, plan, whitened, dataset.examples, batching=Batching(1024), progress=progress)
        )
    choices = [Code(min(rank, len(dataset)), "int8", 8)]
    axes, _, _ = timed("axes", lambda: code_axes([row[:, 0] for row in rows.units], choices, most_bytes=1 << 40, seed=0))
    found["rows"] = rows_seconds(task, plan, Aligned(whitened, axes, "int8", 0), dataset)
    return found


def build_seconds(task, dataset, config):
    """Seconds before the rows of a store, as far as they have stages of their own, seconds of the rows, and their bytes."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "store"
        started = time.perf_counter()
        whence.build(task, dataset, folder, config=config, runtime=whence.Runtime(quiet=True))
        whole = time.perf_counter() - started
        for path in [*folder.glob("shards/*"), folder / "manifest.json"]:
            path.unlink()
        started = time.perf_counter()
        whence.build(task, dataset, folder, config=config, runtime=whence.Runtime(quiet=True))
        rows = time.perf_counter() - started
        return whole - rows, rows, sum(path.stat().st_size for path in folder.glob("shards/*.safetensors"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    utilisation = None
    print("| model, method logra | product GFLOP/s | forecast tokens/s | measured | forecast / measured |")
    print("|---|---|---|---|---|")
    for name, shape, tokens, rank in CASES:
        rate = product_rate()
        task = task_of(shape)
        records = [{"input_ids": torch.randint(shape.vocabulary, (tokens,)).tolist()} for _ in range(arguments.examples)]
        dataset, plan = task.prepare(records), plan_units(task)
        config = BuildConfig(method="logra", rank=rank, batch_positions=1024)
        encoder = random_encoder(plan, config, task.device)
        measured = tokens * len(dataset) / rows_seconds(task, plan, encoder, dataset)
        load = Load(examples=len(dataset), tokens_per_example=tokens)
        full = forecast_scale(shape, load, config, Cluster(tflops=rate / 1e12, utilisation=1.0), track=[PROJECTIONS])
        is_first = utilisation is None
        utilisation = measured / full.build_tokens_per_second if utilisation is None else utilisation
        said = full.build_tokens_per_second * utilisation
        ratio = f"sets the share: {utilisation:.2f}" if is_first else f"{said / measured:.2f}"
        print(
            f"| {name} | {rate / 1e9:.0f} | {said:,.0f} | {measured:,.0f} | {ratio} |",
            flush=True,
        )
        print(f"{name}: done", file=sys.stderr)
    print("\n| method aligned | forecast s | measured s | forecast / measured |\n|---|---|---|---|")
    for name, shape, tokens, rank in CASES[1:]:
        task = task_of(shape)
        records = [{"input_ids": torch.randint(shape.vocabulary, (tokens,)).tolist()} for _ in range(arguments.examples)]
        dataset, plan = task.prepare(records), plan_units(task)
        config = BuildConfig(method="aligned", rank=rank, dtype="int8", batch_positions=1024)
        cluster = Cluster(tflops=product_rate() / 1e12, utilisation=utilisation)
        load = Load(examples=len(dataset), tokens_per_example=tokens)
        said = forecast_scale(shape, load, config, cluster, track=[PROJECTIONS])
        found = aligned_seconds(task, plan, dataset, rank)
        passes = found["factors"] + found["eigenvalues"] + found["sample"]
        for what, ours, theirs in (("fit and sample", said.fit_seconds, passes), ("rows", said.build_seconds, found["rows"])):
            print(f"| {name.split(',')[0]}, {what} | {ours:.2f} | {theirs:.2f} | {ours / theirs:.2f} |", flush=True)
        print(f"{name}: {', '.join(f'{part} {value:.2f} s' for part, value in found.items())}", file=sys.stderr)
    print("\n| `whence forecast` of a build | forecast s | measured s | ratio |\n|---|---|---|---|")
    name, shape, tokens, _ = CASES[0]
    task, count = task_of(shape), 16 * arguments.examples
    dataset = task.prepare([{"input_ids": torch.randint(shape.vocabulary, (tokens,)).tolist()} for _ in range(count)])
    for method in ("logra", "aligned"):
        config = BuildConfig(method=method, rank=16, batch_positions=1024)
        said = forecast_build(task, dataset, config)
        before, rows, size = build_seconds(task, dataset, config)
        parts = [("rows", said.seconds, rows)]
        if method == "aligned":
            parts = [("before the rows", said.learning_seconds, before), *parts]
        for what, ours, theirs in parts:
            print(f"| {name.split(',')[0]}, {method}, {what} | {ours:.1f} | {theirs:.1f} | {ours / theirs:.2f} |", flush=True)
        bytes_said = said.row_bytes * count
        print(f"| {name.split(',')[0]}, {method}, bytes | {bytes_said:,} | {size:,} | {bytes_said / size:.2f} |", flush=True)


if __name__ == "__main__":
    main()
