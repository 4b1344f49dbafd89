"""Building a store against training the same model: tokens per second and peak memory, in one run.

    python benchmarks/build_speed.py [--layers 6 --width 320 --vocabulary 8192 --length 256 --batch 16]

    python benchmarks/build_speed.py --shape llama --layers 2 --width 2048 --vocabulary 1024 --methods lorif aligned    # 98.6 M parameters

A training step is forward, backward, AdamW. A build step is capture and projection of the same batch, and its share of encoding a shard
of 256 rows. The two take turns, so that a busy machine slows both; the ratio is the median over pairs. Limit: without weight gradients a
build does two thirds of the arithmetic, so 1.5.

`aligned` is the default store once its curvature and axes are there: its sizes are those of a build of 10,000 documents, the curvature is
fitted on the batch, and the axes are random, since their values do not change the time. Gradients without
axes, and axes alone, are timed beside.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

from whence.settings import BuildConfig, Runtime

_DOCUMENTS = 10_000  # of the store whose sizes `aligned` has


def make(arguments):
    from transformers import GPT2LMHeadModel, LlamaForCausalLM

    import whence

    torch.manual_seed(0)
    model = (GPT2LMHeadModel if arguments.shape == "gpt2" else LlamaForCausalLM)(shape(arguments))
    task = whence.CausalLM(model, tokenizer=None)
    records = [{"input_ids": torch.randint(arguments.vocabulary, (arguments.length,)).tolist()} for _ in range(arguments.batch)]
    return task, task.prepare(records).examples


def shape(arguments):
    from transformers import GPT2Config, LlamaConfig

    if arguments.shape == "llama":
        heads = arguments.width // 64
        return LlamaConfig(
            num_hidden_layers=arguments.layers,
            hidden_size=arguments.width,
            intermediate_size=11 * arguments.width // 4,
            num_attention_heads=heads,
            num_key_value_heads=heads // 2,
            vocab_size=arguments.vocabulary,
            max_position_embeddings=arguments.length,
            bos_token_id=None,
            eos_token_id=None,
        )
    return GPT2Config(
        n_layer=arguments.layers,
        n_embd=arguments.width,
        n_head=arguments.width // 64,
        vocab_size=arguments.vocabulary,
        n_positions=arguments.length,
        bos_token_id=None,
        eos_token_id=None,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )


def train_step(task, examples):
    model = task.model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step():
        optimizer.zero_grad()
        batch = task.collate(examples)
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()).backward()
        optimizer.step()

    return step


def build_step(task, examples, method):
    from whence.capture import plan_units
    from whence.compress import Kronecker, RowCodec, projected_shape
    from whence.methods import method_named
    from whence.progress import meter
    from whence.score import Batching, gradient_rows

    plan = plan_units(task)
    chosen = method_named(method)
    names = tuple(unit.name for unit in plan.units)
    shapes = tuple(projected_shape(unit, chosen.rank) for unit in plan.units)
    kronecker = Kronecker.random(plan.units, shapes, kind="rademacher", seed=0, device=task.device)
    codec = RowCodec(names, shapes, chosen.factor_rank, torch.bfloat16, seed=0)
    positions = sum(example.length for example in examples)

    def step():
        with meter("", len(examples), quiet=True) as progress:
            return gradient_rows(task, plan, kronecker, examples, batching=Batching(positions), progress=progress).units

    shard = []

    def encode():  # rows are encoded a shard at a time
        if not shard:
            shard.extend(torch.randn(256, *shape) for shape in shapes)
        codec.encode(shard)

    return step, encode


def default_encoder(task, plan, examples):
    """That of the default store, with the sizes that many documents give it and random axes."""
    from whence.compress import Aligned, Axes
    from whence.curvature import ResolvedDamping, fit_ekfac, most_bits, resolved, whiten
    from whence.data import Dataset
    from whence.methods import method_named
    from whence.pipeline.stored.shared_budget import within_budget

    config = BuildConfig()
    fit = resolved(None, plan.units, device=task.device, positions=_DOCUMENTS * examples[0].length, room_bytes=4 << 30)
    fit, size = within_budget(plan.units, _DOCUMENTS, config, fit)
    positions = sum(example.length for example in examples)
    with tempfile.TemporaryDirectory(prefix="whence-") as folder:
        curvature = fit_ekfac(
            task, plan, Dataset(examples), fit, max_positions=positions, folder=Path(folder) / "fit", quiet=True
        )
        damping = ResolvedDamping(method_named("aligned").relative_damping, None, "")
        whitened = whiten(curvature, damping, size.coordinates)
    code = max(size.choices, key=lambda choice: choice.width)
    bits = most_bits(size.coordinates, code.width, size.axes_bytes)
    parts = [
        Axes.of(torch.randn(min(1 << 17, size.coordinates - first), code.width), bits, first, seed=0)
        for first in range(0, size.coordinates, 1 << 17)
    ]
    axes = Axes(torch.cat([part.codes for part in parts]), torch.cat([part.scales_M for part in parts]), bits, code.width)
    print(
        f"<!-- aligned: {code.width:,} axes of {bits} bits, {size.coordinates:,} coordinates, "
        f"{fit.directions:,} directions of sides above {fit.largest_side:,} -->"
    )
    return Aligned(whitened, axes, code.dtype, 0)


def default_steps(task, examples):
    """A batch's rows with the default store's encoder: all of it, gradients alone, and the axes alone."""
    from whence.capture import plan_units
    from whence.progress import meter
    from whence.score import Batching, gradient_rows

    plan = plan_units(task)
    encoder = default_encoder(task, plan, examples)
    positions = sum(example.length for example in examples)

    def step(how):
        with meter("", len(examples), quiet=True) as progress:
            return gradient_rows(task, plan, how, examples, batching=Batching(positions), progress=progress).units

    whitened = torch.randn(len(examples), sum(width for _, width in encoder.whitened.shapes()))
    return partial(step, encoder), partial(step, encoder.whitened), partial(encoder.encode, whitened)


def whole_build(task, examples, method):
    """A real build of four such batches, with its checks, its files and its curvature."""
    import whence
    from whence.data import Dataset, Example

    copies = [Example(f"{number}/{e.id}", e.fields, e.length) for number in range(4) for e in examples]
    positions = sum(example.length for example in examples)
    with tempfile.TemporaryDirectory(prefix="whence-") as folder:
        whence.build(
            task,
            Dataset(copies),
            folder,
            config=BuildConfig(method=method, batch_positions=positions),
            runtime=Runtime(quiet=True),
        )


def seconds(step):
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def peak(arguments, which):
    """Peak resident memory in a process of its own, in MiB: three training steps, a whole build, or ("none") model and data alone."""
    command = [sys.executable, __file__, *sys.argv[1:], "--only", which]
    return json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


def default_store(task, examples, rounds, tokens):
    """The default store against a training step, and what its stages take."""
    train, (whole, gradients, axes) = train_step(task, examples), default_steps(task, examples)
    train(), whole()
    rows = [[seconds(step) for step in (train, whole, gradients, axes)] for _ in range(rounds)]
    ratio = statistics.median(training / build for training, build, *_ in rows)
    training, build, gradients, axes = (statistics.median(column) for column in zip(*rows, strict=True))
    print(
        "| method | training step s | build step s | whitened gradients s | axes s | build tokens/s | build / training speed |"
    )
    print("|---|---|---|---|---|---|---|")
    print(
        f"| aligned | {training:.2f} | {build:.2f} | {gradients:.2f} | {axes:.2f} | {tokens / build:,.0f} | {ratio:.2f} |",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("layers", 6), ("width", 320), ("vocabulary", 8192), ("length", 256), ("batch", 16), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--shape", choices=("gpt2", "llama"), default="gpt2")
    parser.add_argument("--methods", nargs="*", default=["lorif", "logra", "grad-dot", "aligned"])
    parser.add_argument("--only", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    task, examples = make(arguments)
    if arguments.only:
        if arguments.only == "training":
            step = train_step(task, examples)
            for _ in range(3):
                step()
        elif arguments.only != "none":
            whole_build(task, examples, arguments.only)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    parameters = sum(parameter.numel() for parameter in task.model.parameters())
    tokens = arguments.batch * arguments.length
    print(f"{parameters / 1e6:.1f} M parameters, {tokens:,} tokens a step, {torch.get_num_threads()} threads")
    projected = [method for method in arguments.methods if method != "aligned"]
    if projected:
        print(
            "| method | training step s | build step s | build tokens/s | build / training speed | peak memory build / training MiB |"
        )
        print("|---|---|---|---|---|---|")
        base, training_peak = peak(arguments, "none"), peak(arguments, "training")
    for method in projected:
        train = train_step(task, examples)
        build, encode = build_step(task, examples, method)
        train(), encode()
        pairs = [(seconds(train), seconds(build) + seconds(encode) * arguments.batch / 256) for _ in range(arguments.rounds)]
        ratio = statistics.median(a / b for a, b in pairs)
        a, b = (statistics.median(column) for column in zip(*pairs, strict=True))
        memory = f"{peak(arguments, method) - base:,.0f} / {training_peak - base:,.0f}"
        print(f"| {method} | {a:.2f} | {b:.2f} | {tokens / b:,.0f} | {ratio:.2f} | {memory} |", flush=True)
    if "aligned" in arguments.methods:
        default_store(task, examples, arguments.rounds, tokens)


if __name__ == "__main__":
    main()
