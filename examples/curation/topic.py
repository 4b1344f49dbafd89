"""One topic: which half of Python's documentation teaches a small language model most about the network?

    python examples/curation/topic.py -o FOLDER [--seeds 5]

1,000 passages, one in sixteen from the modules of the internet; 60 more of these as validation set, and 60 others as test. Half of the
tokens are kept: by influence on the validation set, by words shared with it (BM25), by loss from either end, and at random. Prints the test
loss after training on each. Running it again only does what is missing.
"""

import argparse
import json
import logging
import os
from dataclasses import replace
from pathlib import Path

import whence
from whence.bench.data import documents
from whence.bench.settings import TEXT
from whence.data import Dataset
from whence.demo.model import new_model, train_tokenizer
from whence.demo.train import QueryLosses, Retrain, train
from whence.evaluate import Retraining
from whence.score import bm25

TOPIC = {"email", "http", "urllib", "smtplib", "imaplib", "ftplib", "socket", "ssl", "ipaddress", "webbrowser", "mimetypes"}
TRAIN, HELD = 1000, 60
# One model with this seed gives the values; the proof trains with others.
VALUED = 1000


def main(folder: Path, seeds: int, workers: int) -> dict:
    """Select, train again, print; returns what was found."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    records = documents()
    of_topic = [record for record in records if record["source"].split(".")[0] in TOPIC]
    held, names = of_topic[: 2 * HELD], {record["id"] for record in of_topic[: 2 * HELD]}
    records = [record for record in records if record["id"] not in names][:TRAIN]
    tokenizer = train_tokenizer((record["text"] for record in records), TEXT)
    plain = whence.CausalLM(new_model(len(tokenizer), 0, TEXT), tokenizer, long="truncate")
    data = plain.prepare(records)
    validation, test = plain.prepare(held[::2]), plain.prepare(held[1::2])
    trained = train(data, len(tokenizer), seed=VALUED, settings=TEXT, quiet=False)
    task = whence.CausalLM(trained.model, tokenizer, long="truncate", recipe=trained.recipe)

    tokens = [example.length for example in data.examples]
    budget = whence.settings.SelectConfig(keep=f"{sum(tokens) // 2} tokens", per_token=True)
    losses = whence.select.value_table(task, data, "loss")
    influence = whence.select.value_table(task, data, validation=validation)
    chosen = whence.select.select(influence, config=budget, tokens=tokens)
    rivals = {
        "shared words": whence.select.select(bm25(data, validation), config=budget, tokens=tokens),
        "low loss": whence.select.select(losses, config=budget, tokens=tokens),
        "high loss": whence.select.select(losses, config=replace(budget, prefer="high"), tokens=tokens),
    }
    chosen.save(folder / "influence")
    retrain, measure = Retrain(data, len(tokenizer), TEXT), PerToken(test)
    proof = whence.select.prove(
        chosen, retrain, measure,
        Retraining(
            seeds=range(seeds), folder=folder / "runs", fingerprint=retrain.fingerprint + test.fingerprint, workers=workers
        ),
        rivals=rivals,
    )  # fmt: skip
    is_topic = [record["source"].split(".")[0] in TOPIC for record in records]
    print(f"{sum(is_topic)} of {len(records)} passages are of the topic")
    print(f"{'kept by':<14}{'of the topic':>13}  {'test loss, nats per token':<26}{'minus random':<30}{'minus all data'}")
    found = {}
    for name, condition in proof.result.conditions.items():
        one = {"influence": chosen, **rivals}.get(name)
        share = (
            ""
            if one is None
            else f"{sum(kept and on for kept, on in zip(one.keep.tolist(), is_topic, strict=True))} of {int(one.keep.sum())}"
        )
        loss = float((proof.result.baseline_SQ + condition.rises_SQ).mean())
        over = "" if name == "random" else str(proof.over_random(name))
        print(f"{name:<14}{share:>13}  {loss:<26.3f}{over:<30}{proof.over_all(name)}")
        found[name] = {"loss": loss, "kept_of_topic": share, "against_all": proof.over_all(name).to_dict()}
    print(f"{'all data':<14}{'':>13}  {float(proof.result.baseline_SQ.mean()):.3f}")
    (folder / "topic.json").write_text(json.dumps({**found, "proof": proof.to_dict()}, indent=1))
    return found


class PerToken:
    """What is measured: loss per token of each test passage, so that long ones count no more than short ones."""

    def __init__(self, test: Dataset):
        self.losses = QueryLosses(test)
        self.scored = [int((example.fields["labels"][1:] != -100).sum()) for example in test.examples]

    def __call__(self, model):
        """Nats per token, shape (Q,)."""
        losses_Q = self.losses(model)
        return losses_Q / losses_Q.new_tensor(self.scored)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("curation-topic"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    main(given.output, given.seeds, given.workers)
