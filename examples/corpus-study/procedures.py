"""Facts and procedures: the sets of Ruis et al. (2024) on a corpus that is made here, minutes on two cores.

    python examples/corpus-study/procedures.py procedures

The corpus has made-up facts about made-up people, each told in three ways among documents that name the same person or thing; and two
procedures worked through with random numbers: sums of two-digit numbers with a carry, and slopes of lines. Queries are facts of the
corpus in another wording, and sums and slopes with numbers that no document has, worked through step by step. Each has its answer, and
procedures have their steps, to be looked for in the top documents. Trains two small GPT-2s (two seeds) and holds them side by side.
"""

import argparse
import dataclasses
import os
import random
from pathlib import Path

import whence
from whence.demo.model import DEFAULTS
from whence.demo.trained import trained_on
from whence.evaluate import synthetic_facts
from whence.report import print_table
from whence.study.copied import COPIED_HEADER
from whence.study.recall import RECALL_HEADER
from whence.study.side_by_side import SIDE_HEADER

QUERIES = 12


def added(first, second):
    """A sum with a carry, worked through: prompt, steps, answer."""
    ones, tens = first % 10 + second % 10, first // 10 + second // 10
    steps = [f"{first % 10} and {second % 10} give {ones}", "carry 1", f"{tens} and 1 give {tens + 1}"]
    return f"Add {first} and {second}.", steps, str(first + second)


def sloped(x, y, run, slope):
    """The slope of a line through two points."""
    rise = run * slope
    prompt = f"A line goes through ({x}, {y}) and ({x + run}, {y + rise})."
    return prompt, [f"rises by {rise}", f"over a run of {run}"], f"slope is {slope}"


def written(kind, number, worked):
    """A document or query of a procedure."""
    prompt, steps, answer = worked
    if kind == "sums":
        end = f" First {steps[0]}, so we {steps[1]}. Then {steps[2]}. The sum is {answer}."
    else:
        end = f" It {steps[0]} {steps[1]}, so its {answer}."
    return {"id": f"{kind}-{number}", "source": kind, "prompt": prompt, "completion": end, "answer": answer, "steps": steps}


def material(people, worked, seed=0):
    """The corpus and the sets of queries."""
    draw = random.Random(seed)
    sums = [(a, b) for a in range(11, 80) for b in range(11, 99 - a) if a % 10 + b % 10 > 9 and a % 10 and b % 10]
    slopes = [(x, y, run, slope) for x in range(9) for y in range(9) for run in range(2, 7) for slope in range(2, 6)]
    facts = synthetic_facts(people, seed=seed)
    documents, sets = list(facts.train), {}
    asked = draw.sample(facts.queries, QUERIES)
    sets["facts"] = [{**one, "answer": one["completion"].strip(" .")} for one in asked]
    for kind, make, drawn in (
        ("sums", added, draw.sample(sums, worked + QUERIES)),
        ("slopes", sloped, draw.sample(slopes, worked + QUERIES)),
    ):
        records = [written(kind, number, make(*numbers)) for number, numbers in enumerate(drawn)]
        documents += [{"id": one["id"], "source": kind, "text": one["prompt"] + one["completion"]} for one in records[QUERIES:]]
        sets[kind] = records[:QUERIES]
    draw.shuffle(documents)
    return documents, sets


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--people", type=int, default=40)
    parser.add_argument("--worked", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=DEFAULTS.epochs)
    arguments = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    documents, sets = material(arguments.people, arguments.worked)
    print(f"{len(documents):,} documents")
    studies = []
    for seed in (0, 1):
        folder = arguments.folder / f"seed-{seed}"
        task = trained_on(
            documents, folder / "model", seed=seed, settings=dataclasses.replace(DEFAULTS, epochs=arguments.epochs)
        )
        other = arguments.folder / "seed-0" / "study" if seed else None
        config = whence.settings.StudyConfig(k=10, verbatim=True, side_by_side=other)
        studies.append(whence.study.study(task, documents, sets, folder / "study", config=config))
    found = studies[1]
    print_table(found.header, found.cells(), keys=2)
    rows = [
        (name, block.first, f"{block.mean.mean:.3f}", f"{pearson.mean.mean:.3f}")
        for name, reading in found.readings.items()
        for block, pearson in zip(reading.correlation.blocks, reading.pearson.blocks, strict=True)
        if block.first == block.second
    ]
    print_table(("reading", "set", "Spearman within", "Pearson within"), rows, keys=2)
    print_table(RECALL_HEADER, [one.cells() for one in found.recall], keys=3)
    print_table(COPIED_HEADER, found.copied())
    print_table(SIDE_HEADER, [one.cells() for one in found.sides], keys=2)


if __name__ == "__main__":
    main()
