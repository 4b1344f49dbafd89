"""From a store and queries to scores."""

from whence.score.baselines import bm25, loss_scores, random_scores
from whence.score.ensemble import mean_table
from whence.score.query import Rows, gradient_rows, precondition
from whence.score.representation import representation_similarity
from whence.score.scan import Top, all_scores, top_scores
from whence.score.tokens import token_scores

__all__ = [
    "Rows",
    "Top",
    "all_scores",
    "bm25",
    "gradient_rows",
    "loss_scores",
    "mean_table",
    "precondition",
    "random_scores",
    "representation_similarity",
    "token_scores",
    "top_scores",
]
