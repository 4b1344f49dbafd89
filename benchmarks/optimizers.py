"""Methods that go through a run, by optimizer: held against leaving examples out.

    OMP_NUM_THREADS=1 python benchmarks/optimizers.py

Examples are left out in turn, a sixth of them or a third, and the model trained again with the same batches and the package's own
optimizer; a figure is the mean over queries of the Spearman correlation over these examples. Softmax regression and a tanh network on
60 points, in batches of 10; a GPT-2 of one layer on 24 sequences of 12 tokens that follow from the first four, in batches of 12, with
the mean over tokens. Some minutes of one core.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from scipy.stats import spearmanr
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.test_source import data, network

import whence
from whence.errors import Unsupported


def optimizers():
    """By name, what makes the optimizers of a run; those of other packages where they are installed."""
    made = {
        "SGD, momentum": lambda model: [torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)],
        "AdamW": lambda model: [torch.optim.AdamW(model.parameters(), lr=0.01, eps=1e-4)],
        "Muon, AdamW": lambda model: [
            torch.optim.Muon(_hidden(model), lr=0.01),
            torch.optim.AdamW(
                [p for p in model.parameters() if all(p is not one for one in _hidden(model))], lr=0.01, eps=1e-4
            ),
        ],
    }
    try:
        import pytorch_optimizer as others
        import schedulefree
    except ImportError:
        return made
    return made | {
        "Schedule-Free SGD": lambda model: [schedulefree.SGDScheduleFree(model.parameters(), lr=0.3)],
        "Schedule-Free AdamW": lambda model: [schedulefree.AdamWScheduleFree(model.parameters(), lr=0.02, eps=1e-4)],
        "Shampoo": lambda model: [others.Shampoo(model.parameters(), lr=0.05, matrix_eps=0.01)],
        "SOAP": lambda model: [others.SOAP(model.parameters(), lr=0.01, eps=1e-4)],
        "LAMB": lambda model: [others.Lamb(model.parameters(), lr=0.01, eps=1e-3)],
    }


def _hidden(model):
    """Matrices that are no embedding."""
    return [p for name, p in model.named_parameters() if p.ndim == 2 and "wte" not in name and "wpe" not in name]


def points(kind):
    """A model, how its task is made, its data as tensors, and the records of data and queries."""

    def rows(inputs, labels, letter):
        pairs = zip(inputs, labels.tolist(), strict=True)
        return [{"id": f"{letter}{n}", "inputs": x, "label": y} for n, (x, y) in enumerate(pairs)]

    (inputs, labels), asked = data(), data(5, 8)

    def losses(model, batch):
        return nn.functional.cross_entropy(model(inputs[batch]), labels[batch], reduction="none")

    return network(kind), whence.Classification, losses, rows(inputs, labels, "t"), rows(*asked, "q")


def sequences():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=12, n_positions=12, n_embd=16, n_layer=1, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
        bos_token_id=None, eos_token_id=None, attn_implementation="eager",
    )  # fmt: skip
    model = GPT2LMHeadModel(config).double().eval()
    generator = torch.Generator().manual_seed(3)
    start = torch.randint(12, (32, 4), generator=generator)
    tokens = torch.cat([start, (start + 1) % 12, (start.flip(1) + start) % 12], 1)

    def losses(model, batch):
        outputs = model(tokens[batch]).logits[:, :-1].transpose(1, 2)
        return nn.functional.cross_entropy(outputs, tokens[batch, 1:], reduction="none").sum(1)

    def rows(places, letter):
        return [{"id": f"{letter}{n}", "input_ids": tokens[n].tolist(), "labels": tokens[n].tolist()} for n in places]

    return model, lambda model: whence.CausalLM(model, tokenizer=None), losses, rows(range(24), "t"), rows(range(24, 32), "q")


SETTINGS = {"softmax": lambda: points("softmax"), "tanh network": lambda: points("mlp"), "GPT-2": sequences}


def trained(setting, make, epochs, folder=None, left_out=None):
    """The model after a run, and the rest of the setting."""
    model, *rest = SETTINGS[setting]()
    losses, records = rest[1], rest[2]
    made = make(model)
    weights = torch.ones(len(records), dtype=torch.float64)
    if left_out is not None:
        weights[left_out] = 0
    generator = torch.Generator().manual_seed(1)
    recorder = None if folder is None else whence.Recorder(folder, model, made, every=max(1, epochs * len(records) // 60))
    if recorder is not None:
        recorder.__enter__()
    for one in made:
        if hasattr(one, "train"):
            one.train()
    size, tokens = (12, 11) if setting == "GPT-2" else (10, 1)
    for _ in range(epochs):
        for batch in torch.randperm(len(records), generator=generator).split(size):
            if recorder is not None:
                recorder.batch([f"t{place}" for place in batch.tolist()], divided_by=size * tokens)
            for one in made:
                one.zero_grad()
            ((losses(model, batch) * weights[batch]).sum() / (size * tokens)).backward()
            for one in made:
                one.step()
    if recorder is not None:
        recorder.__exit__(None, None, None)
    for one in made:
        if hasattr(one, "eval"):
            one.eval()
    return model, rest


def measured(task, queries):
    with torch.no_grad():
        return task.measurement(task.model, task.collate(queries.examples)).double()


def correlations(setting, make, epochs):
    with tempfile.TemporaryDirectory() as folder:
        model, (task_of, _, records, asked) = trained(setting, make, epochs, folder)
        task = task_of(model)
        train_set, queries = task.prepare(records), task.prepare(asked)
        places = list(range(0, len(records), 3 if setting == "GPT-2" else 6))
        base = measured(task, queries)
        gone = torch.stack(
            [measured(task_of(trained(setting, make, epochs, left_out=place)[0]), queries) for place in places], 1
        )
        effects = base[:, None] - gone
        found = []
        for method in ("ekfac", "source", "unroll"):
            options = {} if method == "ekfac" else {"run": folder}
            try:
                scores = whence.attribute(
                    task,
                    train_set,
                    queries,
                    method=whence.settings.exact_settings(method, options),
                    runtime=whence.Runtime(quiet=True),
                ).scores[:, places]
            except Unsupported:
                found.append("refused")
                continue
            pairs = zip(scores, effects, strict=True)
            found.append(f"{sum(float(spearmanr(a, b).statistic) for a, b in pairs) / len(queries):.2f}")
        return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--settings", nargs="*", default=list(SETTINGS))
    arguments = parser.parse_args()
    print("| model | optimizer | `ekfac` at the end | `source` | `unroll` |\n|---|---|---|---|---|")
    for setting in arguments.settings:
        for name, make in optimizers().items():
            print(f"| {setting} | {name} | {' | '.join(correlations(setting, make, arguments.epochs))} |", flush=True)


if __name__ == "__main__":
    main()
