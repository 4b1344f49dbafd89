"""Without a behaviour: token scores, the tokens marked, and training that suppresses them."""

from whence.guide.behaviour import Behaviour, behaviour, perplexity, scorer_named
from whence.guide.carry import carry_scores
from whence.guide.choose_tokens import select_tokens
from whence.guide.guide import guide, mark_tokens
from whence.guide.loss import suppress_in_trainer, suppress_marked
from whence.guide.marks import Marks, open_marks
from whence.guide.token_scores import contrast_scores

__all__ = [
    "Behaviour",
    "Marks",
    "behaviour",
    "carry_scores",
    "contrast_scores",
    "guide",
    "mark_tokens",
    "open_marks",
    "perplexity",
    "scorer_named",
    "select_tokens",
    "suppress_in_trainer",
    "suppress_marked",
]
