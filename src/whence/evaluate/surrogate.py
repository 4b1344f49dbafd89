"""Choosing the damping without retraining, from the gradient rows alone.

Axes: L dampings, N training examples, Q queries, D numbers of a unit, K directions of its rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from whence.errors import BadInput, NonFinite
from whence.evaluate.statistics import Interval, mean_interval

__all__ = ["SurrogateChoice", "choose_by_surrogate"]


@dataclass(frozen=True)
class SurrogateChoice:
    """What the indicator says of each damping.

    Args:
        relative_dampings: Shares of each unit's mean eigenvalue, ascending.
        indicators_LQ: The indicator of each damping for each query.
        target: Value at which the damping is taken.
        relative_damping: The choice.
    """

    relative_dampings: tuple[float, ...]
    indicators_LQ: Tensor
    target: float
    relative_damping: float

    @property
    def indicators(self) -> tuple[Interval, ...]:
        """Mean over queries of each damping's indicator, with a 95 % t-interval."""
        return tuple(mean_interval(values_Q) for values_Q in self.indicators_LQ)

    @property
    def is_at_the_edge(self) -> bool:
        """Whether the choice is the smallest or the largest damping asked for, so that a wider list might give another."""
        return self.relative_damping in (self.relative_dampings[0], self.relative_dampings[-1])

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return {
            "relative_damping": self.relative_damping,
            "target": self.target,
            "is_at_the_edge": self.is_at_the_edge,
            "indicators": [
                {"relative_damping": damping, **interval.to_dict()}
                for damping, interval in zip(self.relative_dampings, self.indicators, strict=True)
            ],
        }


def choose_by_surrogate(
    train: Sequence[Tensor], queries: Sequence[Tensor], relative_dampings: Sequence[float], *, target: float = 0.5
) -> SurrogateChoice:
    """Pick the damping at which it and the curvature have an equal say in the scores.

    The indicator of a damping is -d log |s| / d log damping, where s are a query's centred scores over the training examples,
    -(1/N) G (F + damping)^-1 q, and all units' dampings grow by one factor. For one unit it is the mean over eigenvectors of damping /
    (eigenvalue + damping), weighted by each one's part in the size of the scores. It is 1 where more damping only shrinks the scores, which
    are inner products of gradients then, and 0 where curvature alone decides, the smallest and noisiest eigenvalues with it. With
    several units it may leave that range a little.

    That an indicator from full-data quantities can replace retraining is the finding of Wang et al. 2025, arXiv 2505.24261. Their formula
    was not at hand when this was written: indicator and target are our own, and no figure of theirs speaks for them. On small softmax
    regressions and tanh networks, with linear datamodeling scores on random halves as the judge, a target of one half lost .05 to the best
    damping on average (from 0 to .17, most where examples far outnumber parameters), a fixed relative damping of .1 lost .12 and of 1 lost
    .03. So it keeps one out of the worst; hold it against a small bank where the last points count.

    Args:
        train: Per unit, gradient rows of the training examples' losses, as they would be stored: shape (N, D), or (N, P, R).
        queries: Per unit, rows of the queries' measurements, projected alike.
        relative_dampings: Candidates, each a share of every unit's mean eigenvalue.
        target: The mean indicator over queries to come nearest to, between 0 and 1.

    Returns:
        Every candidate's indicator and the choice: coming from the largest, where the mean indicator first falls below the target, the
        nearer of the two candidates around it. Below that it may rise again, where a handful of tiny eigenvalues rules the scores.

    Raises:
        BadInput: If the units do not fit, a damping is not positive, the target is out of range, or a query's gradient is orthogonal to
            all training examples.
        NonFinite: If a row is NaN or infinite.

    >>> rows = torch.tensor([[8.0, 0.0], [-8.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    >>> choose_by_surrogate([rows], [torch.tensor([[1.0, 1.0]])], (1e-3, 1e-1, 1e3)).relative_damping
    0.1
    """
    _check(train, queries, relative_dampings, target)
    units = [_Unit.of(rows.flatten(1), asked.flatten(1)) for rows, asked in zip(train, queries, strict=True)]
    dampings = tuple(sorted(relative_dampings))
    indicators_LQ = torch.stack([_indicators(units, damping) for damping in dampings])
    if bool(indicators_LQ.isnan().any()):
        query = int(indicators_LQ.isnan().any(0).nonzero()[0])
        raise BadInput(
            found=f"query {query}, whose scores are the same for every training example",
            needed="a gradient that has something in common with theirs",
            do="leave the query out",
        )
    gaps_L = indicators_LQ.mean(1) - target
    below = (gaps_L < 0).nonzero()[:, 0].tolist()
    last = below[-1] if below else 0
    around = range(last, min(last + 2, len(dampings)))
    return SurrogateChoice(dampings, indicators_LQ, target, dampings[min(around, key=lambda place: abs(float(gaps_L[place])))])


@dataclass(frozen=True)
class _Unit:
    """One unit in the eigenbasis of its Fisher matrix, directions without any training gradient left out."""

    train_NK: Tensor
    queries_QK: Tensor
    values_K: Tensor
    mean_eigenvalue: float

    @classmethod
    def of(cls, train_ND: Tensor, queries_QD: Tensor) -> "_Unit":
        train_ND, queries_QD = train_ND.detach().cpu().double(), queries_QD.detach().cpu().double()
        left_NK, sizes_K, right_KD = torch.linalg.svd(train_ND, full_matrices=False)
        values_K = sizes_K.square() / len(train_ND)
        # A unit without gradients has no eigenvalues either; its rows are zero whatever it is divided by.
        mean = float(values_K.sum()) / train_ND.shape[1] or 1.0
        return cls(left_NK * sizes_K, queries_QD @ right_KD.T, values_K, mean)


def _indicators(units: Sequence[_Unit], relative_damping: float) -> Tensor:
    """By how much the logarithm of the scores' size falls with that of the damping, per query; NaN where the scores are constant."""
    scores_QN, falls_QN = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for unit in units:
        damping = relative_damping * unit.mean_eigenvalue
        solved_QK = unit.queries_QK / (unit.values_K + damping)
        scores_QN = scores_QN + solved_QK @ unit.train_NK.T
        falls_QN = falls_QN + (solved_QK * damping / (unit.values_K + damping)) @ unit.train_NK.T
    scores_QN, falls_QN = (found - found.mean(1, keepdim=True) for found in (scores_QN, falls_QN))
    return (scores_QN * falls_QN).sum(1) / scores_QN.square().sum(1)


def _check(train: Sequence[Tensor], queries: Sequence[Tensor], dampings: Sequence[float], target: float) -> None:
    sizes = [[tuple(rows.shape[1:]) for rows in side] for side in (train, queries)]
    counts = [{len(rows) for rows in side} for side in (train, queries)]
    if not train or sizes[0] != sizes[1] or any(len(count) != 1 for count in counts) or () in sizes[0]:
        raise BadInput(
            found=f"train rows of {sizes[0]} and query rows of {sizes[1]}",
            needed="the same units on both sides, each with a row per example",
            do="project both alike",
        )
    if not dampings or not all(damping > 0 for damping in dampings) or not 0 < target < 1:
        raise BadInput(
            found=f"relative_dampings={tuple(dampings)}, target={target}",
            needed="positive dampings and a target between 0 and 1",
            do="pass for instance (1e-4, 1e-3, 1e-2, .1, 1)",
        )
    if not all(bool(torch.isfinite(rows).all()) for rows in (*train, *queries)):
        raise NonFinite(found="a NaN or infinite gradient", needed="finite rows", do="drop the examples that have it")
