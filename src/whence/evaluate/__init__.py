"""Are the scores true? Tests against retraining, with their uncertainty."""

from whence.evaluate.agreement import Agreement, agreement
from whence.evaluate.brittleness import Brittleness, brittleness
from whence.evaluate.calibration import Bin, Calibration, calibration
from whence.evaluate.fact_tracing import FactTracing, fact_tracing
from whence.evaluate.facts import Facts, synthetic_facts
from whence.evaluate.mislabel import Detection, MislabelReport, detection, flip_labels, mislabel_report
from whence.evaluate.ranks import ranks, spearman
from whence.evaluate.removal import ConditionResult, RemovalResult, random_removals, removal_test
from whence.evaluate.removal_curve import RemovalCurve, removal_curve
from whence.evaluate.retrain import Run, measure_runs
from whence.evaluate.statistics import Interval, mean_interval, t_quantile
from whence.evaluate.surrogate import SurrogateChoice, choose_by_surrogate
from whence.evaluate.tail_patch import TailPatch, tail_patch

__all__ = [
    "Agreement",
    "Bin",
    "Brittleness",
    "Calibration",
    "ConditionResult",
    "Detection",
    "FactTracing",
    "Facts",
    "Interval",
    "MislabelReport",
    "RemovalCurve",
    "RemovalResult",
    "Run",
    "SurrogateChoice",
    "TailPatch",
    "agreement",
    "brittleness",
    "calibration",
    "choose_by_surrogate",
    "detection",
    "fact_tracing",
    "flip_labels",
    "mean_interval",
    "measure_runs",
    "mislabel_report",
    "random_removals",
    "ranks",
    "removal_curve",
    "removal_test",
    "spearman",
    "synthetic_facts",
    "t_quantile",
    "tail_patch",
]
