"""Which training examples to keep, and whether that was right."""

from whence.select.budget import Budget
from whence.select.duplicates import near_duplicates
from whence.select.in_training import Chosen, TrainingSelection, select_trainer
from whence.select.proof import Proof, prove
from whence.select.select import select
from whence.select.selection import Selection, load_selection
from whence.select.values import value_table

__all__ = [
    "Budget",
    "Chosen",
    "Proof",
    "Selection",
    "TrainingSelection",
    "load_selection",
    "near_duplicates",
    "prove",
    "select",
    "select_trainer",
    "value_table",
]
