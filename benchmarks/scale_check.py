"""The arithmetic of `whence forecast --model-shape` against captures that are small enough to run.

    python benchmarks/scale_check.py [--examples 8]

Llama models with random weights, one thread, processor seconds (the machine may be shared). The rate of a large float32 product and the share
of it that the first model's gradients reach are measured; the forecasts of the others are made with them.
"""

import argparse
import os
import sys
import time

os.environ["OMP_NUM_THREADS"] = "1"

import torch  # noqa: E402

import whence  # noqa: E402
from whence.capture import plan_units  # noqa: E402
from whence.config import BuildConfig  # noqa: E402
from whence.pipeline import Cluster, forecast_scale  # noqa: E402
from whence.pipeline.encoders import random_encoder  # noqa: E402
from whence.pipeline.sizes import ModelShape  # noqa: E402
from whence.progress import meter  # noqa: E402
from whence.score import gradient_rows  # noqa: E402

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
        seconds = []
        with meter("", 1, quiet=True) as progress:
            for _ in range(3):
                started = time.process_time()
                gradient_rows(task, plan, encoder, dataset.examples, max_positions=1024, progress=progress)
                seconds.append(time.process_time() - started)
        measured = tokens * len(dataset) / min(seconds)
        options = {"tokens_per_example": tokens, "track": [PROJECTIONS]}
        full = forecast_scale(shape, len(dataset), config, Cluster(tflops=rate / 1e12, utilisation=1.0), **options)
        is_first = utilisation is None
        utilisation = measured / full.build_tokens_per_second if utilisation is None else utilisation
        said = full.build_tokens_per_second * utilisation
        ratio = f"sets the share: {utilisation:.2f}" if is_first else f"{said / measured:.2f}"
        print(
            f"| {name} | {rate / 1e9:.0f} | {said:,.0f} | {measured:,.0f} | {ratio} |",
            flush=True,
        )
        print(f"{name}: done", file=sys.stderr)


if __name__ == "__main__":
    main()
