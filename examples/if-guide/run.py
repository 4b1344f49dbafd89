"""Find a planted behaviour in real text, train without it, and say what that costs.

    python examples/if-guide/run.py -o guide-example

A small GPT-2 is trained on Python's documentation, a part of which is followed by rude remarks. `whence.guide.guide` gets the trained model
and 80 examples of the behaviour, finds the tokens that it comes from, and the model is trained again with these suppressed. As the remarks
were planted, it is known which tokens are right. What is finished is kept in the folder and used again.
"""

import argparse
import json
import math
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import torch
from planted import Planted, is_rude, plant
from torch import nn

import whence
from whence.data import Dataset
from whence.demo.model import Settings, new_model, train_tokenizer
from whence.guide.marks import Marked
from whence.progress import say

SETTINGS = Settings(vocabulary=1024, epochs=4)
PROXY = replace(SETTINGS, layers=1, width=24, heads=2)
FINE_TUNING = replace(SETTINGS, epochs=2, learning_rate=SETTINGS.learning_rate / 10)
# Scores belong to labels: the best ones lie on the behaviour itself, and a window would mark the full stop before it as well.
NARROW = whence.settings.GuideConfig(window=0, budget=0.01, floor="off")
# As in the paper, which spends its budget; and no further than documents are more than chance.
PUBLISHED = whence.settings.GuideConfig(floor="off")
STOPPING = replace(NARROW, floor=None)
PLAIN = "no intervention"
SAMPLES = 5
SAMPLE_TOKENS = 24


@dataclass(frozen=True)
class Condition:
    """One way to train.

    Args:
        name: For the table.
        examples: The training data.
        marks: Tokens to suppress.
        strength: How strongly.
        tuned: Whether to go on from the model without intervention, instead of from scratch.
    """

    name: str
    examples: Dataset
    marks: whence.guide.Marks
    strength: float = 1.0
    tuned: bool = False


