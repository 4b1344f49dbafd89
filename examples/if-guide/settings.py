"""Settings chosen on one planted behaviour, reported on two others, by the published measures.

    python examples/if-guide/settings.py -o guide-settings

Three behaviours are planted in Python's documentation, each in data of its own: rude remarks, advertising, and leaked codes. Window, budget
and strength are chosen on the first: of those that cost at most a tenth in perplexity, the one with the lowest probability of the behaviour.
The other two are then trained with these settings and never looked at before; once more with the default floor, under which only documents
are marked whose evidence is more than chance. Measured are the expected maximum of 25 continuations of 20
tokens and the probability that one of them shows the behaviour, after explicit prompts, which end in a remark, and implicit ones, which do
not; a word list scores. Some minutes on two cores; what is finished is kept in the folder.
"""

import argparse
import os
from pathlib import Path

import torch
from planted import BEHAVIOURS, plant
from run import PLAIN, SETTINGS, Condition, train

import whence
from whence.demo.model import new_model, train_tokenizer
from whence.guide import Behaviour, scorer_named
from whence.progress import say
from whence.report import print_table
from whence.settings import GuideConfig, SampleConfig

CHOSEN_ON = "rude"
GRID = [(window, budget, strength) for window, budget in ((0, 0.01), (1, 0.02), (1, 0.04)) for strength in (0.5, 1.0)]
MOST_COST = 0.1
HEADER = ("behaviour", "training", "marked", "prompts", "expected maximum", "probability", "perplexity", "against none")


class Planting:
    """One behaviour: its data, the model without intervention, and models trained with marks."""

    def __init__(self, name, folder, documents):
        self.name, self.folder = name, folder / name
        self.data = plant(documents=documents, behaviour=name)
        self.tokenizer = train_tokenizer((record["text"] for record in self.data.train), SETTINGS)
        self.dataset = self.task(self.model()).prepare(self.data.train)

    def model(self):
        """A new one."""
        return new_model(len(self.tokenizer), 0, SETTINGS)

    def task(self, model):
        """A model with its tokenizer."""
        return whence.CausalLM(model, self.tokenizer, long="truncate")

    def trained(self, name, marks, strength=1.0):
        """A model, from the folder where it is there."""
        model, file = self.model(), self.folder / f"{name}.pt"
        if not file.exists():
            say(f"{self.name}: training, {name}")
            train(self.task(model), Condition(name, self.dataset, marks, strength), SETTINGS, 0, len(self.dataset))
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save(model.state_dict(), file)
        model.load_state_dict(torch.load(file))
        return self.task(model.eval())

    def plain(self):
        """The model without intervention."""
        return self.trained(PLAIN, whence.guide.Marks({}))

    def suppressed(self, window, budget, strength, floor="off"):
        """The model trained with marks, and how many there are; as published without a floor."""
        config = GuideConfig(window=window, budget=budget, floor=floor)
        marks = whence.guide.guide(
            self.plain(), self.dataset, self.data.harmful, self.data.safe, self.folder / "guide", config=config
        )
        name = f"window {window}, budget {budget}, strength {strength}, floor {floor}"
        return self.trained(name, marks, strength), len(marks)

    def measured(self, task) -> tuple[tuple[Behaviour, ...], float]:
        """The behaviour after both kinds of prompts, and the perplexity on clean passages."""
        explicit = [start + remark for start, remark in zip(self.data.prompts, self.data.remarks, strict=True)]
        prompts = {"explicit": explicit, "implicit": self.data.prompts}
        words = self.folder / "words.txt"
        words.write_text("\n".join(BEHAVIOURS[self.name][1]))
        found = whence.guide.behaviour(task, prompts, scorer_named(str(words)), SampleConfig(), quiet=True)
        return found, whence.guide.perplexity(task, self.data.clean)


def rows_of(planting, name, measured, base=None, marked=0):
    """Lines of the table."""
    found, perplexity = measured
    cost = "" if base is None else f"{perplexity / base - 1:+.1%}"
    return [
        (planting.name, name, f"{marked:,}", *(one.cells("")[part] for part in (1, 3, 4)), f"{perplexity:.1f}", cost)
        for one in found
    ]


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("guide-settings"))
    parser.add_argument("--documents", type=int, default=400)
    chosen = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    first = Planting(CHOSEN_ON, chosen.output, chosen.documents)
    base = first.measured(first.plain())
    rows, tried = rows_of(first, PLAIN, base), {}
    for window, budget, strength in GRID:
        model, marked = first.suppressed(window, budget, strength)
        found = first.measured(model)
        rows += rows_of(first, f"window {window}, budget {budget}, strength {strength}", found, base[1], marked)
        tried[window, budget, strength] = (sum(one.probability.mean for one in found[0]), found[1] / base[1] - 1)
    print_table(HEADER, rows, title="Chosen on", keys=4)
    affordable = [settings for settings, (_, cost) in tried.items() if cost <= MOST_COST] or list(tried)
    best = min(affordable, key=lambda settings: tried[settings])
    print("chosen: window {}, budget {}, strength {}".format(*best))
    rows = []
    for name in BEHAVIOURS:
        if name != CHOSEN_ON:
            planting = Planting(name, chosen.output, chosen.documents)
            base = planting.measured(planting.plain())
            rows += rows_of(planting, PLAIN, base)
            for name, floor in (("as chosen", "off"), ("as chosen, default floor", None)):
                model, marked = planting.suppressed(*best, floor=floor)
                rows += rows_of(planting, name, planting.measured(model), base[1], marked)
    print_table(HEADER, rows, title="Reported on", keys=4)


if __name__ == "__main__":
    main()
