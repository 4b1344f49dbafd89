"""Linear datamodeling score: do sums of scores rank the outcomes of retraining? With its interval and its noise ceiling.

Axes: M subsets, S seeds, N training examples, Q queries, D bootstrap draws.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from whence.errors import BadInput
from whence.evaluate.bank import Bank
from whence.evaluate.ranks import ranks, spearman
from whence.evaluate.statistics import Interval, bootstrap_interval, drawn_counts, or_none
from whence.evaluate.tables import checked
from whence.records import ScoreTable

__all__ = ["Ceiling", "Judge", "Lds", "noise_ceiling", "predicted"]

_DRAWS = 1000


@dataclass(frozen=True)
class Ceiling:
    """What the noise of training leaves to be predicted.

    Args:
        seed_to_seed: Mean over queries and pairs of seeds of the Spearman correlation over subsets between two single runs; NaN for one seed.
        reachable: LDS that a perfect prediction of the expected measurement would have against the mean over the bank's seeds: the square
            root of that mean's reliability (Spearman-Brown), averaged over queries; NaN for one seed.
        num_seeds: Seeds in the mean.
        num_repeated: Subsets that the first two are from, where only some have a second seed; None if all are in it.
    """

    seed_to_seed: float
    reachable: float
    num_seeds: int
    num_repeated: int | None = None


@dataclass(frozen=True)
class Lds:
    """Linear datamodeling score of one table (Park et al. 2023, section 2.3).

    Args:
        per_query_Q: Spearman correlation over subsets between predicted and measured, per query.
        interval: Mean over queries with a 95 % interval that covers other queries and other subsets.
        same_seed: The same against each seed's own runs, averaged over seeds: what is predicted of a single training run.
        ceiling: Of the bank, for these queries.
        draws_D: Bootstrap draws of the mean; the same draws for every table of one `Judge`, so that differences are paired.
    """

    per_query_Q: Tensor
    interval: Interval
    same_seed: float
    ceiling: Ceiling
    draws_D: Tensor

    @property
    def share(self) -> float:
        """Share of what can be reached; NaN if the ceiling is not known."""
        return self.interval.mean / self.ceiling.reachable

    def minus(self, other: "Lds") -> Interval:
        """Difference to another table's score, paired by bootstrap draw."""
        mean = self.interval.mean - other.interval.mean
        return bootstrap_interval(mean, self.draws_D - other.draws_D)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return {
            "lds": self.interval.to_dict(),
            "same_seed": self.same_seed,
            "share_of_ceiling": or_none(self.share),
            "ceiling": or_none(self.ceiling.reachable),
            "seed_to_seed": or_none(self.ceiling.seed_to_seed),
            "per_query": self.per_query_Q.tolist(),
        }


class Judge:
    """Holds tables against one bank, all with the same queries and the same bootstrap draws.

    Args:
        bank: The truth.
        draws: Bootstrap draws for intervals.
        seed: Of the draws.

    Raises:
        BadInput: If the bank has fewer than three subsets.
    """

    def __init__(self, bank: Bank, *, draws: int = _DRAWS, seed: int = 0):
        num_subsets, _, num_queries = bank.values_MSQ.shape
        if num_subsets < 3:
            raise BadInput(found=f"a bank of {num_subsets} subsets", needed="3 or more to rank", do="retrain on more subsets")
        self.bank = bank
        generator = torch.Generator().manual_seed(seed)
        # How often each subset is in a draw.
        self._weights_DM = drawn_counts(num_subsets, draws, generator)
        self._queries_DQ = torch.randint(num_queries, (draws, num_queries), generator=generator)
        self._actual_ranks_QM = ranks(bank.actual_MQ.T.contiguous())

    @cached_property
    def ceiling(self) -> Ceiling:
        """Of the bank."""
        return noise_ceiling(self.bank)

    def lds(self, table: ScoreTable) -> Lds:
        """Score one table.

        Args:
            table: Scores for the bank's queries and examples; order does not matter, ids do.

        Returns:
            The score with its interval.

        Raises:
            BadInput: If ids of the bank are missing in the table, or the table was tuned on some of these queries.
        """
        return self.lds_of(predicted(table, self.bank))

    def lds_of(self, predicted_MQ: Tensor) -> Lds:
        """Score predictions themselves.

        Args:
            predicted_MQ: As `predicted` makes them.

        Returns:
            The score with its interval.
        """
        predicted_QM = predicted_MQ.T.contiguous()
        per_query_Q = spearman(predicted_QM, self.bank.actual_MQ.T)
        by_seed = [spearman(predicted_QM, self.bank.values_MSQ[:, seed].T).mean() for seed in range(len(self.bank.seeds))]
        # Subsets and queries are drawn independently, which covers both kinds of chance (Owen 2007, the pigeonhole bootstrap).
        values_DQ = _weighted_correlation(ranks(predicted_QM), self._actual_ranks_QM, self._weights_DM)
        draws_D = values_DQ.gather(1, self._queries_DQ).mean(1)
        same_seed = float(torch.stack(by_seed).mean())
        return Lds(per_query_Q, bootstrap_interval(float(per_query_Q.mean()), draws_D), same_seed, self.ceiling, draws_D)


