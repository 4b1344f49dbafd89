"""Do scores find wrong labels? Flip some on purpose and look for them.

Axes: N training examples, D bootstrap draws.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whence.errors import BadInput, NonFinite
from whence.evaluate.ranks import average_precision, ranks
from whence.evaluate.statistics import Interval, bootstrap_interval

__all__ = ["Detection", "MislabelReport", "detection", "flip_labels", "mislabel_report"]

BASELINE = "loss"
_SHARES = (0.1, 0.2, 0.3)


@dataclass(frozen=True)
class Detection:
    """How well one score finds the flipped labels.

    Args:
        auc: Chance that a flipped example scores above one that is not, ties for a half, with its 95 % interval.
        average_precision: Mean precision over the flipped examples, as they are come upon; equal scores count at once.
        found: By share of the data that is inspected, highest scores first, the share of flips among it.
    """

    auc: Interval
    average_precision: float
    found: Mapping[float, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return {
            "auc": self.auc.to_dict(),
            "average_precision": self.average_precision,
            "found": {f"{share:g}": value for share, value in self.found.items()},
        }


@dataclass(frozen=True)
class MislabelReport:
    """Scores beside the plain loss, which has to be beaten to be worth anything here.

    Args:
        num_examples: Training examples.
        num_flipped: Of them with a wrong label.
        detections: By name of the score, the loss among them.
        gains: By name, the AUC minus that of the loss, both on the same draws.
    """

    num_examples: int
    num_flipped: int
    detections: Mapping[str, Detection]
    gains: Mapping[str, Interval]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return {
            "num_examples": self.num_examples,
            "num_flipped": self.num_flipped,
            "detections": {name: detection.to_dict() for name, detection in self.detections.items()},
            "gains_over_loss": {name: gain.to_dict() for name, gain in self.gains.items()},
        }


def flip_labels(labels: Tensor, share: float, num_classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Give some examples a wrong label, drawn evenly among the other classes.

    Args:
        labels: Class numbers, shape (N,).
        share: Of the examples that get a wrong one; rounded to whole examples.
        num_classes: Number of classes.
        seed: The same seed flips the same examples to the same labels.

    Returns:
        The labels with the flips, and True where one was flipped, both of shape (N,).

    Raises:
        BadInput: If the share is not between 0 and 1, there are fewer than 2 classes, or a label is no class.

    >>> flipped, where = flip_labels(torch.tensor([0, 1, 0, 1]), share=0.5, num_classes=2)
    >>> int(where.sum()), bool(((flipped != torch.tensor([0, 1, 0, 1])) == where).all())
    (2, True)
    """
    is_whole = labels.ndim == 1 and not labels.is_floating_point() and len(labels) > 0
    if not is_whole or int(labels.min()) < 0 or int(labels.max()) >= num_classes or num_classes < 2:
        raise BadInput(
            found=f"labels of shape {tuple(labels.shape)} and type {labels.dtype} for {num_classes} classes",
            needed="whole numbers from 0 to classes - 1, and 2 classes or more",
            do="number the classes from 0",
        )
    if not 0 <= share <= 1:
        raise BadInput(found=f"share={share}", needed="0 to 1", do="pass .1 for a tenth")
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(labels), generator=generator)[: round(share * len(labels))]
    # A shift by 1 to classes - 1 never comes back to the same class.
    shifts = torch.randint(1, num_classes, (len(chosen),), generator=generator)
    flipped, flipped_N = labels.clone(), torch.zeros(len(labels), dtype=torch.bool)
    flipped[chosen] = ((labels[chosen] + shifts.to(labels.device)) % num_classes).to(labels.dtype)
    flipped_N[chosen] = True
    return flipped, flipped_N


def detection(scores_N: Tensor, flipped_N: Tensor, *, num_draws: int = 1000, seed: int = 0) -> Detection:
    """How well high scores point at flipped labels.

    For self-influence: an example that only itself supports scores high (Koh and Liang 2017, section 5.4; Pruthi et al. 2020,
    arXiv 2002.08484).
    The AUC is the Mann-Whitney statistic. Its interval is over draws of flipped and of other examples, each with replacement (Efron 1979).

    Args:
        scores_N: Higher is more suspicious, in any unit.
        flipped_N: True where the label is wrong.
        num_draws: Draws of the bootstrap.
        seed: Of the draws.

    Returns:
        AUC, average precision and what inspecting 10, 20 and 30 percent finds. Where equal scores straddle an inspected share, the mean
        over their orders is taken.

    Raises:
        BadInput: If the shapes differ, the flips are none or all, or there are no draws.
        NonFinite: If a score is NaN or infinite.

    >>> found = detection(torch.tensor([3.0, 2.0, 1.0, 0.0]), torch.tensor([True, False, True, False]))
    >>> found.auc.mean, round(found.average_precision, 3)
    (0.75, 0.833)
    """
    scores_N, flipped_N = _checked(scores_N, flipped_N, num_draws)
    drawn_D = _auc_draws(scores_N, flipped_N, num_draws, seed)
    return _detection(scores_N, flipped_N, drawn_D)


