"""From a store and queries to scores."""

from whence.score.query import Rows, gradient_rows, precondition
from whence.score.scan import Top, all_scores, top_scores
from whence.score.tokens import token_scores

__all__ = ["Rows", "Top", "all_scores", "gradient_rows", "precondition", "token_scores", "top_scores"]
