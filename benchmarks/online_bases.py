"""Bases of the curvature followed while training: what they cost a step, and how well scores in them agree with those in fitted bases.

    OMP_NUM_THREADS=1 python benchmarks/online_bases.py

Agreement is the mean over 32 queries of the Spearman correlation over 256 training passages, of SOURCE (3 segments), whose
eigenvalues are measured in either pair of bases; with other draws of labels the fitted ones agree with themselves as in the last row.
Cost is the median step of a GPT-2 of two layers on 16 passages of 64 tokens, with a look in every step and without.
"""

import argparse
import tempfile
import time

import torch
from scipy.stats import spearmanr
from torch import nn

import whence

SETTINGS = ((1, 0.05), (1, 0.2))


def passages(count, length=49):
    """Token ids of passages of documentation."""
    from whence.bench.data import documents
    from whence.demo.model import Settings, train_tokenizer

    settings = Settings(vocabulary=512, context=length)
    texts = [record["text"] for record in documents()[:2000]]
    tokenizer = train_tokenizer(iter(texts), settings)
    rows = [tokenizer(text)["input_ids"][:length] for text in texts]
    return torch.tensor([row for row in rows if len(row) == length][:count])


def network(width):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=512, n_positions=64, n_embd=width, n_layer=2, n_head=4, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
        tie_word_embeddings=False, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def losses(model, tokens):
    outputs = model(tokens).logits[:, :-1].transpose(1, 2)
    return nn.functional.cross_entropy(outputs, tokens[:, 1:], reduction="none").sum(1)


def task_of(model):
    """Its blocks, as published comparisons have it."""
    return whence.CausalLM(model, tokenizer=None, track=["transformer.h.*"])


def records(tokens, start=0):
    return [{"id": str(start + n), "input_ids": row.tolist(), "labels": row.tolist()} for n, row in enumerate(tokens)]


def train(model, tokens, folder, online, epochs=4, size=16, is_timed=None):
    """A recorded run."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.003, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    steps, spent = epochs * len(tokens) // size, []
    with whence.Recorder(
        folder, model, optimizer, every=steps if is_timed is not None else max(1, steps // 6), curvature=online
    ) as run:
        for _ in range(epochs):
            for batch in torch.randperm(len(tokens), generator=generator).split(size):
                start = time.process_time()
                run.batch(batch.tolist())
                optimizer.zero_grad()
                losses(model, tokens[batch]).mean().backward()
                run.clip(10.0)
                optimizer.step()
                spent += [time.process_time() - start]
    if is_timed is not None:
        is_timed.append(sorted(spent)[len(spent) // 2])  # without the first, which decomposes


def agreement(one, other):
    return sum(float(spearmanr(a, b).statistic) for a, b in zip(one, other, strict=True)) / len(one)


def scores():
    tokens = passages(288)
    print("| looks every | share | SOURCE | seconds of fits and scores, online | fitted |\n|---|---|---|---|---|")
    for every, share in SETTINGS:
        with tempfile.TemporaryDirectory() as folder:
            model = network(64)
            task = task_of(model)
            train(model, tokens[:256], folder, whence.runs.OnlineCurvature(task, every=every, share=share))
            train_set, queries = records(tokens[:256]), records(tokens[256:], 256)
            tables, seconds = {}, {}
            for name, options in (("online", {"online_bases": True}), ("fitted", {}), ("other labels", {"seed": 1})):
                start = time.perf_counter()
                tables[name] = whence.attribute(
                    task,
                    train_set,
                    queries,
                    method=whence.settings.exact_settings("source", {"run": folder, **options}),
                    runtime=whence.Runtime(quiet=True),
                ).scores
                seconds[name] = time.perf_counter() - start
            found = agreement(tables["online"], tables["fitted"])
            print(f"| {every} | {share} | {found:.3f} | {seconds['online']:.1f} | {seconds['fitted']:.1f} |", flush=True)
    print(f"| other labels | | {agreement(tables['other labels'], tables['fitted']):.3f} | | |")


def cost(width, steps=6):
    """A look in steps of training: the time of as many steps with a look each over that of as many without, less one."""
    tokens, seconds = torch.randint(512, (16 * steps, 64)), []
    for is_online in (False, True):
        model = network(width)
        online = whence.runs.OnlineCurvature(task_of(model), every=1, first=1) if is_online else None
        with tempfile.TemporaryDirectory() as folder:
            train(model, tokens, folder, online, epochs=1, is_timed=seconds)
    return seconds[1] / seconds[0] - 1


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="*", default=[128, 384, 768])
    parser.add_argument("--only-cost", action="store_true")
    arguments = parser.parse_args()
    if not arguments.only_cost:
        scores()
    print("\n| width | a look, in steps | of training at a look every 10 steps | every 50 |\n|---|---|---|---|")
    for width in arguments.widths:
        look = cost(width)
        print(f"| {width} | {look:.1f} | {look / 10:.0%} | {look / 50:.0%} |", flush=True)


if __name__ == "__main__":
    main()