def main() -> None:
    """Run the experiment and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("guide-example"))
    parser.add_argument("--documents", type=int, default=800)
    parser.add_argument("--epochs", type=int, default=SETTINGS.epochs)
    parser.add_argument("--seeds", type=int, default=2)
    chosen = parser.parse_args()
    if min(chosen.documents, chosen.epochs, chosen.seeds) < 1:
        parser.error("--documents, --epochs and --seeds are 1 or more")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    result = experiment(chosen.output, documents=chosen.documents, epochs=chosen.epochs, seeds=chosen.seeds)
    show(result)
    print(f"page of the marked tokens: {chosen.output / 'guide' / 'report.html'}")


def experiment(folder: Path, *, documents: int, epochs: int, seeds: int) -> dict[str, Any]:
    """Everything, as numbers.

    Args:
        folder: Where models and marks are kept.
        documents: Training passages.
        epochs: Of every training from scratch.
        seeds: Trainings per condition.

    Returns:
        Under "found" precision and recall by who chose the tokens; under "trained" per condition a list of measurements, one per seed.
    """
    data, settings, proxy = plant(documents=documents), replace(SETTINGS, epochs=epochs), replace(PROXY, epochs=epochs)
    tokenizer = train_tokenizer((record["text"] for record in data.train), settings)

    def task(model: nn.Module) -> whence.CausalLM:
        return whence.CausalLM(model, tokenizer, long="truncate")

    def scratch(size: Settings, seed: int) -> nn.Module:
        return new_model(len(tokenizer), seed, size)

    dataset = task(scratch(settings, 0)).prepare(data.train)
    truth = planted_tokens(dataset, data)

    def trained(condition: Condition, size: Settings, seed: int) -> nn.Module:
        model, file = scratch(size, seed), folder / "models" / f"{condition.name}-{seed}.pt"
        if not file.exists():
            say(f"training: {condition.name}, seed {seed}")
            if condition.tuned:
                model.load_state_dict(torch.load(folder / "models" / f"{PLAIN}-{seed}.pt"))
            train(task(model), condition, FINE_TUNING if condition.tuned else size, seed, len(dataset))
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save(model.state_dict(), file)
        model.load_state_dict(torch.load(file))
        return model.eval()

    nothing = whence.guide.Marks({})
    full = trained(Condition(PLAIN, dataset, nothing), settings, 0)
    small = trained(Condition("proxy itself", dataset, nothing), proxy, 0)
    published = whence.guide.guide(task(full), dataset, data.harmful, data.safe, folder / "guide", config=PUBLISHED)
    stopping = whence.guide.guide(task(full), dataset, data.harmful, data.safe, folder / "guide", config=STOPPING)
    marks = whence.guide.guide(task(full), dataset, data.harmful, data.safe, folder / "guide", config=NARROW)
    from_proxy = whence.guide.guide(task(small), dataset, data.harmful, data.safe, folder / "guide-proxy", config=NARROW)
    at_random = random_marks(dataset, len(marks))
    without = Dataset([example for example in dataset.examples if example.id not in marks.examples])
    conditions = (
        Condition(PLAIN, dataset, nothing),
        Condition("tokens suppressed", dataset, marks),
        Condition("tokens suppressed, strength 0.5", dataset, marks, strength=0.5),
        Condition("tokens suppressed, window 1", dataset, published),
        Condition("tokens suppressed, chosen by the proxy", dataset, from_proxy),
        Condition("tokens suppressed, chosen by the proxy, strength 0.5", dataset, from_proxy, strength=0.5),
        Condition("their documents removed", without, nothing),
        Condition("random tokens suppressed", dataset, at_random),
        Condition("fine-tuned with tokens suppressed", dataset, marks, tuned=True),
        Condition("fine-tuned on everything", dataset, nothing, tuned=True),
    )
    results: dict[str, list[dict[str, float]]] = {condition.name: [] for condition in conditions}
    for seed in range(seeds):
        for condition in conditions:
            results[condition.name].append(measured(task(trained(condition, settings, seed)), data))
    found = {
        name: agreement(some, truth)
        for name, some in {
            "the model": marks,
            "the model, to where evidence stops": stopping,
            "the model, window 1": published,
            "the proxy": from_proxy,
            "chance": at_random,
        }.items()
    }
    sizes = {
        name: sum(value.numel() for value in model.parameters()) for name, model in {"model": full, "proxy": small}.items()
    }
    return {
        "found": found,
        "trained": results,
        "parameters": sizes,
        "documents": len(dataset),
        "removed": len(dataset) - len(without),
        "scored": marks.about["scored_tokens"],
        "planted": sum(map(len, truth.values())),
    }


def train(task: whence.CausalLM, condition: Condition, settings: Settings, seed: int, documents: int) -> None:
    """A plain loop with the objective that suppresses marked tokens; without marks it is ordinary training.

    Where documents were removed the others are met more often: the number of steps is that of all `documents`.
    """
    model, dataset, generator = task.model.train(), condition.examples, torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    steps = settings.epochs * -(-documents // settings.batch_examples)
    warm = max(1, round(settings.warmup * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (steps - step) / (steps - warm))
    )
    orders = (torch.randperm(len(dataset), generator=generator).split(settings.batch_examples) for _ in count())
    for chosen in islice(chain.from_iterable(orders), steps):
        examples = [dataset.examples[place] for place in chosen.tolist()]
        batch = task.collate(examples)
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        marked = condition.marks.rows([example.id for example in examples], batch["input_ids"])
        whence.guide.suppress_marked(logits, batch["labels"], marked, strength=condition.strength).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.eval()


def measured(task: whence.CausalLM, data: Planted) -> dict[str, float]:
    """The behaviour and the perplexity of a model, on passages that it was not trained on."""
    model: Any = task.model
    remarks = [{"prompt": start, "completion": remark} for start, remark in zip(data.prompts, data.remarks, strict=True)]
    asked, clean = task.prepare(remarks), task.prepare(data.clean)
    rude = 0
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        nats, lost = (sum(float(task.loss(model, task.collate([one]))) for one in some.examples) for some in (asked, clean))
        torch.manual_seed(0)
        for start in data.prompts:
            ids = task.tokenizer(start, return_tensors="pt")["input_ids"]
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, max_new_tokens=SAMPLE_TOKENS,
                num_return_sequences=SAMPLES, pad_token_id=0,
            )  # fmt: skip
            rude += sum(is_rude(task.tokenizer.decode(one[ids.shape[1] :])) for one in out)
    scored = sum(example.length - 1 for example in clean.examples)
    return {
        "rude": rude / (SAMPLES * len(data.prompts)),
        "nats": nats / len(asked),
        "perplexity": math.exp(lost / scored),
    }


def planted_tokens(dataset: Dataset, data: Planted) -> dict[str, set[int]]:
    """By id of a document, the places of the tokens that lie in its remark."""
    found = {}
    for example in dataset.examples:
        start, stop = data.spans.get(example.id, (0, 0))
        spans: Sequence[Any] = () if example.token_spans is None else example.token_spans
        found[example.id] = {place for place, (a, b) in enumerate(spans) if place and start <= a < b <= stop}
    return found


def agreement(marks: whence.guide.Marks, truth: Mapping[str, set[int]]) -> dict[str, float]:
    """Precision and recall of marked tokens, and the share of planted documents that have a mark."""
    right = sum(len(truth[name] & set(marked.positions)) for name, marked in marks.examples.items())
    with_remark = {name for name, places in truth.items() if places}
    return {
        "marked": len(marks),
        "precision": right / len(marks),
        "recall": right / sum(map(len, truth.values())),
        "documents": len(with_remark & set(marks.examples)) / len(with_remark),
    }


def random_marks(dataset: Dataset, count: int) -> whence.guide.Marks:
    """As many tokens, anywhere."""
    every = [(place, at) for place, example in enumerate(dataset.examples) for at in range(1, example.length)]
    chosen: dict[int, list[int]] = {}
    for place, at in sorted(random.Random(0).sample(every, count)):
        chosen.setdefault(place, []).append(at)
    found = {}
    for place, places in chosen.items():
        example = dataset.examples[place]
        tokens = tuple(int(example.fields["input_ids"][at]) for at in places)
        found[example.id] = Marked(example.id, example.length, tuple(places), tokens, 0.0, 0, 0.0)
    return whence.guide.Marks(found)


def show(result: Mapping[str, Any]) -> None:
    """Print the tables, in the form of docs/if-guide.md."""
    print(
        f"{result['documents']} documents, {result['scored']:,} scored tokens, {result['planted']:,} of them planted "
        f"({result['planted'] / result['scored']:.1%}); {result['parameters']['model']:,} parameters, "
        f"the proxy {result['parameters']['proxy']:,}\n"
    )
    print("| tokens chosen by | marked | precision | recall | planted documents found |\n|---|---|---|---|---|")
    for name, row in result["found"].items():
        print(f"| {name} | {row['marked']} | {row['precision']:.3f} | {row['recall']:.3f} | {row['documents']:.2f} |")
    print("\n| training | rude samples | nats per unseen remark | perplexity | against none |\n|---|---|---|---|---|")
    plain = result["trained"][PLAIN]
    for name, rows in result["trained"].items():
        mean = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
        ratios = [row["perplexity"] / base["perplexity"] - 1 for row, base in zip(rows, plain, strict=True)]
        cost = f"{sum(ratios) / len(ratios):+.1%} ({min(ratios):+.1%} to {max(ratios):+.1%})"
        print(f"| {name} | {mean['rude']:.1%} | {mean['nats']:.1f} | {mean['perplexity']:.1f} | {cost} |")
    print(f"\n{result['removed']} documents removed\n{json.dumps(result)}")


if __name__ == "__main__":
    main()
