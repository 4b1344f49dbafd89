"""Proxies on the bench's text: how well other models attribute for the target, by the target's own bank and by agreement with it.

    python benchmarks/proxies.py bench/text        # the bench's setting; what it lacks is made: the bank takes an hour

The target is GPT-2 with 2 layers of width 96 (the setting's first model). Every proxy attributes the same 1,024 documents for the same 64
queries with EK-FAC. LDS is against the bank of models retrained like the target, 95 % interval over queries and subsets; "behind" is paired
with the target's own table. Spearman and top 10 are agreement with the target's own table, t-interval over queries; "probe" is the same
Spearman as `whence.proxy.proxy_agreement` would find it on 256 documents and 16 queries. Models and tables are kept: a
second run takes seconds.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file, save_file

import whence
from whence.bench import load_setting
from whence.bench.data import documents
from whence.bench.settings import TEXT
from whence.data import Dataset
from whence.demo.model import new_model
from whence.demo.train import train
from whence.evaluate import Judge, agreement, load_table, open_bank, save_table
from whence.progress import say
from whence.records import Recipe
from whence.report import print_table

HALF = replace(TEXT, width=TEXT.width // 2)
DISTILLED = whence.settings.DistilConfig(
    epochs=TEXT.epochs, batch_examples=TEXT.batch_examples, learning_rate=TEXT.learning_rate
)
SAMPLED = replace(DISTILLED, is_sampled=True)


def proxies(setting):
    """From a name to a function that makes the model."""
    target, words = setting.member(0), len(setting.member(0).tokenizer)
    data = setting.train

    def distilled(settings, config):
        model = new_model(words, 7, settings).eval()
        found = whence.proxy.distil(target, setting.task_of(model, Recipe("adamw", 1.0)), data, config, quiet=True)
        say(f"   distance per token after each epoch: {', '.join(f'{loss:.2f}' for loss in found.losses)}")
        return model

    def elsewhere():
        used = {*data.ids, *setting.queries.ids}
        prepared = target.prepare(documents()).examples
        others = [example for example in prepared if example.id not in used and example.length == TEXT.context]
        say(f"   {len(others):,} other documents")
        return train(Dataset(others[: len(data)]), words, seed=0, settings=TEXT).model

    return {
        "other seed": lambda: setting.member(1).model,
        "half width": lambda: train(data, words, seed=0, settings=HALF).model,
        "distilled": lambda: distilled(TEXT, DISTILLED),
        "distilled, half width": lambda: distilled(HALF, DISTILLED),
        "distilled, half width, sampled": lambda: distilled(HALF, SAMPLED),
        "trained on other documents": elsewhere,
        "untrained": lambda: new_model(words, 0, TEXT).eval(),
        "untrained, half width": lambda: new_model(words, 0, HALF).eval(),
    }


def proxy_task(setting, name, make):
    """The proxy, made at the first call."""
    weights = setting.folder / "proxies" / f"{name.replace(', ', '-').replace(' ', '-')}.safetensors"
    if not weights.exists():
        say(f"making: {name}")
        weights.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: value.detach().contiguous() for key, value in make().named_parameters()}, weights)
    model = new_model(len(setting.task.tokenizer), 0, HALF if "half" in name else TEXT)
    model.load_state_dict(load_file(weights), strict=False)
    return setting.task_of(model.eval(), Recipe("adamw", 1.0))


def table_of(setting, name, task, target):
    """The proxy's scores, made at the first call."""
    folder = setting.folder / "proxies" / f"table-{name.replace(', ', '-').replace(' ', '-')}"
    if not (folder / "table.json").exists():
        say(f"attributing: {name}")
        save_table(
            whence.proxy.proxy_table(
                task, target, setting.train, setting.queries, name=name, runtime=whence.Runtime(quiet=True)
            ),
            folder,
        )
    return load_table(folder)


def probe_of(setting, name, task, target):
    """Agreement on a few documents and queries, made at the first call."""
    file = setting.folder / "proxies" / f"probe-{name.replace(', ', '-').replace(' ', '-')}.json"
    if not file.exists():
        found = whence.proxy.proxy_agreement(task, target, setting.train, setting.queries, runtime=whence.Runtime(quiet=True))
        file.write_text(json.dumps(found.to_dict()))
    return json.loads(file.read_text())["spearman"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", help="names of proxies")
    arguments = parser.parse_args()
    setting = load_setting(arguments.folder)
    bank_folder = arguments.folder / "bank"
    judge = Judge(open_bank(bank_folder) if (bank_folder / "bank.json").exists() else setting.bank())
    target = setting.member(0)
    own = table_of(setting, "target itself", target, target)
    best = judge.lds(own)
    rows = [("the target itself", f"{own.seconds:.0f}", _ends(best.interval), f"{best.share:.0%}", "", "", "", "")]
    for name, make in proxies(setting).items():
        if arguments.only and name not in arguments.only:
            continue
        task = proxy_task(setting, name, make)
        table = table_of(setting, name, task, target)
        lds, alike, probe = judge.lds(table), agreement(own, table), probe_of(setting, name, task, target)
        small = f"{probe['mean']:.2f} [{probe['low']:.2f}, {probe['high']:.2f}]"
        measured = [_ends(best.minus(lds)), _ends(alike.spearman), _ends(alike.top), small]
        rows.append((name, f"{table.seconds:.0f}", _ends(lds.interval), f"{lds.share:.0%}", *measured))
    header = ("attributor", "seconds", "LDS", "of ceiling", "behind the target", "Spearman", "top 10", "Spearman, probe")
    print_table(header, rows)


def _ends(interval):
    return f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


if __name__ == "__main__":
    main()
