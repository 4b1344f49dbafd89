"""EK-FAC at real widths: agreement of cut bases with all eigenvectors, time and memory of a fit, and what was forecast of it.

    python benchmarks/widths.py [--width 1024] [--part agreement|cost|vocabulary|bf16|shared]   # 100 documents, two layers

The model is a GPT-2 shape with random weights, trained for a few steps on the words of Python's own documentation; a vocabulary of 512 (4,096
for the part `vocabulary`). Agreement is Spearman's correlation of a query's scores with those of full bases, mean over queries that are other
documents. The truth is that of all eigenvectors, in float64 (`--truth float64`) where what float32 sums lose is to be seen, or of the span of
the rows (`--truth span`, `tests/reference/spanned.py`) where a side is too long for all eigenvectors: fewer positions than a side is long
leave it no more than that. Seconds are of a process on a machine that may be busy: look at the ratios.
"""

import argparse
import gc
import re
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import torch
from tests.reference.spanned import spanned_scores

from whence.capture import plan_units
from whence.capture.memory import give_back
from whence.settings import EKFAC, BuildConfig, Runtime, exact_settings

_LENGTH = 32


def make(width, vocabulary, documents, queries=20, layers=2, track=None):
    """Task, training data and queries."""
    import pydoc_data.topics

    from transformers import GPT2Config, GPT2LMHeadModel

    import whence

    words = re.findall(r"\w+|[^\w\s]|\n", " ".join(pydoc_data.topics.topics.values()))
    ids = {word: place + 1 for place, (word, _) in enumerate(Counter(words).most_common(vocabulary - 1))}
    tokens = [ids.get(word, 0) for word in words]
    texts = [tokens[start : start + _LENGTH] for start in range(0, len(tokens) - _LENGTH, _LENGTH)]
    torch.manual_seed(0)
    texts = [texts[place] for place in torch.randperm(len(texts)).tolist()]
    config = GPT2Config(
        n_layer=layers, n_embd=width, n_head=max(1, width // 64), vocab_size=vocabulary, n_positions=_LENGTH,
        bos_token_id=None, eos_token_id=None, attn_pdrop=0, resid_pdrop=0, embd_pdrop=0, tie_word_embeddings=False,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    optimizer = torch.optim.SGD(model.parameters(), 0.1 if width <= 1024 else 25 / width)  # wider ones diverge
    for start in range(0, min(documents, 64), 8):
        batch = torch.tensor(texts[start : start + 8])
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    task = whence.CausalLM(model.eval(), tokenizer=None, track=track)
    train, asked = texts[:documents], texts[documents : documents + queries]
    return task, *(task.prepare([{"input_ids": text} for text in part]) for part in (train, asked))


def spearman(found, wanted):
    """Mean over rows."""
    ranks = [scores.double().argsort(1).argsort(1).double() for scores in (found, wanted)]
    ranks = [rank - rank.mean(1, keepdim=True) for rank in ranks]
    return float(((ranks[0] * ranks[1]).sum(1) / (ranks[0].norm(dim=1) * ranks[1].norm(dim=1))).mean())


def pearson(found, wanted):
    """Mean over rows."""
    scores = [part.double() - part.double().mean(1, keepdim=True) for part in (found, wanted)]
    return float(((scores[0] * scores[1]).sum(1) / (scores[0].norm(dim=1) * scores[1].norm(dim=1))).mean())


def agreement(arguments):
    """Scores with cut bases against those with all eigenvectors: the default first, then fewer directions, then the axes themselves."""
    import whence

    vocabulary = arguments.vocabulary or (4096 if arguments.part == "vocabulary" else 512)
    task, train, queries = make(
        arguments.width, vocabulary, arguments.documents, arguments.queries, arguments.layers, arguments.track
    )
    if arguments.truth == "float64":
        task.model.double()

    def scores(**options):
        start = time.process_time()
        method = exact_settings("ekfac", {"labels": arguments.labels, **options})
        table = whence.attribute(task, train, queries, method=method, runtime=Runtime(quiet=True, batch_positions=1024))
        return table.scores, time.process_time() - start, next((note for note in table.notes if "label" in note), "")

    if arguments.truth == "span":
        start = time.process_time()
        wanted = spanned_scores(task, plan_units(task), train.examples, queries.examples, labels=arguments.labels)
        seconds = time.process_time() - start
    else:
        wanted, seconds, _ = scores(largest_side=10**6)
    task.model.float()
    truth = {"float32": "all eigenvectors", "float64": "all eigenvectors in float64", "span": "the span of the rows"}
    print(
        f"hidden {arguments.width}, vocabulary {vocabulary}, {len(train)} documents: {truth[arguments.truth]} {seconds:.1f} s"
    )
    # The vocabulary alone is cut, or every side that is longer than the hidden size, or what was asked for.
    longest = [4 * arguments.width] if arguments.part == "vocabulary" else arguments.longest or [arguments.width]
    settings = [
        (f"sides above {side:,}: {few:,}", {"largest_side": side, "directions": few})
        for side in longest
        for few in arguments.directions
    ]
    settings = settings if arguments.only_cut else [("default", {}), *settings]
    if arguments.truth != "float32" and not arguments.no_whole:
        settings.append(("all eigenvectors", {"largest_side": 10**6}))
    for name, options in settings:
        found, took, note = scores(**options)
        share = f"time {took / seconds:.2f}  {took:.1f} s"
        print(
            f"{name:34} agreement {spearman(found, wanted):.4f}  Pearson {pearson(found, wanted):.4f}  {share}  {note}",
            flush=True,
        )


def cost(arguments):
    """Forecast against actual of attribute, curvature, build and exact methods: memory over the model, disk, processor seconds."""
    import whence
    from whence.pipeline import forecast_build, forecast_exact

    task, train, queries = make(arguments.width, 512, arguments.documents, arguments.queries)
    runtime = Runtime(quiet=True, batch_positions=1024)
    print(f"hidden {arguments.width}, {len(train)} documents of {_LENGTH} tokens, {len(queries)} queries; forecast / actual")
    print("| verb | memory MiB | disk MiB | seconds | the forecast itself, seconds |\n|---|---|---|---|---|", flush=True)
    with TemporaryDirectory() as place:
        fit, store = Path(place) / "fit", Path(place) / "store"
        told = {
            "attribute": lambda: forecast_exact(task, train, len(queries), runtime=runtime),
            "curvature": lambda: forecast_exact(task, train, 0, method=EKFAC(factors=fit), runtime=runtime),
            "build": lambda: forecast_build(task, train, whence.BuildConfig(batch_positions=1024)),
        }
        verbs = {
            "attribute": lambda: whence.attribute(task, train, queries, runtime=runtime),
            "curvature": lambda: whence.pipeline.fit_curvature(task, train, fit, runtime=runtime),
            "build": lambda: whence.build(
                task, train, store, config=BuildConfig(batch_positions=1024), runtime=Runtime(quiet=True)
            ),
        }
        for method in set(arguments.verbs) - set(told):
            told[method] = partial(forecast_exact, task, train, len(queries), method=method, runtime=runtime)
            verbs[method] = partial(whence.attribute, task, train, queries, method=method, runtime=runtime)
        for name in arguments.verbs:
            # Of the processor, so that a machine that does other things counts the same on both sides.
            with patch("time.perf_counter", time.process_time):
                found, forecast_seconds, _ = measured(told[name])
            if name == "build":
                stages = (found.learning_bytes, found.encoding_bytes, found.fidelity_bytes)
                memory = found.memory.peak_bytes - found.memory.model_bytes + max(stages)
                disk, seconds = (
                    found.shared_bytes + found.rows * found.row_bytes,
                    found.seconds + found.learning_seconds + found.fidelity_seconds,
                )
            else:
                memory, disk, seconds = found.footprint.peak, found.footprint.fit.disk, found.seconds.total
            _, took, peak = measured(verbs[name])
            folder = {"curvature": fit, "build": store}.get(name, Path(place) / "none")
            written = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            sizes = f"{memory / 2**20:,.0f} / {peak / 2**20:,.0f} | {disk / 2**20:,.1f} / {written / 2**20:,.1f}"
            print(f"| {name} | {sizes} | {seconds:,.1f} / {took:,.1f} | {forecast_seconds:,.1f} |", flush=True)
            print("\n".join(str(found).split("\n")[1:]), file=sys.stderr, flush=True)


def bf16(arguments):
    """Scores from bfloat16 weights against those from float32 weights of the same values."""
    import whence

    def scores(dtype, name, seed=0):
        task, train, queries = make(arguments.width, 512, arguments.documents, arguments.queries)
        task.model.to(torch.bfloat16).to(dtype)  # the same rounded weights in both types
        method, _, rest = name.partition(" ")
        if method in whence.methods.METHODS:
            with TemporaryDirectory() as place:
                config = BuildConfig(method=method, seed=seed, batch_positions=1024)
                store = whence.build(task, train, Path(place) / "store", config=config, runtime=Runtime(quiet=True))
                return whence.score_table(store, task, queries, runtime=Runtime(quiet=True)).scores
        options = {"data labels": {"labels": "dataset"}, "sampled labels": {}, "": {}}[rest]
        options = options if method == "grad-dot-exact" else {"seed": seed, **options}
        runtime = Runtime(quiet=True, batch_positions=1024)
        return whence.attribute(task, train, queries, method=exact_settings(method, options), runtime=runtime).scores

    print(f"hidden {arguments.width}, {arguments.documents} documents, {arguments.queries} queries")
    print("| scores | agreement of bfloat16 with float32 | relative difference |\n|---|---|---|", flush=True)
    for name in ("grad-dot-exact", "kfac data labels", "ekfac data labels", "ekfac sampled labels", "logra", "aligned"):
        wanted, found = scores(torch.float32, name), scores(torch.bfloat16, name)
        print(f"| {name} | {spearman(found, wanted):.4f} | {float((found - wanted).norm() / wanted.norm()):.4f} |", flush=True)
    for name in ("ekfac sampled labels", "aligned"):
        wanted, found = (scores(torch.float32, name, seed) for seed in (0, 1))
        relative = float((found - wanted).norm() / wanted.norm())
        print(f"| {name}, both float32, another seed | {spearman(found, wanted):.4f} | {relative:.4f} |", flush=True)


def shared(arguments):
    """What all rows of a store share, by sizes alone: two layers of a Llama shape."""
    from whence.pipeline.forecast.hardware import ModelShape
    from whence.pipeline.stored.code_size import code_size
    from whence.pipeline.stored.shared_budget import within_budget
    from whence.settings import BuildConfig, FitConfig

    width = arguments.width
    units = ModelShape(layers=2, hidden=width, intermediate=11 * width // 4, key_values=width, vocabulary=512).units()
    whole, config = FitConfig(largest_side=10**6, directions=1024), BuildConfig()
    print("| documents | rows MiB | shared without a budget, MiB | shared, MiB | directions a side |\n|---|---|---|---|---|")
    for documents in (48, 10_000, 10**6):
        fit, size = within_budget(units, documents, config, whole)
        before = code_size(units, documents, config, whole).shared_bytes
        rows, sizes = documents * size.row_bytes / 2**20, f"{before / 2**20:,.0f} | {size.shared_bytes / 2**20:,.0f}"
        print(f"| {documents:,} | {rows:,.2f} | {sizes} | {fit.directions} |")


def measured(make):
    """What is made, processor seconds, and the most memory over what was there before, in bytes (Linux)."""

    def status(name):
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
        return int(line.split()[1]) * 1024

    gc.collect()
    give_back()
    Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
    before, start = status("VmRSS"), time.process_time()
    made = make()
    return made, time.process_time() - start, status("VmHWM") - before


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--documents", type=int, default=100)
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--longest", type=int, nargs="*", help="sides above these are cut; the hidden size if not said")
    parser.add_argument("--only-cut", action="store_true", help="leave the default out, where it keeps all eigenvectors")
    parser.add_argument("--part", choices=("agreement", "vocabulary", "cost", "bf16", "shared"), default="agreement")
    parser.add_argument("--directions", type=int, nargs="*", default=[1024, 512, 256, 0])
    parser.add_argument("--truth", choices=("float32", "float64", "span"), default="float32", help="what is agreed with")
    parser.add_argument(
        "--no-whole", action="store_true", help="leave all eigenvectors in float32 out, where another is the truth"
    )
    parser.add_argument("--labels", default="auto", help="as in FitConfig, of the parts agreement and vocabulary")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--vocabulary", type=int, help="of the parts agreement and vocabulary")
    parser.add_argument("--track", nargs="*", help="parameters that are attributed, by patterns")
    parser.add_argument("--verbs", nargs="*", default=["attribute", "curvature", "build"], help="or exact methods")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    {"cost": cost, "bf16": bf16, "shared": shared}.get(arguments.part, agreement)(arguments)


if __name__ == "__main__":
    main()
