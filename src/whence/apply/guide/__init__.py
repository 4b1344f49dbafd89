"""Without a behaviour: token scores, the tokens marked, and training that suppresses them."""

from whence.apply.guide.choose_tokens import select_tokens
from whence.apply.guide.guide import guide
from whence.apply.guide.loss import suppress_in_trainer, suppress_marked
from whence.apply.guide.marks import Marks, open_marks
from whence.apply.guide.token_scores import contrast_scores

__all__ = [
    "Marks",
    "contrast_scores",
    "guide",
    "open_marks",
    "select_tokens",
    "suppress_in_trainer",
    "suppress_marked",
]
