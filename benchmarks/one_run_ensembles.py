"""Does one training run make an ensemble? Means of scores over models that come from it, beside models trained apart.

    for s in digits-mlp table digits-early; do python benchmarks/one_run_ensembles.py whence-bench/$s; done
    python benchmarks/one_run_ensembles.py whence-bench/digits-mlp --method trak
    python benchmarks/one_run_ensembles.py whence-bench/text --only-finished --few

LDS with a 95 % interval over queries and subsets, the difference from one model in the same draws, and what it costs: tables of scores, and
training in whole runs. The run is the first model's, recorded again with six checkpoints. Tables are kept in the folder.
"""

import argparse
import tempfile
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

import whence
from whence.bench import load_setting, prepare
from whence.evaluate import Judge, load_table, save_table
from whence.pipeline import build, score_table
from whence.progress import meter
from whence.score import mean_table
from whence.settings import BuildConfig
from whence.unroll import Replay, clipping_of, short_run, steps_of

QUIET = whence.Runtime(quiet=True)
MEMBERS = 5


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path, help="of a setting of the bench")
    parser.add_argument("--method", choices=("ekfac", "trak"), default="ekfac")
    parser.add_argument("--few", action="store_true", help="only models trained apart, checkpoints, noise and short runs")
    parser.add_argument("--only-finished", action="store_true", help="against the halves that are retrained already")
    asked = parser.parse_args()
    folder = asked.folder
    setting = load_setting(folder) if (folder / "setting.json").exists() else prepare(folder.name, folder.parent)
    bank = setting.bank(only_finished=asked.only_finished)
    judge, lab = Judge(bank), Lab(setting, folder / "one-run", asked.method)
    one = judge.lds(lab.mean("full", 1))
    print(
        f"\n{setting.name}, {asked.method}: {len(bank.masks_MN)} halves, {len(bank.seeds)} seeds each, ceiling {judge.ceiling.reachable:.2f}"
    )
    print("\n| models | LDS | over one model | tables | training runs |\n|---|---|---|---|---|")
    share = len(steps_of(lab.run, 0)) / lab.run.steps
    for name, (kind, count, with_end) in rows(asked.few).items():
        training = {"full": count - 1, "short": count * share}.get(kind, 0)
        lds = judge.lds(lab.mean(kind, count, with_end))
        print(f"| {name} | {lds.interval} | {lds.minus(one)} | {count + with_end} | {training:.2g} |", flush=True)


def rows(few):
    """By name: kind of model, how many, whether the run's last weights are averaged in."""
    rows = {
        "one model": ("full", 1, False),
        "two models trained apart": ("full", 2, False),
        "five models trained apart": ("full", MEMBERS, False),
        "the last three checkpoints": ("checkpoint", 3, False),
        "final weights with noise of a tenth, 5": ("noise.1", 5, False),
        "one short run": ("short", 1, False),
        "one short run and the end": ("short", 1, True),
        "four short runs and the end": ("short", 4, True),
    }
    more = {
        "six checkpoints": ("checkpoint", 6, False),
        "mean weights of the last three checkpoints": ("mean-weights", 1, False),
        "draws from the checkpoints' spread, 5": ("spread", 5, False),
        "dropout masks of 5 %, 5": ("mask.05", 5, False),
        "dropout masks of 5 %, 10": ("mask.05", 10, False),
        "dropout masks of 20 %, 10": ("mask.2", 10, False),
        "final weights with noise of a fifth, 5": ("noise.2", 5, False),
        "noise of rank 2, a tenth, 5": ("rank2", 5, False),
        "nine short runs and the end": ("short", 9, True),
    }
    return rows if few else {**rows, **more}


