"""Are the scores true? Tests against retraining, with their uncertainty."""

from whence.evaluate.agreement import Agreement, agreement
from whence.evaluate.ranks import ranks, spearman
from whence.evaluate.removal import ConditionResult, RemovalResult, random_removals, removal_test
from whence.evaluate.retrain import Run, measure_runs
from whence.evaluate.statistics import Interval, mean_interval, t_quantile

__all__ = [
    "Agreement",
    "ConditionResult",
    "Interval",
    "RemovalResult",
    "Run",
    "agreement",
    "mean_interval",
    "measure_runs",
    "random_removals",
    "ranks",
    "removal_test",
    "spearman",
    "t_quantile",
]
