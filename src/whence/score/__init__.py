"""From a store, or from the training data itself, and queries to scores."""

from whence.score.baselines import bm25, loss_scores, random_scores, tf_idf
from whence.score.blocks import LowRank, QueryBlock, combine, truncate
from whence.score.ensemble import Ensemble, mean_table
from whence.score.exact import ExactScores, Metric, Parts, exact_scores
from whence.score.knn_shapley import knn_shapley, knn_shapley_values
from whence.score.noise_floor import LEAST_SCORES, log_spread_floor, spread_floor
from whence.score.query import Batching, Rows, examples_at_once, gradient_rows, precondition
from whence.score.recall import expected_recall, shortlist_for
from whence.score.representation import representation_similarity
from whence.score.representer import representer_scores
from whence.score.scan import Ends, Top, all_scores, both_ends, row_scores, shard_scores, top_scores, united_top
from whence.score.sizes import RELATIVE, believable_unit, highest_of, impossible_sizes
from whence.score.tokens import by_label, token_scores
from whence.score.whitening import Whitened, mixing_share, whiten, whitened_norms
from whence.score.words import Span, WordIndex, longest_shared, word_index, words_of

__all__ = [
    "LEAST_SCORES",
    "RELATIVE",
    "Batching",
    "Ends",
    "Ensemble",
    "ExactScores",
    "LowRank",
    "Metric",
    "Parts",
    "QueryBlock",
    "Rows",
    "Span",
    "Top",
    "Whitened",
    "WordIndex",
    "all_scores",
    "believable_unit",
    "bm25",
    "both_ends",
    "by_label",
    "combine",
    "exact_scores",
    "expected_recall",
    "examples_at_once",
    "gradient_rows",
    "highest_of",
    "impossible_sizes",
    "knn_shapley",
    "knn_shapley_values",
    "log_spread_floor",
    "longest_shared",
    "loss_scores",
    "mean_table",
    "mixing_share",
    "precondition",
    "random_scores",
    "representation_similarity",
    "representer_scores",
    "row_scores",
    "shard_scores",
    "shortlist_for",
    "spread_floor",
    "tf_idf",
    "token_scores",
    "top_scores",
    "truncate",
    "united_top",
    "whiten",
    "whitened_norms",
    "word_index",
    "words_of",
]