class Lab:
    """Tables of one setting's models, each made once."""

    def __init__(self, setting, folder, method):
        self.setting, self.folder, self.method, self.task = setting, folder, method, setting.task
        self.tables = {}
        where = folder.parent / "along" / "run"
        if not (where / "run.json").exists():
            setting.retrain.recorded(0, where, setting.train)
        self.run = whence.runs.open_run(where)
        self.end = self.run.values(self.run.checkpoints[-1], "measurements")

    def mean(self, kind, count, with_end=False):
        """Mean over some of a kind, and the run's own end."""
        tables = [self.table(kind, number) for number in range(count)] + ([self.table("full", 0)] if with_end else [])
        return mean_table(tables)

    def table(self, kind, number):
        """Scores of one of a kind."""
        if (kind, number) in self.tables:
            return self.tables[kind, number]
        folder = self.folder / f"{self.method}-{kind}-{number}"
        if (folder / "table.json").exists():
            return load_table(folder)
        task = self.setting.member(number) if kind == "full" else self.task
        with self.model(kind, number, task.model):
            self.tables[kind, number] = table = self.scores(task, number)
        if self.method == "ekfac":  # of TRAK scores and weights are averaged apart, and a folder has their product
            save_table(table, folder)
        return table

    def scores(self, task, number):
        """Scores of whatever the model is now."""
        setting = self.setting
        if self.method == "ekfac":
            return whence.attribute(task, setting.train, setting.queries, method=whence.EKFAC(), runtime=QUIET)
        with tempfile.TemporaryDirectory() as folder:
            store = build(task, setting.train, folder, config=BuildConfig(method="trak", rank=512, seed=number), runtime=QUIET)
            return score_table(store, task, setting.queries, weighted=False, runtime=QUIET)

    @contextmanager
    def model(self, kind, number, model):
        """The model as a member of an ensemble, for a while."""
        if kind.startswith("mask"):
            with masked(model, float(kind.removeprefix("mask")), number):
                yield
            return
        values = {} if kind == "full" else self.weights(kind, number)
        before = {name: value.detach().clone() for name, value in model.named_parameters()}
        load(model, values)
        yield
        load(model, before)

    def weights(self, kind, number):
        """By parameter."""
        steps, generator = self.run.checkpoints[1:], torch.Generator().manual_seed(number)
        late = [self.run.values(step, "measurements") for step in steps[-3:]]
        if kind == "checkpoint":
            return self.run.values(steps[-1 - number], "measurements")
        if kind == "short":
            with self.run.weights(self.task.model, steps[-1:]), meter("short run", 1, quiet=True) as progress:
                replay = Replay(self.task, self.setting.train, self.run, max_positions=4096)
                return short_run(replay, number, clipping_of(replay), progress).weights
        mean = {name: torch.stack([values[name] for values in late]).mean(0) for name in self.end}
        if kind == "mean-weights":
            return mean
        if kind == "spread":
            # As SWAG draws them (Maddox et al. 2019, equation 1), from three checkpoints.
            along = torch.randn(len(late), generator=generator)
            drawn = {}
            for name, value in mean.items():
                apart = torch.stack([values[name] for values in late]) - value
                each = apart.square().mean(0).sqrt() * torch.randn(value.shape, generator=generator)
                together = torch.tensordot(along, apart, 1) / (len(late) - 1) ** 0.5
                drawn[name] = value + (each + together) / 2**0.5
            return drawn
        size = 0.1 if kind == "rank2" else float(kind.removeprefix("noise"))
        return {
            name: value + size * noise(value, generator, 2 if kind == "rank2" else None) for name, value in self.end.items()
        }


def noise(value, generator, rank):
    """Gaussian, as large as the weights of a tensor are on average."""
    drawn = torch.randn(value.shape, generator=generator)
    if rank is not None and value.ndim == 2:
        sides = [torch.randn(size, rank, generator=generator) for size in value.shape]
        drawn = sides[0] @ sides[1].T / rank**0.5
    return drawn * value.square().mean().sqrt()


def load(model, values):
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in values.items():
            if name in parameters:
                parameters[name].copy_(value)


class Mask(nn.Module):
    """Leaves out the same random features of every input, after a layer."""

    def __init__(self, inner, share, seed):
        super().__init__()
        self.inner, self.share, self.seed = inner, share, seed

    def forward(self, inputs):
        """What the layer gives, without some features and the others larger."""
        outputs = self.inner(inputs)
        kept = torch.rand(outputs.shape[-1], generator=torch.Generator().manual_seed(self.seed)) >= self.share
        return outputs * kept / (1 - self.share)


@contextmanager
def masked(model, share, number):
    """Masks behind the activations of a small network, or where a transformer has its dropout."""
    kinds = (nn.ReLU, nn.Tanh, nn.Dropout)
    sites = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, kinds)
    ]
    for place, (parent, name, child) in enumerate(sites):
        setattr(parent, name, Mask(child, share, 1000 * number + place))
    yield
    for parent, name, child in sites:
        setattr(parent, name, child)


if __name__ == "__main__":
    main()
