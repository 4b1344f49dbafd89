"""Exact attribution against plain training arithmetic: fitting EK-FAC and scoring, in passes of forward and backward, in one run.

    python benchmarks/ekfac_speed.py [--layers 2 --width 96 --vocabulary 2048 --length 64 --documents 256 --queries 64 --largest-side 4096]

The unit is one forward and backward pass over the same documents with gradients of all weights, in batches of the same size. Every part
takes turns with it, so that a busy machine slows both; the ratio is the median over rounds. Capture alone freezes the weights, so two thirds
are its limit; scoring adds one product per position to form the gradients and one per query: with as many queries as positions another two
thirds.
"""

import argparse
import json
import statistics
import time

import torch


def make(arguments):
    from transformers import GPT2Config, GPT2LMHeadModel

    import whence

    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=arguments.layers,
        n_embd=arguments.width,
        n_head=max(1, arguments.width // 32),
        vocab_size=arguments.vocabulary,
        n_positions=arguments.length,
        bos_token_id=None,
        eos_token_id=None,
    )
    task = whence.CausalLM(GPT2LMHeadModel(config).eval(), tokenizer=None)
    count = arguments.documents + arguments.queries
    dataset = task.prepare(
        [{"input_ids": torch.randint(arguments.vocabulary, (arguments.length,)).tolist()} for _ in range(count)]
    )
    return task, dataset.examples[: arguments.documents], dataset.examples[arguments.documents :]


def parts_of(task, examples, queries, positions, largest_side=4096):
    """The parts by name, in an order in which each has what it needs."""
    from whence.capture import capture, plan_units
    from whence.curvature import ResolvedDamping
    from whence.curvature.ekfac import fit_values
    from whence.curvature.kfac import FitRun, fit_factors, prepare_fit, solve_bases
    from whence.data import Dataset, batches
    from whence.pipeline.exact.prepare import Prepared
    from whence.pipeline.exact.query_gradients import query_gradients
    from whence.progress import meter
    from whence.score import Metric, Parts, exact_scores, truncate
    from whence.settings import EKFAC, FitConfig, Runtime

    plan, train = plan_units(task), Dataset(examples)
    fit = prepare_fit(task, plan, train, FitConfig(largest_side=largest_side), FitRun(max_positions=positions, quiet=True))
    held = {}

    def plain():
        model = task.model
        for items in batches([example.length for example in examples], max_positions=positions):
            batch = task.collate([examples[item] for item in items])
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()).backward()
            model.zero_grad()

    def capture_alone():
        for items in batches([example.length for example in examples], max_positions=positions):
            chosen = [examples[item] for item in items]
            capture(task, plan, task.collate(chosen), lambda index, pair: None, num_examples=len(chosen))

    def factors():
        with meter("", len(examples), quiet=True) as progress:
            held["factors"] = fit_factors(fit, progress)

    def bases():
        with meter("", len(plan.units), quiet=True) as progress:
            held["bases"] = solve_bases(fit, held["factors"], progress)
        held["kfac"] = fit.finish(held["bases"], None)

    def eigenvalues():
        with meter("", len(examples), quiet=True) as progress:
            fit_values(fit, held["bases"], progress, range(len(plan.units)))

    def query_blocks():
        ready = Prepared(task, plan, train, held["kfac"], EKFAC(), positions, None, Runtime(quiet=True))
        held["blocks"] = held["kfac"].solve(query_gradients(ready, Dataset(queries)), ResolvedDamping(1e-3, None, ""))

        held["low rank"] = truncate(held["blocks"], 32)

    def score(blocks="blocks", metric=None):
        with meter("", len(examples), quiet=True) as progress:
            exact_scores(
                task, plan, examples, held[blocks], max_positions=positions, progress=progress, parts=Parts(metric=metric)
            )

    def score_low_rank():
        score("low rank")

    def score_and_norms():
        score(metric=Metric.inverse(held["kfac"], ResolvedDamping(1e-3, None, ""), power=1))

    return plain, {
        "capture alone": capture_alone,
        "fit: factors": factors,
        "fit: bases": bases,
        "fit: eigenvalues": eigenvalues,
        "query gradients, preconditioned": query_blocks,
        "score": score,
        "score, queries of rank 32": score_low_rank,
        "score with self-influence": score_and_norms,
    }


def seconds(part):
    start = time.perf_counter()
    part()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = {
        "layers": 2,
        "width": 96,
        "vocabulary": 2048,
        "length": 64,
        "documents": 256,
        "queries": 64,
        "largest-side": 4096,
    }
    for name, value in {**defaults, "positions": 4096, "rounds": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    task, examples, queries = make(arguments)
    plain, parts = parts_of(task, examples, queries, arguments.positions, arguments.largest_side)
    for part in (plain, *parts.values()):
        part()
    times = {name: [] for name in ("plain", *parts)}
    ratios = {name: [] for name in parts}
    for _ in range(arguments.rounds):
        for name, part in parts.items():
            unit = seconds(plain)
            times["plain"].append(unit)
            times[name].append(seconds(part))
            ratios[name].append(times[name][-1] / unit)
    found = {name: {"seconds": statistics.median(values)} for name, values in times.items()}
    for name, values in ratios.items():
        found[name]["passes"] = statistics.median(values)
    if arguments.json:
        print(json.dumps(found))
        return
    print(f"{arguments.documents} documents of {arguments.length} tokens, {arguments.queries} queries, one thread")
    for name, row in found.items():
        print(f"{name:34} {row['seconds']:8.3f} s" + (f" {row['passes']:7.2f} x plain" if "passes" in row else ""))


if __name__ == "__main__":
    main()
