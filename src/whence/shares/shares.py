"""From scores per training example to shares per source, and what they are worth in money.

Axes: Q queries, N training examples, L lines of the report.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from whence.errors import BadInput
from whence.progress import meter
from whence.records import ScoreTable
from whence.settings import SharesConfig, records_only
from whence.shares.alike_queries import alike_queries, profile
from whence.shares.answers import Answers
from whence.shares.example_facts import ExampleFacts, of_parts
from whence.shares.intervals import over_models, over_queries, weighted_mean
from whence.shares.noise_floor import floor_words
from whence.shares.payout import Payout, Settled, apportion, settle
from whence.shares.robust import Pools, counted_weights, pools_of, robust_values
from whence.shares.rules import Rule
from whence.shares.sources import LineKind, Lines, lines_of
from whence.shares.tables import Tables, tables_of

__all__ = ["WHOLE", "ShareLine", "Shares", "shares"]

# Shares are whole trillionths: finer than a cent of ten billion, and exact in a float and in decimals.
WHOLE = 10**12
# Beyond these, sums and ratios of weights are no numbers any more.
_MOST_WEIGHT, _LEAST_WEIGHT = 1e100, 1e-100


@dataclass(frozen=True)
class ShareLine:
    """One line of a report: a source, or what no source can be named for.

    Args:
        kind: "source"; or "unknown" (examples without a source), "withheld" (by the robust rule), "noise" (scores below the noise floor),
            "none" (queries that nothing speaks for).
        name: Name of the source, or what the line is for.
        examples: Training examples of it.
        share: Between 0 and 1, in whole trillionths; the shares of all lines add up to 1 exactly.
        over_models: 95 % interval with other models trained alike; None with one model.
        over_queries: 95 % interval with other queries of the same kind; None with one query, or where no draw had a query with weight.
        raised: Sum of its positive scores, mean over queries by weight, in the table's unit.
        lowered: Sum of its negative scores, likewise.
        settled: What it gets of the payout; None without one.
    """

    kind: LineKind
    name: str
    examples: int
    share: float
    over_models: tuple[float, float] | None
    over_queries: tuple[float, float] | None
    raised: float
    lowered: float
    settled: Settled | None = None


@dataclass(frozen=True)
class Shares:
    """Shares per source, for each query and in total; made by `whence.shares.shares`, written by `whence.shares.write_shares`.

    Args:
        lines: Sources by falling share, then one line each for what cannot be attributed.
        query_ids: Names of the queries.
        weights: What each query counts.
        shares: Shares of each query before rounding, shape (queries, lines), float64.
        rule: How scores became shares.
        floors: Noise floor of each query, in the table's unit; 0 for none, and where it differs by example (`floor_errors`).
        payout: What was split; None for shares alone.
        tables: The scores that it all comes from, as tables or as answers of a service.
        sources: By id of a training example the name of its source, empty where unknown; without those that are not listed.
        unlisted: Training examples that the sources do not mention.
        draws: Bootstrap draws.
        seed: Of the draws.
        facts: What is known of the examples besides; None for nothing.
        counted: What each query counted after the robust rule; the weights without it.
        leaders: The first query that each one nearly repeats.
        has_control: Whether the robust rule subtracted what lengths of gradients alone give.
    """

    lines: tuple[ShareLine, ...]
    query_ids: tuple[str, ...]
    weights: tuple[float, ...]
    shares: np.ndarray = field(repr=False)
    rule: Rule
    floors: tuple[float, ...]
    payout: Payout | None
    tables: Tables | Answers = field(repr=False)
    sources: Mapping[str, str] = field(repr=False)
    unlisted: int
    draws: int
    seed: int
    facts: ExampleFacts | None = field(default=None, repr=False)
    counted: tuple[float, ...] = ()
    leaders: tuple[int, ...] = ()
    has_control: bool = False

    @property
    def is_robust(self) -> bool:
        """Whether the robust rules were used."""
        return any(line.kind == "withheld" for line in self.lines)

    @property
    def without_control(self) -> str:
        """Why the robust rule did not subtract what lengths of gradients alone give; empty if it did, or was not used."""
        if self.has_control or not self.is_robust:
            return ""
        why = "it was not asked for"
        if self.facts is None or not self.facts.lengths:
            why = "lengths of gradients are not at hand"
        elif self.rule.floor == "off" or self.rule.floor_errors is not None:
            why = "there is no noise floor that all examples share"
        return f"the norm-only control is not subtracted: {why}"

    @property
    def attributed(self) -> float:
        """Share of all that goes to sources with a name."""
        return sum(round(line.share * WHOLE) for line in self.lines if line.kind == "source") / WHOLE

    @property
    def noise_floor(self) -> str:
        """What the noise floor is and how it was found, in a sentence."""
        rule, tables = self.rule, self.tables
        return floor_words(rule.floor, rule.floor_errors, self.floors, tables.sizes, tables.unit)

    @property
    def over_queries(self) -> str:
        """How intervals over queries were made, or why there are none."""
        if len(self.query_ids) > 1 and self.lines[0].over_queries is None:
            return f"none: all {self.draws:,} draws were of queries without weight; more draws are needed"
        return "bootstrap"

    def held(self) -> dict[str, str]:
        """By name of a source what is held back for it, as amounts: what `carried` of the next payout takes."""
        if self.payout is None:
            return {}
        return {
            line.name: self.payout.text(line.settled.held)
            for line in self.lines
            if line.settled is not None and line.settled.held
        }


@records_only(config=SharesConfig)
def shares(
    tables: Answers | ScoreTable | str | Path | Sequence[ScoreTable | str | Path] | Mapping[str, ScoreTable | str | Path],
    sources: Mapping[str, str],
    *,
    config: SharesConfig = SharesConfig(),
    weights: Mapping[str, float] | None = None,
    carried: Mapping[str, str] | None = None,
    facts: ExampleFacts | None = None,
    quiet: bool = False,
) -> Shares:
    """Shares of sources in what a model does: for each query, in total, and in money.

    Each query is split among the sources by a rule, so that its shares add up to 1; the total is the mean over queries by weight. What has no
    known source, lies below the noise floor or has nothing to speak for it is a line of its own and is never spread over the others.
    The shares are what a method of attribution predicts; hold it against retraining (`whence.evaluate`) before money depends on it.

    >>> import torch, whence
    >>> table = whence.ScoreTable(torch.tensor([[3.0, 1.0, -2.0]]), ("q",), ("a", "b", "c"), "nats", "by hand")
    >>> money = whence.settings.SharesConfig(payout="10.00 EUR")
    >>> found = whence.shares.shares(table, {"a": "press", "b": "radio", "c": "press"}, config=money)
    >>> [(line.name, line.share, line.settled.paid) for line in found.lines[:2]]
    [('press', 0.75, 750), ('radio', 0.25, 250)]

    Args:
        tables: Scores, as tables or as folders that `whence score` or `whence attribute` wrote; read in float32, as they are written. Or the
            answers of a service, from `whence.shares.answers_of`.
        sources: By id of a training example the name of its source, such as `whence.shares.named_sources(records, by="author")`; "" for
            unknown.
        config: How scores become shares, and shares money.
        weights: By name of a query what it counts, such as how often it was asked; None counts all alike.
        carried: By name of a source what was held back before, which is due now as well.
        facts: Which texts repeat others and how long gradients are: for `config.robust`, and to tell of attempts to game the payout.
        quiet: No progress on stderr.

    Returns:
        The shares.

    Raises:
        BadInput: If options do not fit each other or the tables.
    """
    tables_read = _answers(tables, config) if isinstance(tables, Answers) else tables_of(tables, config.several)
    rule, money = _rule(config), _payout(config, carried)
    if rule.floor_errors is not None and tables_read.num_models < 3:
        raise BadInput(
            found=f"a noise floor in standard errors over {tables_read.num_models} model(s)",
            needed="tables of three models or more, with several='models'",
            do="pass them, or a floor in the unit of the scores",
        )
    amounts = {} if money is None else {name: money.units(text) for name, text in (carried or {}).items()}
    before = {name: amount for name, amount in amounts.items() if amount}
    lines = lines_of(tables_read.train_ids, sources, before, robust=config.robust)
    given_Q = _weights(tables_read.query_ids, weights)
    facts = None if facts is None else of_parts(facts, tables_read.train_ids)
    has_control = _has_control(config, facts)
    pools = pools_of(tables_read.train_ids, lines, _checked(facts), has_control=has_control) if config.robust else None
    split = _split(tables_read, rule, lines, pools, given_Q, quiet)
    weights_Q = split.counted_Q
    total_L = weighted_mean(split.shares_QL, weights_Q)
    order = sorted(range(len(total_L)), key=lambda line: (lines.kinds[line] != "source", -total_L[line]))

    # What is lost to rounding goes by the order in which lines are shown.
    whole = apportion(WHOLE, [float(total_L[line]) for line in order])
    names = [lines.names[line] if lines.kinds[line] == "source" else None for line in order]
    settled = [None] * len(order) if money is None else settle(money, names, whole, before)

    totals = [weighted_mean(each_QL, weights_Q) for each_QL in split.without_MQL]
    ends_of_models = over_models(total_L, totals) if totals else None
    is_many = len(weights_Q) > 1
    ends_of_queries = over_queries(split.shares_QL, weights_Q, draws=config.draws, seed=config.seed) if is_many else None
    weight = float(sum(weights_Q.tolist()))
    settled_lines = tuple(
        ShareLine(
            lines.kinds[line],
            lines.names[line],
            lines.examples[line],
            whole[index] / WHOLE,
            _ends(ends_of_models, line),
            _ends(ends_of_queries, line),
            float(split.raised_L[line]) / weight,
            float(split.lowered_L[line]) / weight,
            settled[index],
        )
        for index, line in enumerate(order)
    )
    return Shares(
        settled_lines, tables_read.query_ids, tuple(given_Q.tolist()), split.shares_QL[:, order], rule,
        tuple(split.floors_Q.tolist()), money, tables_read, lines.listed(tables_read.train_ids), lines.unlisted, config.draws, config.seed,
        facts, tuple(weights_Q.tolist()), tuple(split.leaders), has_control,
    )  # fmt: skip


@dataclass(frozen=True)
class _Split:
    """Shares of each query and without each model (where there are several), sums by sign, floors, what each counts and is like."""

    shares_QL: np.ndarray
    without_MQL: list[np.ndarray]
    raised_L: np.ndarray
    lowered_L: np.ndarray
    floors_Q: np.ndarray
    counted_Q: np.ndarray
    leaders: list[int]


def _split(
    tables: Tables | Answers, rule: Rule, lines: Lines, pools: Pools | None, weights_Q: np.ndarray, quiet: bool
) -> _Split:
    shares_QL = np.zeros((len(tables.query_ids), len(lines.names)))
    without_MQL = [np.zeros_like(shares_QL) for _ in range(tables.num_models if tables.num_models > 1 else 0)]
    raised_QL, lowered_QL = np.zeros_like(shares_QL), np.zeros_like(shares_QL)
    floors_Q = np.zeros(len(weights_Q))
    profiles = []
    with meter("shares", len(weights_Q), quiet=quiet) as progress:
        for query in range(len(weights_Q)):
            scores_N, of_examples, floors_Q[query] = tables.placed(query, rule, lines)
            rows_N = tables.rows(query)
            shares_QL[query] = _shares(rule, lines, pools, (scores_N, of_examples, floors_Q[query]), rows_N)
            for sums_L, kept_N in ((raised_QL[query], np.maximum(scores_N, 0)), (lowered_QL[query], np.minimum(scores_N, 0))):
                sums_L += np.bincount(of_examples, weights=kept_N, minlength=len(sums_L))
            for model, without_QL in enumerate(without_MQL):
                without_QL[query] = _shares(rule, lines, pools, tables.without(model, query, rule, lines), rows_N)
            is_for = (scores_N > 0) & (of_examples != lines.noise) & (rows_N >= 0)
            profiles.append(profile(rows_N[is_for], scores_N[is_for]))
            progress.advance()
    leaders = alike_queries(profiles)
    counted_Q = weights_Q if pools is None else counted_weights(weights_Q, leaders)
    raised_L, lowered_L = (_weighted_sum(sums_QL, counted_Q) for sums_QL in (raised_QL, lowered_QL))
    return _Split(shares_QL, without_MQL, raised_L, lowered_L, floors_Q, counted_Q, leaders)


def _shares(
    rule: Rule, lines: Lines, pools: Pools | None, placed: tuple[np.ndarray, np.ndarray, float], rows_N: np.ndarray
) -> np.ndarray:
    """Shares of one query, shape (L,), robust where there are pools."""
    scores_N, of_examples = placed[:2] if pools is None else robust_values(placed, rows_N, pools, lines)
    return rule.shares(scores_N, of_examples, lines)


def _weighted_sum(sums_QL: np.ndarray, weights_Q: np.ndarray) -> np.ndarray:
    """One query after another, so that it comes out the same everywhere."""
    total_L = np.zeros(sums_QL.shape[1])
    for sums_L, weight in zip(sums_QL, weights_Q.tolist(), strict=True):
        total_L += weight * sums_L
    return total_L


def _has_control(config: SharesConfig, facts: ExampleFacts | None) -> bool:
    """Whether the norm-only control is subtracted: it is told by lengths of gradients, and by one floor of a query for all."""
    has_floor = config.floor != "off" and config.floor_errors is None
    return config.robust and config.norm_control and has_floor and facts is not None and bool(facts.lengths)


def _checked(facts: ExampleFacts | None) -> ExampleFacts:
    """What is known of the examples, if near-duplicates can be told.

    Raises:
        BadInput: If their texts are not known.
    """
    if facts is None or facts.repeats is None:
        raise BadInput(
            found="robust rules without texts of the training examples",
            needed="texts, by which near-duplicates are found",
            do="pass --records with texts, or --store (facts=ExampleFacts.of(texts) in Python)",
        )
    return facts


def _answers(answers: Answers, config: SharesConfig) -> Answers:
    """Answers of a service, of which there is one sort.

    Raises:
        BadInput: If it is said what several are.
    """
    if config.several is not None:
        raise BadInput(found=f"several={config.several!r} for answers of a service", needed="tables", do="leave it out")
    return answers


def _rule(config: SharesConfig) -> Rule:
    return Rule(name=config.rule, temperature=config.temperature, floor=config.floor, floor_errors=config.floor_errors)


def _payout(config: SharesConfig, carried: Mapping[str, str] | None) -> Payout | None:
    """What is to be split.

    Raises:
        BadInput: If something was carried into no payout.
    """
    if config.payout is not None:
        return Payout.read(config.payout, minimum=config.minimum)
    if carried:
        raise BadInput(found="a carried amount without a payout", needed="an amount to split", do="pass payout")
    return None


def _weights(query_ids: Sequence[str], weights: Mapping[str, float] | None) -> np.ndarray:
    """What each query counts.

    Raises:
        BadInput: If a weight is missing, of no query, or no number that can weigh.
    """
    if weights is None:
        return np.ones(len(query_ids))
    if strays := sorted(set(weights) ^ set(query_ids)):
        raise BadInput(
            found=f"{len(weights)} weights for {len(query_ids)} queries, of which {strays[0]!r} is only on one side",
            needed=f"one for every query, by its name, such as {query_ids[0]!r}",
            do="write 0 for a query that does not count",
        )
    found_Q = np.array([float(weights[name]) for name in query_ids])
    if not (found_Q <= _MOST_WEIGHT).all() or (found_Q < 0).any() or not (found_Q >= _LEAST_WEIGHT).any():
        raise BadInput(
            found="weights of which one is negative or no number, or all are zero",
            needed="numbers that are not negative, none above 1e100, one of them 1e-100 or above",
            do="correct the weights",
        )
    return found_Q


def _ends(ends: tuple[np.ndarray, np.ndarray] | None, line: int) -> tuple[float, float] | None:
    return None if ends is None else (float(ends[0][line]), float(ends[1][line]))
