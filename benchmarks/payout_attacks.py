"""What cheap attacks on a payout gain, with the plain rule and with --robust: a table of attacker's pay over its honest pay.

    python benchmarks/payout_attacks.py FOLDER [--seeds 8]

A small GPT-2 is trained from scratch on passages of Python's own documentation. Every passage belongs to the module that it documents: eight
modules are the sources, and three held-out passages of each are the month's queries. In run s the attacker is module s of the eight and the
model has seed s. The attacker adds twelve documents, the model is trained again with them, and everything is scored again with EK-FAC. In
"stuffed queries" nothing is trained: the attacker asks twelve more questions. Nor is it in attacks that are "tenfold": there the scores and
the lengths of gradients of twelve documents are multiplied by ten, since no text that was tried has gradients of more than one and a half
times the median here. Tables are kept in the folder, and used again.

Printed: what the attacker is paid over what it is paid without the attack, and the same of the seven others together; means over seeds with
95 % t-intervals on the logarithm. "control shown" are the robust rules without the norm-only control, as they were before it was subtracted.
Then what every rule alone does, and what the rules cost where nobody attacks.
"""

import argparse
import json
import math
import random
import statistics
import sys
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from scipy import stats

import whence
from whence.demo.corpus import python_docs
from whence.demo.model import DEFAULTS, new_model, train_tokenizer
from whence.demo.train import train
from whence.evaluate import load_table, save_table
from whence.shares import named_sources
from whence.shares.robust import pools_of
from whence.tasks import CausalLM

MODULES, ADDED, QUERIES_EACH = 8, 12, 3
SETTINGS = replace(DEFAULTS, vocabulary=1024, width=48)
HONEST, STUFFED = "honest", "stuffed queries"
# Of which attack the table is, whose twelve documents are made louder.
TENFOLD, TIMES = {"random words, tenfold": "random words", "own documents, tenfold": HONEST}, 10.0
WHOLE = ("plain", "control shown", "robust")
ALONE = ("copies pooled", "control subtracted", "documents capped", "queries capped")
RULES = WHOLE + ALONE


def main(folder: Path, seeds: int) -> None:
    """Make what tables are missing, then print."""
    records, queries, names = month()
    tokenizer = train_tokenizer((record["text"] for record in records), SETTINGS)
    for seed in range(seeds):
        attacker = names[seed % len(names)]
        for attack in (HONEST, *ATTACKS):
            made = place_of(folder, attack, seed)
            if not (made / "lengths").exists():
                more = ATTACKS[attack](records, queries, attacker, random.Random(seed)) if attack in ATTACKS else []
                asked = stuffing(records, attacker, random.Random(seed)) if attack == HONEST else []
                scored(made, tokenizer, records + more, queries + asked, seed)
                print(f"made {made}", file=sys.stderr, flush=True)
    paid = {rules: [month_paid(folder, seed, names, rules) for seed in range(seeds)] for rules in RULES}
    print_attacks(paid, names)
    print_cost(paid, names)


def place_of(folder: Path, attack: str, seed: int) -> Path:
    """Where the tables of a run are; stuffed queries are in the honest run's."""
    return folder / f"{attack.replace(' ', '-')}-{seed}"


def month_paid(folder: Path, seed: int, names: list[str], rules: str) -> dict[str, dict[str, float]]:
    """By attack the share of every line."""
    paid = {}
    for attack in (HONEST, STUFFED, *ATTACKS, *TENFOLD):
        made = place_of(folder, HONEST if attack == STUFFED else TENFOLD.get(attack, attack), seed)
        table, lengths = load_table(made / "scores"), whence.shares.lengths_of(load_table(made / "lengths"))
        if attack != STUFFED:
            asked = MODULES * QUERIES_EACH
            table = replace(table, scores=table.scores[:asked], query_ids=table.query_ids[:asked])
        records = [json.loads(line) for line in (made / "train.jsonl").read_text(encoding="utf-8").splitlines()]
        if attack in TENFOLD:
            table, lengths = louder(table, lengths, records, names[seed % len(names)])
        texts = {record["id"]: record["text"] for record in records}
        facts = whence.shares.ExampleFacts.of(texts, lengths)
        has_control = rules in ("robust", "control subtracted")
        config = whence.settings.SharesConfig(robust=rules != "plain", norm_control=has_control, draws=2)
        with only(rules):
            found = whence.shares.shares(table, named_sources(records, "module"), config=config, facts=facts, quiet=True)
        paid[attack] = {line.name: line.share for line in found.lines}
    return paid


