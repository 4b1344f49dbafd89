"""Who wrote what a model knows: shares of the modules of the standard library, paid out, verified, and held against retraining.

A small GPT-2 is trained on passages of Python's own documentation; each passage belongs to the module that it documents, and those of the
language reference to nobody. Held-out passages are the queries of a month. Three models give scores, shares and an interval; then the
model is trained again without each module in turn, to see whether shares say what happens.

    python examples/shares/modules.py FOLDER
"""

import json
import logging
import os
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import whence
from whence.cli import main as command_line
from whence.demo.corpus import python_docs
from whence.demo.model import DEFAULTS, Settings, new_model, train_tokenizer
from whence.demo.train import QueryLosses, Retrain, train
from whence.evaluate import Bank, BankConfig, Evaluation, Retraining, evaluate, make_bank, save_table
from whence.evaluate.ranks import spearman
from whence.score import mean_table
from whence.tasks import CausalLM

SETTINGS = replace(DEFAULTS, vocabulary=1024, width=48)
RULES = {
    "positive": {"rule": "positive"},
    "positive, no floor": {"rule": "positive", "floor": "off"},
    "positive, floor of 2 standard errors": {"rule": "positive", "floor_errors": 2.0},
    "softmax, temperature 0.5, no floor": {"rule": "softmax", "temperature": 0.5, "floor": "off"},
    "signed, no floor": {"rule": "signed", "floor": "off"},
}


@dataclass(frozen=True)
class Outcome:
    """What the example found out.

    Args:
        shares: The shares.
        seal: Of the report.
        lds: How alike predicted and measured change without each module rank, mean over queries and its interval.
        rises: By module, how much the queries' mean loss rises without it, in nats.
        agreement: By rule, the rank correlation over modules of shares and rises; also that of the number of passages.
    """

    shares: whence.shares.Shares
    seal: str
    lds: tuple[float, float, float]
    rises: dict[str, float]
    agreement: dict[str, float]


def main(folder: Path, *, modules: int = 8, seeds: int = 3, settings: Settings = SETTINGS) -> Outcome:
    """Run the example; what exists in the folder is used again, so that a stopped run goes on.

    Args:
        folder: Where everything goes.
        modules: How many modules are in the data.
        seeds: Models, and training runs without each module.
        settings: Of the model and its training.

    Raises:
        SystemExit: If a command does not end well.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    train_records, queries = month(modules)
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for name, records in (("train", train_records), ("queries", queries)):
        (folder / "data" / f"{name}.jsonl").write_text(
            "".join(json.dumps(record) + "\n" for record in records), encoding="utf-8"
        )
    tokenizer = train_tokenizer((record["text"] for record in train_records), settings)
    dataset = CausalLM(new_model(len(tokenizer), 0, settings), tokenizer, long="truncate").prepare(train_records)
    tables = []
    for seed in range(seeds):
        model = train(dataset, len(tokenizer), seed=seed, settings=settings).model
        task = CausalLM(model, tokenizer, long="truncate")
        asked = task.prepare(queries)
        tables.append(whence.attribute(task, dataset, asked, runtime=whence.Runtime(quiet=True)))
        origin = {"models": [task.weights], "data": [dataset.fingerprint], "queries": asked.fingerprint}
        save_table(tables[-1], folder / f"scores-{seed}", origin=origin)

    owners = whence.shares.named_sources(train_records, by="module")
    names = sorted({owner for owner in owners.values() if owner})
    masks = torch.tensor([[owners[name] != left_out for name in dataset.ids] for left_out in names])
    retrain, measure = Retrain(dataset, len(tokenizer), settings), QueryLosses(asked)
    bank = make_bank(
        retrain, measure, masks,
        Retraining(seeds=range(seeds), folder=folder / "bank", fingerprint=retrain.fingerprint + asked.fingerprint),
        BankConfig(train_ids=dataset.ids, query_ids=asked.ids, unit="nats"),
    )  # fmt: skip
    judged = evaluate([mean_table(tables)], bank)
    (folder / "evaluation.json").write_text(json.dumps(judged.to_dict()), encoding="utf-8")

    words = ["shares", *(str(folder / f"scores-{seed}") for seed in range(seeds)), "--several", "models"]
    words += ["--records", str(folder / "data" / "train.jsonl"), "--by", "module", "--floor-errors", "2"]
    words += ["--payout", "1000.00 EUR", "--minimum", "50.00", "--validated", str(folder / "evaluation.json")]
    report = folder / "report"
    if not (report / "record.json").exists() and command_line([*words, "-o", str(report)]):
        raise SystemExit("the report was not made")
    seal = (report / "record.sha256").read_text().split()[0]
    if command_line(["verify", str(report), "--seal", seal]):
        raise SystemExit("the report does not hold")
    made = {
        name: whence.shares.shares(
            [folder / f"scores-{seed}" for seed in range(seeds)],
            owners,
            config=whence.settings.SharesConfig(several="models", **options),
            quiet=True,
        )
        for name, options in RULES.items()
    }
    return outcome(made, seal, judged, bank, names)


def month(modules: int) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Training records with a module where they have one, and two held-out passages of every module as queries."""
    documents = python_docs(max_documents=150 + 22 * modules)
    for document in documents:
        if not document["source"].startswith("topics/"):
            document["module"] = document["source"].partition(".")[0]
    counts = Counter(document.get("module") for document in documents)
    chosen = [name for name in counts if name is not None and counts[name] >= 10][:modules]
    reference = [document for document in documents if "module" not in document][:40]
    records, queries = reference, []
    for name in chosen:
        own = [document for document in documents if document.get("module") == name]
        queries += own[4:6]
        records += own[:4] + own[6:]
    return records, queries


def outcome(found: dict[str, whence.shares.Shares], seal: str, judged: Evaluation, bank: Bank, names: list[str]) -> Outcome:
    """Hold the shares by each rule against what happened without each module."""
    assert bank.full_SQ is not None
    change_M = (bank.full_SQ.mean(0) - bank.actual_MQ).mean(1)
    candidates = {rule: {line.name: line.share for line in shares.lines} for rule, shares in found.items()}
    candidates["number of passages"] = {line.name: line.examples for line in found["positive"].lines}
    agreement = {
        rule: float(spearman(torch.tensor([by_name[name] for name in names]), change_M)) for rule, by_name in candidates.items()
    }
    lds = judged.rows[0].lds.interval
    rises = dict(zip(names, change_M.tolist(), strict=True))
    return Outcome(found["positive, floor of 2 standard errors"], seal, (lds.mean, lds.low, lds.high), rises, agreement)


if __name__ == "__main__":
    done = main(Path(sys.argv[1] if len(sys.argv) > 1 else "whence-shares"))
    print("module: share of the queries, and rise of their mean loss when trained without it, nats")
    for line in done.shares.lines:
        if line.kind == "source":
            print(f"{line.name:>14}  {line.share:7.2%}  {done.rises[line.name]:+.3f}")
    print("rank correlation of shares and rises over modules, by rule:")
    for rule, agreement in done.agreement.items():
        print(f"  {agreement:5.2f}  {rule}")
    print("predicted and measured change of each query without each module: LDS {:.2f} [{:.2f}, {:.2f}]".format(*done.lds))
