"""On a GPU: a build against a training step, a fit of EK-FAC, a scan of rows in device memory, and what bfloat16 weights cost and change.

    python benchmarks/gpu.py [--layers 8 --width 2048 --vocabulary 32000 --length 512 --batch 16] [--part build|fit|scan|bf16]

Everything is measured in one process on one device and printed as ratios: of a build to a training step of the same batch (forward,
backward, AdamW; 1.5 is the limit, two thirds of the arithmetic), and of a scan to reading the same bytes once. Published for comparison:
LoGra projects 4,696 tokens a second of an 8B model on an A100 in bfloat16 (Choe et al. 2024).
`--device cpu` runs the same on a processor, with small sizes, to see that it runs.
"""

import argparse
import statistics
import tempfile
import time

import torch

from whence.settings import Runtime


def make(arguments, dtype):
    """Task and examples of random tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    import whence

    torch.manual_seed(0)
    width, length = arguments.width, arguments.length
    config = LlamaConfig(
        num_hidden_layers=arguments.layers, hidden_size=width, intermediate_size=int(2.75 * width),
        num_attention_heads=max(1, width // 64), num_key_value_heads=max(1, width // 256), vocab_size=arguments.vocabulary,
        max_position_embeddings=length, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    task = whence.CausalLM(LlamaForCausalLM(config).to(arguments.device, dtype).eval(), tokenizer=None)
    count = arguments.batch * arguments.rounds
    records = [{"input_ids": torch.randint(arguments.vocabulary, (length,)).tolist()} for _ in range(count)]
    return task, task.prepare(records)


def seconds(step, device, rounds=1):
    """Median of a step's time, once it has run before; a device's work is waited for."""
    found = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    return statistics.median(found[1:])


def peak_mib(device):
    return torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else float("nan")


def build(arguments):
    """Tokens a second of a training step and of the rows of a store."""
    from whence.capture import plan_units
    from whence.compress import Kronecker
    from whence.progress import meter
    from whence.score import Batching, gradient_rows

    task, examples = make(arguments, arguments.dtype)
    few = examples.examples[: arguments.batch]
    tokens = arguments.batch * arguments.length
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=1e-5)

    def train():
        batch = task.collate(few)
        optimizer.zero_grad()
        task.loss(task.model, batch).sum().backward()
        optimizer.step()

    training = seconds(train, arguments.device, arguments.rounds)
    optimizer.zero_grad()
    plan = plan_units(task)
    print(
        f"{sum(p.numel() for p in task.model.parameters()) / 1e6:,.0f} M parameters, {arguments.dtype}, {tokens:,} tokens a batch"
    )
    print(f"training step {tokens / training:12,.0f} tokens/s, {peak_mib(arguments.device):,.0f} MiB")
    for rank in (8, 64):
        shapes = [(min(rank, unit.outputs), min(rank, unit.inputs)) for unit in plan.units]
        encoder = Kronecker.random(plan.units, shapes, kind="rademacher", seed=0, device=task.device)

        def rows(encoder=encoder):
            with meter("", len(few), quiet=True) as progress:
                gradient_rows(task, plan, encoder, few, batching=Batching(tokens), progress=progress)

        building = seconds(rows, arguments.device, arguments.rounds)
        print(f"logra rank {rank:3} {tokens / building:12,.0f} tokens/s, {training / building:.2f} of training's speed")


def fit(arguments):
    """EK-FAC over all examples, and the whole default build."""
    import whence

    task, examples = make(arguments, arguments.dtype)
    tokens = len(examples) * arguments.length
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        whence.pipeline.fit_curvature(task, examples, f"{folder}/fit", runtime=Runtime(quiet=True))
        print(f"fit of EK-FAC: {tokens:,} tokens in {time.perf_counter() - started:,.1f} s")
        started = time.perf_counter()
        whence.build(task, examples, f"{folder}/store", runtime=Runtime(quiet=True))
        print(f"default store: {time.perf_counter() - started:,.1f} s, peak {peak_mib(arguments.device):,.0f} MiB")


def scan(arguments):
    """Inner products with rows in device memory, in several types, against reading the bytes once."""
    count, width = arguments.scan_rows, arguments.scan_width
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        rows = torch.randn(count, width, device=arguments.device).to(dtype)
        queries = torch.randn(width, 16, device=arguments.device).to(dtype)
        reading = seconds(lambda rows=rows: rows.view(torch.int16).amax(), arguments.device, arguments.rounds)
        scanning = seconds(lambda rows=rows, queries=queries: (rows @ queries).topk(50, 0), arguments.device, arguments.rounds)
        rate = rows.nbytes / scanning / 1e9
        print(
            f"scan {str(dtype)[6:]:9} {count / scanning:14,.0f} rows/s, {rate:8,.0f} GB/s, {reading / scanning:.2f} of reading"
        )


def bf16(arguments):
    """Speed of bfloat16 weights, and agreement with float32 ones that have the same values."""
    import whence
    from whence.data import Dataset

    tables, times = [], []
    for dtype in (torch.float32, torch.bfloat16):
        task, examples = make(arguments, torch.bfloat16)  # the same rounded weights in both types
        task.model.to(dtype)
        queries = Dataset(examples.examples[:4])
        started = time.perf_counter()
        tables.append(whence.attribute(task, examples, queries, runtime=Runtime(quiet=True)).scores.double())
        times.append(time.perf_counter() - started)
    ranks = [table.argsort(1).argsort(1).double() for table in tables]
    agreement = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(*ranks, strict=True)]).mean()
    print(f"bfloat16: agreement (Spearman) with float32 {agreement:.4f}, {times[0] / times[1]:.2f} of its speed")


PARTS = {"build": build, "fit": fit, "scan": scan, "bf16": bf16}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"layers": 8, "width": 2048, "vocabulary": 32000, "length": 512, "batch": 16, "rounds": 5}
    for name, value in (sizes | {"scan-rows": 4_000_000, "scan-width": 1024}).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", type=lambda name: getattr(torch, name), default=torch.bfloat16)
    parser.add_argument("--part", choices=PARTS, nargs="*", default=list(PARTS))
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            "found no CUDA device; needed one; do: run this where there is one, or pass --device cpu with small sizes"
        )
    for name in arguments.part:
        PARTS[name](arguments)


if __name__ == "__main__":
    main()
