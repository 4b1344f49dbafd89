"""Building a store against training the same model: tokens per second and peak memory, in one run.

    python benchmarks/build_speed.py [--layers 6 --width 320 --vocabulary 8192 --length 256 --batch 16]

A training step is forward, backward, AdamW. A build step is capture and projection of the same batch, and its share of encoding a shard
of 256 rows. The two take turns, so that a busy machine slows both; the ratio is the median over pairs. Limit: without weight gradients a
build does two thirds of the arithmetic, so 1.5.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import torch

from whence.settings import BuildConfig, Runtime


def make(arguments):
    from transformers import GPT2Config, GPT2LMHeadModel

    import whence

    torch.manual_seed(0)
    config = GPT2Config(
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
    task = whence.CausalLM(GPT2LMHeadModel(config), tokenizer=None)
    records = [{"input_ids": torch.randint(arguments.vocabulary, (arguments.length,)).tolist()} for _ in range(arguments.batch)]
    return task, task.prepare(records).examples


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


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("layers", 6), ("width", 320), ("vocabulary", 8192), ("length", 256), ("batch", 16), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--only", default="")
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
    print(
        "| method | training step s | build step s | build tokens/s | build / training speed | peak memory build / training MiB |"
    )
    print("|---|---|---|---|---|---|")
    base, training_peak = peak(arguments, "none"), peak(arguments, "training")
    for method in ("lorif", "logra", "grad-dot"):
        train = train_step(task, examples)
        build, encode = build_step(task, examples, method)
        train(), encode()
        pairs = [(seconds(train), seconds(build) + seconds(encode) * arguments.batch / 256) for _ in range(arguments.rounds)]
        ratio = statistics.median(a / b for a, b in pairs)
        a, b = (statistics.median(column) for column in zip(*pairs, strict=True))
        memory = f"{peak(arguments, method) - base:,.0f} / {training_peak - base:,.0f}"
        print(f"| {method} | {a:.2f} | {b:.2f} | {tokens / b:,.0f} | {ratio:.2f} | {memory} |", flush=True)


if __name__ == "__main__":
    main()