def louder(table, lengths, records, attacker: str):
    """Scores and lengths with those of the attacker's last twelve documents, the added ones if there are any, ten times as large."""
    names = {record["id"] for record in documents_of(records, attacker)[-ADDED:]}
    times = torch.tensor([TIMES if name in names else 1.0 for name in table.train_ids])
    return replace(table, scores=table.scores * times), {
        name: length * float(factor) for (name, length), factor in zip(lengths.items(), times, strict=True)
    }


@contextmanager
def only(rules: str):
    """Switch off the robust rules that are not asked for."""
    off: dict[str, Any] = {}
    if rules in ALONE:
        off = {"MOST_OF_A_QUERY": 2.0, "MOST_OF_THE_WEIGHT": 2.0, "pools_of": apart}
        own = {"copies pooled": "pools_of", "documents capped": "MOST_OF_A_QUERY", "queries capped": "MOST_OF_THE_WEIGHT"}
        off.pop(own.get(rules, ""), None)
    modules = {name: sys.modules["whence.shares.shares" if name == "pools_of" else "whence.shares.robust"] for name in off}
    kept = {name: getattr(modules[name], name) for name in off}
    for name, value in off.items():
        setattr(modules[name], name, value)
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(modules[name], name, value)


def apart(train_ids, lines, facts, **options):
    """Every document by itself."""
    return pools_of(train_ids, lines, replace(facts, repeats={}), **options)


def gain(paid: list[dict[str, dict[str, float]]], attack: str, names: list[str], *, others: bool = False) -> str:
    """Pay with the attack over pay without it, of the attacker or of all others, with its interval."""
    logs = []
    for seed, of_seed in enumerate(paid):
        attacker = names[seed % len(names)]
        who = [name for name in names if name != attacker] if others else [attacker]
        logs.append(math.log(sum(of_seed[attack][name] for name in who) / sum(of_seed[HONEST][name] for name in who)))
    half = float(stats.t.ppf(0.975, len(logs) - 1)) * statistics.stdev(logs) / math.sqrt(len(logs))
    mean = statistics.mean(logs)
    return f"{math.exp(mean):.2f} [{math.exp(mean - half):.2f}, {math.exp(mean + half):.2f}]"


def print_attacks(paid: dict[str, list], names: list[str]) -> None:
    """The table of attacks, and that of every rule alone."""
    print(f"seeds: {len(paid['plain'])}\n")
    attacks = (*ATTACKS, *TENFOLD, STUFFED)
    print(
        f"| attack | {' | '.join(f'attacker, {rules}' for rules in WHOLE)} | others, plain | others, robust |\n|---|---|---|---|---|---|"
    )
    for attack in attacks:
        cells = [gain(paid[rules], attack, names) for rules in WHOLE]
        cells += [gain(paid[rules], attack, names, others=True) for rules in ("plain", "robust")]
        print(f"| {attack} | {' | '.join(cells)} |")
    print(f"\n| attack | {' | '.join(ALONE)} |\n|---|---|---|---|---|")
    for attack in attacks:
        print(f"| {attack} | {' | '.join(gain(paid[rules], attack, names) for rules in ALONE)} |")


def print_cost(paid: dict[str, list], names: list[str]) -> None:
    """What the rules do where nobody attacks."""
    print(
        "\n| without an attack | paid to the eight | withheld | least and most of a module over its plain pay |\n|---|---|---|---|"
    )
    for rules in RULES:
        months = [of_seed[HONEST] for of_seed in paid[rules]]
        plain = [of_seed[HONEST] for of_seed in paid["plain"]]
        total = statistics.mean(sum(month[name] for name in names) for month in months)
        withheld = statistics.mean(month.get("withheld by the robust rule", 0.0) for month in months)
        moved = [
            statistics.mean(month[name] / before[name] for month, before in zip(months, plain, strict=True)) for name in names
        ]
        print(f"| {rules} | {total:.1%} | {withheld:.1%} | {min(moved):.2f} to {max(moved):.2f} |")


