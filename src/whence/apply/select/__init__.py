"""Which training examples to keep, and whether that was right."""

from whence.apply.select.budget import Budget
from whence.apply.select.duplicates import near_duplicates
from whence.apply.select.proof import Proof, prove
from whence.apply.select.select import select
from whence.apply.select.selection import Selection, load_selection
from whence.apply.select.values import value_table

__all__ = ["Budget", "Proof", "Selection", "load_selection", "near_duplicates", "prove", "select", "value_table"]
