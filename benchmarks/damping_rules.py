"""Can damping be chosen without retraining? Rules beside the constant of .1 x the mean eigenvalue, for EK-FAC.

    for s in digits-mlp digits-early table; do python benchmarks/damping_rules.py whence-bench/$s; done

- agreement: the damping whose scores agree best between curvatures fitted on two halves of the training data (Spearman).
- tail-patch: the damping whose scores agree best, over random examples, with what one gradient step on each does to the queries.
- ten times the step: the same for longer ones, in which curvature shows.
- unit weights by trace: .1 x mean, each unit's part times the trace of K-FAC's factors over that of its Gauss-Newton matrix. EK-FAC's own
  eigenvalues add up to the latter already.

LDS of each damping and of each rule's choice, with 95 % intervals; differences from .1 x mean are paired by bootstrap draw.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

import whence
from whence.bench import load_setting, prepare
from whence.capture import plan_units, put_back
from whence.curvature import fit_ekfac, fit_kfac
from whence.evaluate import Judge
from whence.evaluate.ranks import spearman

QUIET = whence.Runtime(quiet=True)
DAMPINGS = (0.001, 0.01, 0.1, 1.0, 10.0)
STEPPED = 60


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path, help="of a setting of the bench")
    folder = parser.parse_args().folder
    setting = load_setting(folder) if (folder / "setting.json").exists() else prepare(folder.name, folder.parent)
    judge = Judge(setting.bank())
    tables = {damping: table(setting, damping) for damping in DAMPINGS}
    lds = {damping: judge.lds(tables[damping]) for damping in DAMPINGS}
    print(
        f"\n{setting.name}\n\n| damping, x mean | LDS | over .1 x mean | agreement of halves | one step | ten times the step |"
    )
    print("|---|---|---|---|---|---|")
    halves = {damping: agreement(setting, damping) for damping in DAMPINGS}
    rate = setting.task.recipe.learning_rate_sum / 1000
    steps = {length: patched(setting, length) for length in (rate, 10 * rate)}
    fits = {
        length: {damping: fit(tables[damping], rows, change_QK) for damping in DAMPINGS}
        for length, (rows, change_QK) in steps.items()
    }
    first, second = fits.values()
    for damping in DAMPINGS:
        row = lds[damping]
        over = row.minus(lds[0.1])
        print(
            f"| {damping:g} | {row.interval} | {over} | {halves[damping]:.3f} | {first[damping]:.3f} | {second[damping]:.3f} |"
        )
    print("\n| rule | chooses | over .1 x mean |\n|---|---|---|")
    for name, by in (("agreement of halves", halves), ("one step", first), ("ten times the step", second)):
        chosen = max(by, key=by.get)
        print(f"| {name} | {chosen:g} | {lds[chosen].minus(lds[0.1])} |")
    weighted, ratios = by_trace(setting)
    print(
        f"| unit weights by trace ({', '.join(f'{ratio:.2f}' for ratio in ratios)}) | | {judge.lds(weighted).minus(lds[0.1])} |"
    )


def table(setting, damping, **options):
    """Scores at a damping, a share of the mean eigenvalue."""
    method = whence.EKFAC(damping=whence.Damping(relative=damping), **options)
    return whence.attribute(setting.task, setting.train, setting.queries, method=method, runtime=QUIET)


def agreement(setting, damping):
    """Mean over queries of the correlation of scores with curvatures of the even and of the odd examples."""
    parts = [whence.data.Dataset(setting.train.examples[start::2]) for start in (0, 1)]
    even, odd = (table(setting, damping, fit_on=part).scores for part in parts)
    return float(spearman(even, odd).mean())


def patched(setting, length):
    """What a step of plain gradient descent on each of some examples does to every query's measurement."""
    task, rows = setting.task, torch.randperm(len(setting.train), generator=torch.Generator().manual_seed(0))[:STEPPED].tolist()
    asked, parameters = task.collate(setting.queries.examples), list(task.model.parameters())

    def measured():
        with torch.no_grad():
            return task.measurement(task.model, asked).double()

    before, changes = measured(), []
    for row in rows:
        loss = task.loss(task.model, task.collate([setting.train.examples[row]])).sum()
        gradients = torch.autograd.grad(loss, parameters)
        with put_back(task.model, parameters):
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.sub_(gradient, alpha=length)
            changes.append(measured() - before)
    return rows, torch.stack(changes, 1)


def fit(scores, rows, change_QK):
    """Mean over queries of the correlation over the examples that were stepped on."""
    return float(spearman(scores.scores[:, rows], change_QK).mean())


def by_trace(setting):
    """Scores whose parts are weighted by how much the factors' trace is of the true one, and these weights."""
    task, method = setting.task, whence.EKFAC()
    found = whence.attribute(task, setting.train, setting.queries, method=method, per_unit=True, runtime=QUIET)
    plan = plan_units(task)
    kfac = fit_kfac(task, plan, setting.train, quiet=True)
    corrected = fit_ekfac(task, plan, setting.train, quiet=True)
    ratios = [float(a.values_OI.sum() / b.values_OI.sum()) for a, b in zip(kfac.blocks, corrected.blocks, strict=True)]
    scores = sum(ratio * part for ratio, part in zip(ratios, found.parts.values(), strict=True))
    return replace(found, scores=scores), ratios


if __name__ == "__main__":
    main()
