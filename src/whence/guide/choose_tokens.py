"""From token scores to the tokens to suppress: a threshold, a ranking of documents, and a walk through it (IF-Guide, section 4.2).

The published walk spends its whole budget, also where nothing is left to be marked. Here it ends where documents are no more than chance.

Axes: N examples, T tokens of an example, K tokens of a file.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from whence.errors import BadInput
from whence.guide.token_scores import TokenScores
from whence.score import LEAST_SCORES, log_spread_floor
from whence.settings import GuideConfig

__all__ = ["Ranking", "TokenSelection", "rank_examples", "select_tokens", "upper_quantile"]


@dataclass(frozen=True)
class Ranking:
    """How much of the behaviour each document carries.

    Args:
        counts_N: Its tokens above the threshold.
        sums_N: Their scores, added up.
        ranks_N: From 0 to 1, see `rank_examples`.
    """

    counts_N: Tensor
    sums_N: Tensor
    ranks_N: Tensor


@dataclass(frozen=True)
class TokenSelection:
    """The marked tokens.

    Args:
        threshold: Score that a token has to exceed.
        ranking: Of all documents.
        marked: By place of the document, highest rank first, the places of its marked tokens, ascending.
        scored: Number of scored tokens of all documents.
        floor: Evidence that a document has to exceed; 0 for none.
        stopped: Why no more tokens are marked, in a sentence.
    """

    threshold: float
    ranking: Ranking
    marked: dict[int, list[int]]
    scored: int
    floor: float
    stopped: str


def select_tokens(scores: TokenScores, config: GuideConfig = GuideConfig()) -> TokenSelection:
    """Mark the tokens that the behaviour comes from.

    Documents with evidence above the floor are walked through from the highest rank down. In each the tokens above the threshold are taken,
    highest score first, with their neighbours, until the budget is spent. Tokens that are not scored are never marked.

    Args:
        scores: Of all tokens.
        config: Threshold, window, budget and floor.

    Returns:
        The selection.

    Raises:
        BadInput: If the budget is less than one token, or no token is above the threshold, as among copies of one document.
    """
    scored = sum(int(scores_K.isfinite().sum()) for _, scores_K in scores.parts())
    left = int(config.budget * scored)
    if left == 0:
        raise BadInput(
            found=f"a budget of {config.budget:g} of {scored:,} scored tokens",
            needed="room for one token",
            do="raise the budget",
        )
    threshold = upper_quantile((scores_K for _, scores_K in scores.parts()), config.quantile, scored)
    ranking = rank_examples(scores.examples(), threshold)
    if not ranking.counts_N.any():
        raise BadInput(
            found=f"no token above the quantile {config.quantile:g}, since several share the highest score",
            needed="different scores",
            do="lower the quantile, or drop documents that stand in the data more than once",
        )
    evidence_N = torch.stack([evidence_of(scores_T) for scores_T in scores.examples()])
    floor = _floor(config, evidence_N)
    is_above_N = evidence_N > floor if floor else torch.ones(len(evidence_N), dtype=torch.bool)
    has_marks_N = (ranking.counts_N > 0) & is_above_N
    order = sorted(has_marks_N.nonzero()[:, 0].tolist(), key=lambda row: (-float(ranking.ranks_N[row]), row))
    wanted = {row: _marks(scores_T, threshold, config.window) for row, scores_T in enumerate(scores.examples())}
    marked: dict[int, list[int]] = {}
    for row in order:
        marked[row] = sorted(wanted[row][:left])
        left -= len(marked[row])
        if left == 0:
            break
    stopped = _stopped(config, floor, int(is_above_N.sum()), len(evidence_N), left == 0)
    return TokenSelection(threshold, ranking, marked, scored, floor, stopped)


def evidence_of(scores_T: Tensor) -> Tensor:
    """How strongly a document speaks for the behaviour, whatever its length: the root mean square of its positive token scores.

    Negative scores, of tokens that speak for the safe completions, count as zero and not against it: a document teaches what it teaches.

    Args:
        scores_T: Of its tokens, NaN where not scored.

    Returns:
        One number, 0 for a document without a scored token.
    """
    squares = scores_T.double().clamp_min(0).square().nansum()
    return (squares / scores_T.isfinite().sum().clamp_min(1)).sqrt()


def _floor(config: GuideConfig, evidence_N: Tensor) -> float:
    if config.floor is None:
        return log_spread_floor(evidence_N.numpy())
    return 0.0 if isinstance(config.floor, str) else config.floor


def _stopped(config: GuideConfig, floor: float, above: int, count: int, is_spent: bool) -> str:
    """Why no more tokens are marked."""
    if config.floor == "off":
        standing = "no floor was set, so documents were marked whether or not they are more than chance"
    elif floor == 0:
        standing = f"no floor: among {count:,} documents it cannot be told which are chance, {LEAST_SCORES} are needed"
    else:
        source = "the largest that chance would give" if config.floor is None else "the floor that was set"
        standing = f"{above:,} of {count:,} documents have evidence above {floor:.3g}, {source}"
    if is_spent:
        return f"the budget of {config.budget:.2%} of the tokens is spent; {standing}"
    return f"{standing}, and all their tokens above the threshold are marked; budget is left"


def upper_quantile(parts: Iterable[Tensor], quantile: float, count: int) -> float:
    """The smallest value that at most a share 1 - quantile of all values exceed, exactly, in one pass.

    Only that share is held, so for a high quantile of many values this takes little memory.

    Args:
        parts: All values, some at a time; NaN is left out.
        quantile: From 0 to below 1.
        count: How many values there are.

    Returns:
        One of the values.

    >>> upper_quantile([torch.tensor([5.0, 1.0, 4.0]), torch.tensor([2.0, 3.0])], 0.6, 5)
    3.0
    """
    # Rounded, so that 0.99 of 100 values is 99 of them and not 100.
    keep = count - min(count - 1, max(0, math.ceil(round(quantile * count, 6)) - 1))
    top = torch.empty(0)
    for part_K in parts:
        joined = torch.cat([top.to(part_K), part_K[~part_K.isnan()]])
        top = joined.topk(min(keep, len(joined))).values
    return float(top[-1])


def rank_examples(scores: Iterable[Tensor], threshold: float) -> Ranking:
    """Rank documents by the number n of their tokens above the threshold and the sum f of the scores of these.

    R = 2 n f / (n + f), the harmonic mean, with n and f scaled to run from 0 to 1 over the documents. A document needs both: many
    tokens that barely pass or a single strong one rank low.

    Args:
        scores: Of each document's tokens, shape (T,), NaN where not scored.
        threshold: Score that a token has to exceed.

    Returns:
        The ranking.
    """
    above = [scores_T[scores_T > threshold].double() for scores_T in scores]
    counts_N = torch.tensor([len(some) for some in above])
    sums_N = torch.stack([some.sum() for some in above])
    n, f = _scaled(counts_N.double()), _scaled(sums_N)
    return Ranking(counts_N, sums_N, 2 * n * f / (n + f).clamp_min(torch.finfo(n.dtype).tiny))


def _scaled(values_N: Tensor) -> Tensor:
    """From 0 to 1; where all are equal there is nothing to tell them apart by, and each gets 1."""
    low, high = values_N.min(), values_N.max()
    return (values_N - low) / (high - low) if high > low else torch.ones_like(values_N)


def _marks(scores_T: Tensor, threshold: float, window: int) -> list[int]:
    """Tokens above the threshold, highest score first, each followed by its neighbours."""
    above = (scores_T > threshold).nonzero()[:, 0]
    marks: dict[int, None] = {}
    for centre in above[scores_T[above].argsort(descending=True, stable=True)].tolist():
        near = range(max(0, centre - window), min(len(scores_T), centre + window + 1))
        # The token itself first, so that the last of the budget goes to it and not to a neighbour.
        marks.update(
            dict.fromkeys(
                position for position in sorted(near, key=lambda at: abs(at - centre)) if scores_T[position].isfinite()
            )
        )
    return list(marks)