def predicted(table: ScoreTable, bank: Bank) -> Tensor:
    """Sum of the scores of each subset's examples: the measurement that the table predicts, up to a constant per query.

    Args:
        table: Scores for the bank's examples and at least its queries.
        bank: The subsets.

    Returns:
        Shape (M, Q), float64.

    Raises:
        BadInput: If ids of the bank are missing in the table, or the table was tuned on some of these queries.
    """
    seen = set(table.tuned_on) & set(bank.query_ids)
    if seen:
        raise BadInput(
            found=f"{len(seen)} queries that {table.method!r} was tuned on",
            needed="queries that no hyper-parameter was chosen with",
            do="evaluate on the other half: bank.of_queries(held_out(bank.query_ids)[1])",
        )
    scores_QN = checked(table)
    rows = _indices("queries", table.query_ids, bank.query_ids)
    columns = _indices("training examples", table.train_ids, bank.train_ids)
    if len(table.train_ids) != len(bank.train_ids):
        raise BadInput(
            found=f"{table.method!r} with scores of {len(table.train_ids)} training examples for a bank of {len(bank.train_ids)}",
            needed="the same examples in both: ids that are only numbers fit any data",
            do="score the data that the bank was made from",
        )
    return bank.masks_MN.double() @ scores_QN[rows][:, columns].T


def noise_ceiling(bank: Bank) -> Ceiling:
    """How well one half of the seeds predicts the other, and what that leaves to be reached.

    With r the correlation between single seeds, the mean over S seeds has the reliability S r / (1 + (S - 1) r) (Spearman 1910, Brown
    1910), and a perfect prediction of the expectation correlates with it by the square root of that. Where only some subsets have a second
    seed (`Bank.repeated`), r is that of these, its mean over queries.
    """
    num_seeds, source = len(bank.seeds), bank if bank.repeated is None else bank.repeated
    if len(source.seeds) < 2 or len(source.masks_MN) < 3:
        return Ceiling(math.nan, math.nan, num_seeds)
    values_SQM = source.values_MSQ.permute(1, 2, 0)
    pairs = [spearman(values_SQM[a], values_SQM[b]) for a, b in combinations(range(len(source.seeds)), 2)]
    single_Q = torch.stack(pairs).mean(0)
    if bank.repeated is not None:
        # Of a few subsets a single query's correlation is mostly chance, and the root of chance is not 0 on average.
        single_Q = single_Q.mean(0, keepdim=True)
    reliability_Q = (num_seeds * single_Q / (1 + (num_seeds - 1) * single_Q)).clamp(0.0, 1.0)
    num_repeated = None if bank.repeated is None else len(source.masks_MN)
    return Ceiling(float(single_Q.mean()), float(reliability_Q.sqrt().mean()), num_seeds, num_repeated)


def _weighted_correlation(a_QM: Tensor, b_QM: Tensor, weights_DM: Tensor) -> Tensor:
    """Pearson correlation of each row under each draw's weights, shape (D, Q); 0 where a row is constant.

    Ranks are those of all subsets, not of the drawn ones: to first order the same, and a matter of matrix products.
    """
    total = weights_DM.sum(1, keepdim=True)
    # Centred first, so that nothing cancels.
    a_QM, b_QM = (x - x.mean(1, keepdim=True) for x in (a_QM, b_QM))
    mean_a, mean_b, aa, bb, ab = (weights_DM @ x.T / total for x in (a_QM, b_QM, a_QM * a_QM, b_QM * b_QM, a_QM * b_QM))
    scale = (aa - mean_a.square()).clamp_min(0) * (bb - mean_b.square()).clamp_min(0)
    return torch.where(scale > 0, (ab - mean_a * mean_b) / scale.clamp_min(1e-300).sqrt(), 0.0)


def _indices(what: str, there: tuple[str, ...], wanted: tuple[str, ...]) -> Tensor:
    index_of = {name: index for index, name in enumerate(there)}
    missing = [name for name in wanted if name not in index_of]
    if missing:
        raise BadInput(
            found=f"a table without {len(missing)} of the bank's {len(wanted)} {what}, such as {missing[0]!r}",
            needed="a score for each",
            do="score the data that the bank was made from, with the same ids",
        )
    return torch.tensor([index_of[name] for name in wanted], dtype=torch.long)
