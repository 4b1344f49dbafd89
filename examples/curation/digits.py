"""Wrong labels: drop the least valuable fifth of 1,000 digits of which a fifth is mislabelled, and train again.

    python examples/curation/digits.py -o FOLDER [--seeds 10]

Prints the error and the loss on 597 digits that nothing was chosen by, after dropping by influence on a validation set of 200, by
self-influence, by loss and at random; and, as the most that can be had, without exactly the wrong labels. Running it again only does what
is missing.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import whence
from whence.bench.small import SmallLosses, SmallRetrain, SmallSettings
from whence.evaluate import Retraining, flip_labels

TRAIN, VALIDATION, WRONG = 1000, 200, 0.2
# As in the bench's setting digits-noisy: with less weight decay the network learns its wrong labels by heart.
SETTINGS = SmallSettings(weight_decay=3e-3)


@dataclass(frozen=True)
class ErrorAndLoss:
    """What is measured: of each test digit whether it is wrong, then its loss."""

    losses: SmallLosses

    def __call__(self, model: nn.Module) -> Tensor:
        """Errors and losses, shape (2 Q,)."""
        with torch.no_grad():
            is_wrong_Q = model(self.losses.inputs_QD).argmax(1) != self.losses.targets_Q
        return torch.cat([is_wrong_Q.float(), self.losses(model)])


def main(folder: Path, seeds: int, workers: int, share: float, judge: str) -> dict:
    """Select, train again, print; returns what was found."""
    inputs, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    inputs_ND, labels_N = torch.from_numpy(inputs[order] / 16.0).float(), torch.from_numpy(labels[order]).long()
    noisy_N, flipped_N = flip_labels(labels_N[:TRAIN], WRONG, 10, seed=0)
    held = slice(TRAIN, TRAIN + VALIDATION)
    retrain = SmallRetrain(inputs_ND[:TRAIN], noisy_N, SETTINGS)
    measure = ErrorAndLoss(SmallLosses(inputs_ND[TRAIN + VALIDATION :], labels_N[TRAIN + VALIDATION :]))

    # Values are from one model, trained on all data with a seed that the proof does not use.
    model = retrain(torch.ones(TRAIN, dtype=torch.bool), 1000)
    task = whence.Classification(model, recipe=SETTINGS.recipe(TRAIN))
    train = task.prepare(list(zip(inputs_ND[:TRAIN], noisy_N, strict=True)))
    validation = list(zip(inputs_ND[held], labels_N[held], strict=True))
    chosen = {
        "influence": whence.select.select(
            whence.select.value_table(task, train, validation=validation, runtime=whence.Runtime(quiet=True)),
            config=whence.settings.SelectConfig(drop=share),
        ),
        "self-influence": whence.select.select(
            whence.select.value_table(task, train, "self-influence", runtime=whence.Runtime(quiet=True)),
            config=whence.settings.SelectConfig(drop=share),
        ),
        "loss": whence.select.select(
            whence.select.value_table(task, train, "loss", runtime=whence.Runtime(quiet=True)),
            config=whence.settings.SelectConfig(drop=share),
        ),
    }
    oracle = whence.ScoreTable(-flipped_N[None].double(), ("known",), train.ids, "1 for a wrong label", "the truth")
    chosen["the wrong labels"] = whence.select.select(oracle, config=whence.settings.SelectConfig(drop=share))
    first = chosen.pop("influence")
    first.save(folder / "influence")
    proof = whence.select.prove(
        first, retrain, measure,
        Retraining(
            seeds=range(seeds), folder=folder / "runs", fingerprint=retrain.fingerprint + measure.losses.fingerprint, workers=workers
        ),
        rivals=chosen,
    )  # fmt: skip
    found = {}
    half = len(measure.losses.targets_Q)
    print(f"{'dropped by':<18}{'wrong found':>12}  {'test error (95 % over seeds)':<32}{'minus random':<28}{judge}")
    conditions = proof.result.conditions
    random_SQ = conditions["random"].rises_SQ
    for name, rises_SQ in {
        "nothing": torch.zeros_like(random_SQ),
        **{n: one.rises_SQ for n, one in conditions.items()},
    }.items():
        values_SQ = proof.result.baseline_SQ + rises_SQ
        error = whence.evaluate.mean_interval(values_SQ[:, :half].mean(1))
        loss = whence.evaluate.mean_interval(values_SQ[:, half:].mean(1))
        over = whence.evaluate.mean_interval((rises_SQ - random_SQ)[:, :half].mean(1))
        one = {"influence": first, **chosen}.get(name)
        hit = "" if one is None else f"{int(flipped_N[one.dropped].sum())} of {len(one.dropped)}"
        print(f"{name:<18}{hit:>12}  {percent(error):<32}{percent(over) if name != 'random' else '':<28}{loss}")
        found[name] = {"error": error.to_dict(), "loss": loss.to_dict(), "error_minus_random": over.to_dict(), "hit": hit}
    (folder / "digits.json").write_text(json.dumps(found, indent=1))
    return found


def percent(interval: "whence.evaluate.Interval") -> str:
    """An interval of shares for people."""
    return f"{100 * interval.mean:.1f} % [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("curation-digits"))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--share", type=float, default=WRONG, help="of the examples to drop")
    given = parser.parse_args()
    main(given.output, given.seeds, given.workers, given.share, "test loss")
