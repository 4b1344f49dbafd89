"""What the bench shows besides LDS: removal curves, brittleness, wrong labels.

Axes: N training examples, Q queries.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from whence.bench.settings import Setting
from whence.bench.small import SmallRetrain
from whence.data import digest_of
from whence.evaluate import Brittleness, MislabelReport, RemovalCurve, Retraining, brittleness, mislabel_report, removal_curve
from whence.pipeline import attribute, self_influence
from whence.records import ScoreTable
from whence.score import loss_scores
from whence.settings import EKFAC, GradDot, Runtime

__all__ = ["Correct", "brittle", "curves", "mislabels"]

_FRACTIONS = (0.01, 0.05, 0.1)
_KS = (20, 40, 80)
_SEEDS = range(2000, 2003)
_BRITTLE_QUERIES = 12


@dataclass(frozen=True)
class Correct:
    """What brittleness measures: 1 for each query whose class is right, 0 otherwise.

    Args:
        inputs_QD: The queries.
        targets_Q: Their classes.
    """

    inputs_QD: Tensor
    targets_Q: Tensor

    @property
    def fingerprint(self) -> str:
        """Digest of the queries."""
        return digest_of("correct", self.inputs_QD, self.targets_Q).hex()

    def __call__(self, model: nn.Module) -> Tensor:
        """One number per query, shape (Q,)."""
        with torch.no_grad():
            return (model(self.inputs_QD).argmax(1) == self.targets_Q).double()


def curves(setting: Setting, tables: Sequence[ScoreTable], *, workers: int, quiet: bool = False) -> list[RemovalCurve]:
    """Retraining without the highest scored shares of the data, per table, where a training run is a matter of seconds."""
    if not isinstance(setting.retrain, SmallRetrain):
        return []
    return [
        removal_curve(
            setting.retrain,
            setting.measure,
            table,
            Retraining(
                seeds=_SEEDS,
                folder=setting.folder / "removed",
                fingerprint=setting.retrain.fingerprint + setting.measure.fingerprint,
                workers=workers,
                quiet=quiet,
            ),
            fractions=_FRACTIONS,
        )
        for table in tables
    ]


def brittle(setting: Setting, tables: Sequence[ScoreTable], *, workers: int, quiet: bool = False) -> list[Brittleness]:
    """How few proponents carry a class, for the first queries of a classifier; none for other settings."""
    if not isinstance(setting.retrain, SmallRetrain) or setting.retrain.targets_N.is_floating_point():
        return []
    count = _BRITTLE_QUERIES
    correct = Correct(setting.measure.inputs_QD[:count], setting.measure.targets_Q[:count])
    return [
        brittleness(
            setting.retrain,
            correct,
            replace(table, scores=table.scores[:count], query_ids=table.query_ids[:count]),
            setting.retrain.targets_N,
            correct.targets_Q,
            Retraining(
                seeds=_SEEDS,
                folder=setting.folder / "brittle",
                fingerprint=setting.retrain.fingerprint + correct.fingerprint,
                workers=workers,
                quiet=quiet,
            ),
            ks=_KS,
        )
        for table in tables
    ]


def mislabels(setting: Setting) -> MislabelReport | None:
    """Wrong labels found by self-influence, beside the plain loss; None for a setting without wrong labels."""
    if setting.flipped_N is None:
        return None
    task, train = setting.task, setting.train
    method, quiet = EKFAC(factors=setting.folder / "work" / "mislabels"), Runtime(quiet=True)
    losses_N = loss_scores(task, train, setting.queries, quiet=True).scores[0]
    by_ekfac = self_influence(task, train, method=method, runtime=quiet)
    by_norm = self_influence(task, train, method=GradDot(), runtime=quiet)
    table = attribute(task, train, setting.queries, method=method, runtime=quiet)
    rankings: Mapping[str, Tensor] = {
        "self-influence, ekfac": by_ekfac.scores[0],
        "gradient norm": by_norm.scores[0],
        # An example that pulls against the others of its class has a low score for the queries on average.
        "harm to the queries, ekfac": -table.scores.mean(0),
    }
    return mislabel_report(rankings, losses_N, setting.flipped_N)
