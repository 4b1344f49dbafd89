"""Without a behaviour: token scores, the tokens marked, and training that suppresses them."""

from whence.guide.choose_tokens import select_tokens
from whence.guide.guide import guide
from whence.guide.loss import suppress_in_trainer, suppress_marked
from whence.guide.marks import Marks, open_marks
from whence.guide.token_scores import contrast_scores

__all__ = [
    "Marks",
    "contrast_scores",
    "guide",
    "open_marks",
    "select_tokens",
    "suppress_in_trainer",
    "suppress_marked",
]