def mislabel_report(
    self_influence: Mapping[str, Tensor], losses_N: Tensor, flipped_N: Tensor, *, num_draws: int = 1000, seed: int = 0
) -> MislabelReport:
    """Detection by several scores, always beside detection by the example's own loss.

    Args:
        self_influence: By name, scores of shape (N,), higher more suspicious.
        losses_N: Loss of each training example under the label it was trained with.
        flipped_N: True where that label is wrong.
        num_draws: Draws of the bootstrap.
        seed: Of the draws, which are the same for all.

    Returns:
        All detections, and each AUC's gain over the loss.

    Raises:
        BadInput: If a score is named "loss", shapes differ, the flips are none or all, or there are no draws.
        NonFinite: If a score is NaN or infinite.
    """
    if BASELINE in self_influence:
        raise BadInput(found=f"a score named {BASELINE!r}", needed="another name", do="rename it: the losses have that one")
    detections, drawn = {}, {}
    for name, scores in {BASELINE: losses_N, **self_influence}.items():
        scores_N, is_flipped_N = _checked(scores, flipped_N, num_draws)
        drawn[name] = _auc_draws(scores_N, is_flipped_N, num_draws, seed)
        detections[name] = _detection(scores_N, is_flipped_N, drawn[name])
    baseline = detections[BASELINE].auc.mean
    gains = {
        name: bootstrap_interval(detections[name].auc.mean - baseline, drawn[name] - drawn[BASELINE]) for name in self_influence
    }
    return MislabelReport(len(flipped_N), int(flipped_N.sum()), detections, gains)


def _checked(scores: Tensor, flipped: Tensor, num_draws: int) -> tuple[Tensor, Tensor]:
    if num_draws < 1:
        raise BadInput(found=f"num_draws={num_draws}", needed="1 or more", do="leave it out")
    scores_N, flipped_N = scores.detach().cpu().double(), flipped.cpu().bool()
    if scores_N.ndim != 1 or scores_N.shape != flipped_N.shape or not 0 < int(flipped_N.sum()) < len(flipped_N):
        raise BadInput(
            found=f"scores of shape {tuple(scores_N.shape)} and {int(flipped_N.sum())} flips among {flipped_N.numel()} examples",
            needed="one score per example, some of them flipped and some not",
            do="pass what flip_labels gave",
        )
    if not bool(torch.isfinite(scores_N).all()):
        raise NonFinite(
            found="a NaN or infinite score", needed="finite scores", do="look for examples without a gradient or loss"
        )
    return scores_N, flipped_N


def _detection(scores_N: Tensor, flipped_N: Tensor, drawn_D: Tensor) -> Detection:
    num_flipped, num_examples = int(flipped_N.sum()), len(flipped_N)
    place_sum = float(ranks(scores_N)[flipped_N].sum())
    auc = (place_sum - num_flipped * (num_flipped + 1) / 2) / (num_flipped * (num_examples - num_flipped))
    # Highest first, equal scores as one step.
    groups = torch.unique(-scores_N, return_inverse=True)[1]
    sizes, flips = torch.bincount(groups).double(), torch.bincount(groups, weights=flipped_N.double())
    inspected, num_found = sizes.cumsum(0), flips.cumsum(0)
    inspected_steps, found_steps = (np.concatenate([[0.0], values.numpy()]) for values in (inspected, num_found))
    shares = {share: float(np.interp(share * num_examples, inspected_steps, found_steps)) / num_flipped for share in _SHARES}
    return Detection(bootstrap_interval(auc, drawn_D), average_precision(scores_N, flipped_N), shares)


def _auc_draws(scores_N: Tensor, flipped_N: Tensor, num_draws: int, seed: int) -> Tensor:
    """The AUC of each draw, shape (D,): the draws depend on the flips and the seed only, so that scores can be compared pairwise."""
    groups = torch.unique(scores_N, return_inverse=True)[1]
    num_groups = int(groups.max()) + 1
    wrong, right = groups[flipped_N], groups[~flipped_N]
    generator = torch.Generator().manual_seed(seed)
    drawn_D = torch.empty(num_draws, dtype=torch.float64)
    for draw in range(num_draws):
        picked = [side[torch.randint(len(side), (len(side),), generator=generator)] for side in (wrong, right)]
        wrong_G, right_G = (torch.bincount(side, minlength=num_groups).double() for side in picked)
        drawn_D[draw] = (wrong_G * (right_G.cumsum(0) - right_G / 2)).sum() / (len(wrong) * len(right))
    return drawn_D
