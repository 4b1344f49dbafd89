"""EK-FAC, SOURCE and the exact derivative on small recorded runs, against training again with a changed weight.

    OMP_NUM_THREADS=1 python benchmarks/unroll_agreement.py [--recipes rough tanh slow large tanh-slow adamw] [--dtype float64]

A network (64-32-10) is trained on 512 images of digits under `whence.Recorder`. For 32 of them it is trained again without the image, and
with its weight changed by a little for the derivative. Agreement is the mean over 16 queries of Spearman's correlation with either, over the
32 images. The slope is that of the true effects of leaving out by the predicted ones, 1 where sizes are right. Costs are of the processor's
time, in passes forward and backward over the training data; a run itself is as many as it has epochs.

Axes: Q queries, E examples left out.
"""

import argparse
import tempfile
import time
from dataclasses import dataclass

import torch
from torch import nn

from whence.settings import Runtime, exact_settings

EXAMPLES, QUERIES, LEFT_OUT, H = 512, 16, 32, 1e-4


@dataclass(frozen=True)
class Recipe:
    """How a run trains."""

    activation: type = nn.ReLU
    optimizer: type = torch.optim.SGD
    rate: float = 0.1
    batch: int = 32
    epochs: int = 20

    def make(self, model):
        """Its optimizer."""
        options = {"momentum": 0.9} if self.optimizer is torch.optim.SGD else {}
        return self.optimizer(model.parameters(), lr=self.rate, weight_decay=1e-3, **options)


RECIPES = {
    "rough": Recipe(),
    "tanh": Recipe(activation=nn.Tanh),
    "slow": Recipe(rate=0.01),
    "large": Recipe(batch=128, rate=0.05),
    "tanh-slow": Recipe(activation=nn.Tanh, rate=0.01),
    "adamw": Recipe(activation=nn.Tanh, optimizer=torch.optim.AdamW, rate=3e-3, batch=128),
}


def trained(recipe, inputs, labels, scale=None, folder=None):
    """The model of a recipe, recorded if there is a folder."""
    import whence

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), recipe.activation(), nn.Linear(32, 10)).to(inputs.dtype)
    optimizer = recipe.make(model)
    generator = torch.Generator().manual_seed(1)
    steps = recipe.epochs * -(-EXAMPLES // recipe.batch)
    recorder = None if folder is None else whence.Recorder(folder, model, optimizer, every=-(-steps // 6)).__enter__()
    scale = torch.ones(EXAMPLES, dtype=inputs.dtype) if scale is None else scale
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for _ in range(recipe.epochs):
        for batch in torch.randperm(EXAMPLES, generator=generator).split(recipe.batch):
            if recorder is not None:
                recorder.batch(batch.tolist())
            losses = nn.functional.cross_entropy(model(inputs[batch]), labels[batch], reduction="none")
            optimizer.zero_grad()
            (losses * scale[batch]).mean().backward()
            optimizer.step()
            schedule.step()
    if recorder is not None:
        recorder.__exit__(None, None, None)
    return model


def truths(recipe, inputs, labels, measure, left_out):
    """What leaving out each example does to every query, and the derivative by its weight; both of shape (Q, E)."""
    base = measure(trained(recipe, inputs, labels))
    removed, derivative = [], []
    for place in left_out:
        found = []
        for weight in (0.0, 1 + H, 1 - H):
            scale = torch.ones(EXAMPLES, dtype=inputs.dtype)
            scale[place] = weight
            found.append(measure(trained(recipe, inputs, labels, scale)))
        removed.append(found[0] - base)
        derivative.append((found[1] - found[2]) / (2 * H))
    return torch.stack(removed, 1), torch.stack(derivative, 1)


def run(name, recipe, dtype):
    """One recipe, printed as it comes."""
    import whence
    from whence.bench.data import digits
    from whence.evaluate import spearman
    from whence.unroll import Replay

    (images, classes), (asked, answers) = digits()
    inputs, labels = images[:EXAMPLES].to(dtype), classes[:EXAMPLES]
    left_out = list(range(0, EXAMPLES, EXAMPLES // LEFT_OUT))
    with tempfile.TemporaryDirectory() as folder:
        model = trained(recipe, inputs, labels, folder=folder)
        task = whence.Classification(model)
        train_set = task.prepare(list(zip(inputs, labels.tolist(), strict=True)))
        queries = task.prepare(list(zip(asked[:QUERIES].to(dtype), answers[:QUERIES].tolist(), strict=True)))
        batch = task.collate(queries.examples)

        def measure(other):
            with torch.no_grad():
                return task.measurement(other, batch).double()

        removed, derivative = truths(recipe, inputs, labels, measure, left_out)
        recorded = whence.runs.open_run(folder)
        replay = Replay(task, train_set, recorded, max_positions=1 << 20)
        with replay.prepared_model():
            state = replay.load(0)
            started = time.process_time()
            for step in range(recorded.steps):
                replay.gradients(state, step)
            one_pass = (time.process_time() - started) / recipe.epochs
        smooth = whence.runs.smoothness(task, train_set, folder, runtime=Runtime(quiet=True))
        small = whence.runs.smoothness(task, train_set, folder, share=1 / EXAMPLES, runtime=Runtime(quiet=True))
        print(
            f"\n{name}: {recorded.steps} steps, {recipe.epochs} passes; smoothness {smooth.value:.2f} with {smooth.examples} examples "
            f"out, {small.value:.2f} with {small.examples}"
        )
        print("| method | Spearman, leaving out | slope | Spearman, derivative | passes, 1 query | passes, 16 queries |")
        print("|---|---|---|---|---|---|")
        for method in ("ekfac", "source", "unroll"):
            settings = exact_settings(method, {} if method == "ekfac" else {"run": folder})
            costs = []
            for some in (train_set.__class__(queries.examples[:1]), queries):
                started = time.process_time()
                table = whence.attribute(task, train_set, some, method=settings, runtime=Runtime(quiet=True))
                costs.append((time.process_time() - started) / one_pass)
            scores = table.scores[:, left_out]
            effects = -scores
            slope = float((effects * removed).sum() / effects.square().sum())
            agreements = [float(spearman(one, other).mean()) for one, other in ((effects, removed), (scores, derivative))]
            print(
                f"| {method} | {agreements[0]:.3f} | {slope:.2f} | {agreements[1]:.3f} | {costs[0]:.0f} | {costs[1]:.0f} |",
                flush=True,
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="*", choices=tuple(RECIPES), default=tuple(RECIPES))
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float64")
    arguments = parser.parse_args()
    for name in arguments.recipes:
        run(name, RECIPES[name], getattr(torch, arguments.dtype))


if __name__ == "__main__":
    main()
