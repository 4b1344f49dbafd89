"""From a store, or from the training data itself, and queries to scores."""

from whence.score.blocks import LowRank, QueryBlock, combine, truncate
from whence.score.exact import ExactScores, Metric, exact_scores
from whence.score.query import Rows, gradient_rows, precondition
from whence.score.scan import Top, all_scores, top_scores
from whence.score.tokens import token_scores

__all__ = [
    "ExactScores",
    "LowRank",
    "Metric",
    "QueryBlock",
    "Rows",
    "Top",
    "all_scores",
    "combine",
    "exact_scores",
    "gradient_rows",
    "precondition",
    "token_scores",
    "top_scores",
    "truncate",
]