def month() -> tuple[list[dict[str, str]], list[dict[str, str]], list[str]]:
    """Training records with their module, held-out queries, and the modules."""
    documents = python_docs(max_documents=150 + 22 * MODULES)
    for document in documents:
        if not document["source"].startswith("topics/"):
            document["module"] = document["source"].partition(".")[0]
    counts = Counter(document.get("module") for document in documents)
    names = [name for name in counts if name is not None and counts[name] >= 12][:MODULES]
    records, queries = [document for document in documents if "module" not in document][:40], []
    for name in names:
        own = [document for document in documents if document.get("module") == name]
        queries += own[4 : 4 + QUERIES_EACH]
        records += own[:4] + own[4 + QUERIES_EACH :]
    return records, queries, names


def scored(made: Path, tokenizer, records, queries, seed: int) -> None:
    """Train on the records, and keep the queries' scores and the length of each record's gradient."""
    dataset = CausalLM(new_model(len(tokenizer), 0, SETTINGS), tokenizer, long="truncate").prepare(records)
    task = CausalLM(train(dataset, len(tokenizer), seed=seed, settings=SETTINGS).model, tokenizer, long="truncate")
    quiet = whence.Runtime(quiet=True)
    save_table(whence.attribute(task, dataset, task.prepare(queries), runtime=quiet), made / "scores")
    (made / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    save_table(whence.self_influence(task, dataset, runtime=quiet), made / "lengths")


def documents_of(records, attacker: str):
    """What the attacker owns."""
    return [record for record in records if record.get("module") == attacker]


def added(texts, attacker: str):
    """Documents that the attacker adds."""
    return [{"id": f"added-{number}", "text": text, "module": attacker} for number, text in enumerate(texts)]


def words_of(records, chance: random.Random) -> list[str]:
    """All words of the corpus, in a random order."""
    words = sorted({word for record in records for word in record["text"].split()})
    chance.shuffle(words)
    return words


def edited(text: str, words: list[str], every: int, chance: random.Random) -> str:
    """A text of which one word in so many, at random, is another."""
    return " ".join(chance.choice(words) if chance.random() < 1 / every else word for word in text.split())


def copies(records, queries, attacker, chance):
    """Three of its own documents, four more times each."""
    own = documents_of(records, attacker)[:3]
    return added([record["text"] for record in own for _ in range(ADDED // 3)], attacker)


def edited_copies(records, queries, attacker, chance, every=8):
    """The same, one word in eight replaced."""
    own, words = documents_of(records, attacker)[:3], words_of(records, chance)
    return added([edited(record["text"], words, every, chance) for record in own for _ in range(ADDED // 3)], attacker)


def rewritten_copies(records, queries, attacker, chance):
    """The same, one word in two replaced."""
    return edited_copies(records, queries, attacker, chance, every=2)


def others_documents(records, queries, attacker, chance):
    """Documents of other modules."""
    others = [record for record in records if record.get("module") not in (attacker, None)]
    return added([record["text"] for record in chance.sample(others, ADDED)], attacker)


def random_words(records, queries, attacker, chance):
    """Words in no order, as many as the model reads, of which the gradient is long."""
    words = words_of(records, chance)
    return added([" ".join(chance.choices(words, k=SETTINGS.context)) for _ in range(ADDED)], attacker)


def guessed_queries(records, queries, attacker, chance):
    """Half of the month's queries of other modules, word for word."""
    others = [query for query in queries if query["module"] != attacker]
    return added([query["text"] for query in chance.sample(others, ADDED)], attacker)


def stuffing(records, attacker, chance):
    """The text of one of its documents as a question, twelve times, one word in eight replaced."""
    own, words = documents_of(records, attacker)[0], words_of(records, chance)
    return [{"id": f"stuffed-{number}", "text": edited(own["text"], words, 8, chance)} for number in range(ADDED)]


ATTACKS = {
    "copies": copies,
    "edited copies": edited_copies,
    "rewritten copies": rewritten_copies,
    "others' documents": others_documents,
    "random words": random_words,
    "guessed queries": guessed_queries,
}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=8)
    arguments = parser.parse_args()
    main(arguments.folder, arguments.seeds)
