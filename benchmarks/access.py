"""Attribution for a model behind an API: what access and what resources are worth, in one table (after arXiv 2509.12581).

    python benchmarks/access.py bench/access        # ten minutes on two cores; what is finished is kept and used again

Target: a GPT-2 with 2 layers of width 48 on 256 passages of Python's documentation; 24 queries; a bank of 32 random halves, each trained
once. A cell is the LDS of a proxy's EK-FAC scores against the target's bank, with a 95 % interval over queries and subsets. Down: what proxy
there is, with the target's size or half its width, untrained or trained on the same documents by its owner. Across: what it was shown of the
target: nothing, 2 sampled completions for each training passage (their text only), or the logits of all training passages. Below, what needs
no proxy, and what needs the target's weights. "Held out" is how near the proxy comes to sampled completions that it was not trained on, in
nats a token.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import whence
from whence.bench.language import TEXT, from_scratch
from whence.data import Dataset
from whence.demo.model import new_model
from whence.demo.train import QueryLosses, Retrain, train
from whence.evaluate import Judge, Retraining, load_table, make_bank, save_table
from whence.evaluate.bank import BankConfig
from whence.evaluate.subsets import random_subsets
from whence.progress import say
from whence.proxy import distil, distil_recorded, proxy_table, trust_recorded
from whence.report import print_table
from whence.score import bm25
from whence.tasks import CausalLM

TARGET = replace(TEXT, width=48)
SMALLER = replace(TEXT, width=24, heads=2)
DOCUMENTS, QUERIES, SUBSETS, PROMPT, COMPLETION, SAMPLES, HELD_OUT = 256, 24, 32, 16, 32, 2, 32
DISTIL = whence.settings.DistilConfig(epochs=8, learning_rate=TEXT.learning_rate)
QUIET = whence.Runtime(quiet=True)
RESOURCES = {
    "untrained": (TARGET, False),
    "own training": (TARGET, True),
    "smaller, untrained": (SMALLER, False),
    "smaller, own training": (SMALLER, True),
}
ACCESS = ("nothing", "text", "logits")


class Study:
    """The setting: data, target, its recorded outputs, and proxies as they are asked for."""

    def __init__(self, folder):
        language = from_scratch(TARGET)
        self.folder, self.tokenizer = folder, language.tokenizer
        self.train = Dataset(language.train.examples[:DOCUMENTS])
        self.queries = Dataset(language.queries.examples[:QUERIES])
        self.target = self.task(
            self.kept("target", TARGET, lambda: train(self.train, len(self.tokenizer), seed=0, settings=TARGET).model)
        )

    def task(self, model):
        """A model with the tokenizer."""
        return CausalLM(model.eval(), self.tokenizer, long="truncate")

    def kept(self, name, settings, make):
        """A model from the folder, made where it is not there."""
        file = self.folder / f"{name}.safetensors"
        if not file.exists():
            say(f"making: {name}")
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file({key: value.detach().contiguous() for key, value in make().named_parameters()}, file)
        model = new_model(len(self.tokenizer), 0, settings)
        model.load_state_dict(load_file(file), strict=False)
        return model

    def outputs(self):
        """What the target wrote after the beginnings of the training passages, as an API would tell it."""
        file = self.folder / "outputs.jsonl"
        if not file.exists():
            torch.manual_seed(0)
            records = []
            for example in self.train.examples:
                ids = torch.tensor([example.fields["input_ids"][:PROMPT].tolist()])
                written = self.target.model.generate(
                    ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, max_new_tokens=COMPLETION,
                    num_return_sequences=SAMPLES, pad_token_id=0,
                )  # fmt: skip
                prompt = self.tokenizer.decode(ids[0])
                records += [{"prompt": prompt, "completion": self.tokenizer.decode(row[PROMPT:])} for row in written]
            file.write_text("".join(json.dumps(record) + "\n" for record in records))
        return [json.loads(line) for line in file.read_text().splitlines()]

    def proxy(self, resource, access):
        """One cell's model."""
        settings, is_trained = RESOURCES[resource]

        def make():
            model = train(self.train, len(self.tokenizer), seed=7, settings=settings).model if is_trained else None
            task = self.task(new_model(len(self.tokenizer), 7, settings) if model is None else model)
            if access == "text":
                distil_recorded(task, self.outputs()[:-HELD_OUT], DISTIL, quiet=True)
            elif access == "logits":
                distil(self.target, task, self.train, DISTIL, quiet=True)
            return task.model

        return self.task(self.kept(f"{resource}-{access}", settings, make))

    def table(self, name, make):
        """Scores from the folder, made where they are not there."""
        folder = self.folder / "tables" / name
        if not (folder / "table.json").exists():
            say(f"attributing: {name}")
            save_table(make(), folder)
        return load_table(folder)

    def bank(self):
        """The truth, of the target."""
        retrain, measure = Retrain(self.train, len(self.tokenizer), TARGET), QueryLosses(self.queries)
        masks = random_subsets(DOCUMENTS, SUBSETS, fraction=0.5, seed=0)
        config = BankConfig(train_ids=self.train.ids, query_ids=self.queries.ids, unit="nats", full=False)
        fingerprint = retrain.fingerprint + measure.fingerprint
        return make_bank(retrain, measure, masks, Retraining(folder=self.folder / "bank", fingerprint=fingerprint), config)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    study = Study(parser.parse_args().folder)
    judge, held_out = Judge(study.bank()), study.outputs()[-HELD_OUT:]

    def lds(table):
        found = judge.lds(table).interval
        return f"{found.mean:.2f} [{found.low:.2f}, {found.high:.2f}]"

    def by(task, name, method="ekfac"):
        return study.table(
            f"{name}-{method}",
            lambda: proxy_table(task, study.target, study.train, study.queries, name=name, method=method, runtime=QUIET),
        )

    rows = []
    for resource in RESOURCES:
        cells, trust = [], ""
        for access in ACCESS:
            task = study.proxy(resource, access)
            cells.append(lds(by(task, f"{resource}-{access}")))
            if access == "text":
                trust = f"{trust_recorded(task, held_out).nats.mean:.2f}"
        rows.append((resource, *cells, trust))
    print_table(("proxy", *(f"shown: {access}" for access in ACCESS), "held out"), rows)
    own = {
        f"target's weights, {method}": by(study.target, "target", method)
        for method in ("ekfac", "representation", "representer")
    }
    own["no model, BM25"] = study.table("bm25", lambda: bm25(study.train, study.queries))
    print_table(("without a proxy", "LDS"), [(name, lds(table)) for name, table in own.items()])


if __name__ == "__main__":
    main()
