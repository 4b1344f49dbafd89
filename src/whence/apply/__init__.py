"""What people do with scores: each ends in something to act on."""

from whence.apply.guide import guide
from whence.apply.guide_loss import suppress_in_trainer, suppress_marked
from whence.apply.guide_marks import Marked, Marks, open_marks
from whence.apply.guide_scores import TokenScores, contrast_scores
from whence.apply.guide_select import GuideConfig, Selection, select_tokens

__all__ = [
    "GuideConfig",
    "Marked",
    "Marks",
    "Selection",
    "TokenScores",
    "contrast_scores",
    "guide",
    "open_marks",
    "select_tokens",
    "suppress_in_trainer",
    "suppress_marked",
]
