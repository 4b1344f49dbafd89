"""Studies of a corpus: which documents sets of queries draw on."""

from whence.study.result import Study
from whence.study.study import study

__all__ = ["Study", "study"]
