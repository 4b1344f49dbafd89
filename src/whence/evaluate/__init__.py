"""Are the scores true? Tests against retraining, with their uncertainty."""

from whence.evaluate.agreement import Agreement, agreement
from whence.evaluate.bank import Bank, BankConfig, Values, finished_bank, make_bank, open_bank, save_bank
from whence.evaluate.banzhaf import banzhaf_table
from whence.evaluate.battery import battery
from whence.evaluate.brittleness import Brittleness, brittleness
from whence.evaluate.calibration import Bin, Calibration, calibration
from whence.evaluate.command import CommandTrain, FileTrain, as_reported
from whence.evaluate.evaluation import Evaluation, Row, evaluate
from whence.evaluate.fact_tracing import FactTracing, fact_tracing
from whence.evaluate.facts import Facts, synthetic_facts
from whence.evaluate.imports import import_bank, read_array
from whence.evaluate.lds import Ceiling, Judge, Lds, noise_ceiling, predicted
from whence.evaluate.mislabel import Detection, MislabelReport, detection, flip_labels, mislabel_report
from whence.evaluate.page import write_evaluation
from whence.evaluate.planted import Planted, mixed_in, with_shortcut
from whence.evaluate.randomise import Randomised, randomisation, shuffled
from whence.evaluate.ranks import pearson, ranks, spearman
from whence.evaluate.reformat import FORMATS, reformatted
from whence.evaluate.removal import ConditionResult, RemovalResult, random_removals, removal_test
from whence.evaluate.removal_curve import RemovalCurve, removal_curve
from whence.evaluate.retrain import Measure, Retraining, Run, Train, measure_runs
from whence.evaluate.run_lines import import_run_lines
from whence.evaluate.sizes import calibrated
from whence.evaluate.statistics import Interval, mean_interval, t_quantile
from whence.evaluate.subsets import leave_k_out, leave_one_out, random_subsets
from whence.evaluate.table_files import load_table, origin_of_table, save_table
from whence.evaluate.tail_patch import TailPatch, TailSteps, tail_patch
from whence.evaluate.tuning import Tuned, held_out, judged_queries, tune

__all__ = [
    "Agreement",
    "Bank",
    "BankConfig",
    "Bin",
    "Brittleness",
    "Calibration",
    "Ceiling",
    "CommandTrain",
    "ConditionResult",
    "Detection",
    "Evaluation",
    "FORMATS",
    "FactTracing",
    "Facts",
    "FileTrain",
    "Interval",
    "Judge",
    "Lds",
    "Measure",
    "MislabelReport",
    "Planted",
    "Randomised",
    "RemovalCurve",
    "RemovalResult",
    "Retraining",
    "Row",
    "Run",
    "TailPatch",
    "TailSteps",
    "Train",
    "Tuned",
    "Values",
    "agreement",
    "as_reported",
    "banzhaf_table",
    "battery",
    "brittleness",
    "calibrated",
    "calibration",
    "detection",
    "evaluate",
    "fact_tracing",
    "flip_labels",
    "held_out",
    "finished_bank",
    "import_bank",
    "import_run_lines",
    "judged_queries",
    "leave_k_out",
    "leave_one_out",
    "load_table",
    "make_bank",
    "mean_interval",
    "measure_runs",
    "mixed_in",
    "mislabel_report",
    "noise_ceiling",
    "open_bank",
    "origin_of_table",
    "predicted",
    "random_removals",
    "randomisation",
    "random_subsets",
    "ranks",
    "read_array",
    "removal_curve",
    "reformatted",
    "removal_test",
    "save_bank",
    "shuffled",
    "save_table",
    "pearson",
    "spearman",
    "synthetic_facts",
    "t_quantile",
    "tail_patch",
    "tune",
    "with_shortcut",
    "write_evaluation",
]
