"""Are the scores true? Tests against retraining, with their uncertainty."""

from whence.evaluate.bank import Bank, Values, make_bank, open_bank, save_bank
from whence.evaluate.ranks import ranks, spearman
from whence.evaluate.removal import ConditionResult, RemovalResult, random_removals, removal_test
from whence.evaluate.retrain import Run, measure_runs
from whence.evaluate.statistics import Interval, mean_interval, t_quantile
from whence.evaluate.subsets import leave_k_out, leave_one_out, random_subsets

__all__ = [
    "Bank",
    "ConditionResult",
    "Interval",
    "RemovalResult",
    "Run",
    "Values",
    "leave_k_out",
    "leave_one_out",
    "make_bank",
    "mean_interval",
    "measure_runs",
    "open_bank",
    "random_removals",
    "random_subsets",
    "ranks",
    "removal_test",
    "save_bank",
    "spearman",
    "t_quantile",
]
