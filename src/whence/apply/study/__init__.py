"""Studies of a corpus: which documents sets of queries draw on."""

from whence.apply.study.result import Study
from whence.apply.study.study import study

__all__ = ["Study", "study"]
