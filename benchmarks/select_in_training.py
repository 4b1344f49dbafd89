"""Training on the better half of each batch's candidates, against the same steps on a random half: digits with wrong labels.

    OMP_NUM_THREADS=1 python benchmarks/select_in_training.py [--wrong 0.4] [--seeds 10]

An MLP on the digits of scikit-learn, AdamW, 64 candidates a step, 32 of them trained on. A share of the training labels is wrong; 100 clean
examples are the validation set that candidates are scored against, 500 others the test set. Every way has the same initial weights and the
same candidates in a seed. Beside chance there is training on the validation set, too, which costs nothing more ("with validation"). "every
10" takes the validation gradient anew after ten steps only. Figures are means over seeds with 95 % intervals (Student's t); differences to
chance are paired by seed.
"""

import argparse
import time

import torch
from torch import nn

import whence
from whence.evaluate import mean_interval
from whence.select import TrainingSelection
from whence.settings import SelectInTraining

CANDIDATES, KEPT, TRAIN, VALIDATION, TEST = 64, 32, 1100, 100, 500
WAYS = (
    "random half",
    "all 64",
    "random half, with validation",
    "best half, plain",
    "best half, P of AdamW",
    "best half, P of AdamW, every 10",
    "weights, P of AdamW",
)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wrong", type=float, default=0.4)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()
    rows = {way: [run(way, seed, arguments) for seed in range(arguments.seeds)] for way in WAYS}
    chance = [loss for loss, *_ in rows[WAYS[0]]]
    print(f"\n{arguments.wrong:.0%} of the labels wrong, {arguments.steps} steps, {arguments.seeds} seeds\n")
    print(
        "| trained on | test loss | less than a random half | accuracy | wrong labels among those trained on | processor, s |"
    )
    print("|---|---|---|---|---|---|")
    for way, found in rows.items():
        losses, accuracies, wrong, seconds = zip(*found, strict=True)
        gain = interval([other - own for own, other in zip(losses, chance, strict=True)]) if way != WAYS[0] else ""
        means = [sum(values) / len(values) for values in (wrong, seconds)]
        print(f"| {way} | {interval(losses)} | {gain} | {interval(accuracies)} | {means[0]:.0%} | {means[1]:.1f} |")


def interval(values):
    part = mean_interval(torch.tensor(values, dtype=torch.float64))
    return f"{part.mean:.3f} [{part.low:.3f}, {part.high:.3f}]"


def run(way, seed, arguments):
    """Test loss and accuracy, share of wrong labels that were trained on, seconds."""
    from sklearn.datasets import load_digits

    inputs, labels = load_digits(return_X_y=True)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(inputs), generator=generator)
    inputs, labels = torch.tensor(inputs[order] / 16).float(), torch.tensor(labels[order])
    true = labels[:TRAIN]
    is_wrong = torch.rand(TRAIN, generator=generator) < arguments.wrong
    given = torch.where(is_wrong, (true + torch.randint(1, 10, (TRAIN,), generator=generator)) % 10, true)
    clean = slice(TRAIN, TRAIN + VALIDATION)
    if "validation" in way:
        given, is_wrong = torch.cat([given, labels[clean]]), torch.cat([is_wrong, torch.zeros(VALIDATION, dtype=torch.bool)])
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    selection = None
    if "P of" in way or "plain" in way:
        config = SelectInTraining(keep=KEPT, plain="plain" in way, reweight="weights" in way, every=10 if "every" in way else 1)
        train, validation = (
            list(zip(inputs[at], some.tolist(), strict=True)) for at, some in ((slice(TRAIN), given), (clean, labels[clean]))
        )
        selection = TrainingSelection(whence.Classification(model), train, validation, optimizer, config=config)
    trained_on, started = [], time.process_time()
    for _ in range(arguments.steps):
        rows = torch.randint(len(given), (CANDIDATES,), generator=generator)
        weights = torch.ones(CANDIDATES)
        if selection is not None:
            weights = selection.choose(rows.tolist()).weights_B.float()
        elif "half" in way:
            weights[KEPT:] = 0  # candidates are drawn at random
        used = weights > 0
        optimizer.zero_grad()
        losses = nn.functional.cross_entropy(model(inputs[rows[used]]), given[rows[used]], reduction="none")
        (losses * weights[used]).mean().backward()
        optimizer.step()
        trained_on.append(float((is_wrong[rows].float() * weights).sum() / weights.sum()))
    seconds = time.process_time() - started
    with torch.no_grad():
        logits, target = model(inputs[-TEST:]), labels[-TEST:]
        loss, accuracy = nn.functional.cross_entropy(logits, target), (logits.argmax(1) == target).float().mean()
    return float(loss), float(accuracy), sum(trained_on) / len(trained_on), seconds


if __name__ == "__main__":
    main()
