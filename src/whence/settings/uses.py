"""What people set of the uses of scores: what a model writes, which tokens and examples are chosen, what is read off, who gets what."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from whence.errors import BadInput, UnknownOption
from whence.settings.checks import typed

__all__ = [
    "Amount",
    "By",
    "DistilConfig",
    "GuideConfig",
    "ProbeConfig",
    "RuleName",
    "SampleConfig",
    "SelectConfig",
    "SelectInTraining",
    "Several",
    "SharesConfig",
    "StudyConfig",
    "Writing",
]

Amount = str | int | float
"""Of examples (500), a share of them (0.5 or "50%"), or "20000 tokens"."""

By = Literal["influence", "self-influence", "loss", "knn-shapley", "random"]
"""What training examples are ranked by."""

RuleName = Literal["positive", "softmax", "signed"]
"""How the scores of a query become shares."""

Several = Literal["queries", "models"]
"""What several tables of scores are of."""


@dataclass(frozen=True, kw_only=True)
@typed
class Writing:
    """How a model writes what is then explained.

    Args:
        max_new_tokens: Tokens to write at most.
        temperature: 0 takes the most likely token each time; else tokens are drawn, at 1 as often as the model says.
        seed: Of the draws.

    Raises:
        BadInput: If a number is out of range.
    """

    max_new_tokens: int = 40
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self):
        if self.max_new_tokens < 1 or not self.temperature >= 0:
            raise BadInput(
                found=f"max_new_tokens={self.max_new_tokens}, temperature={self.temperature}",
                needed="1 or more, and 0 or more",
                do="correct them, or leave them out",
            )


@dataclass(frozen=True, kw_only=True)
@typed
class Contrast:
    """Why this and not that.

    Args:
        completion: What the model said.
        foil: What it might have said instead.

    Raises:
        BadInput: If one is empty, or both are the same.
    """

    completion: str
    foil: str

    def __post_init__(self):
        if not self.completion or not self.foil or self.completion == self.foil:
            raise BadInput(
                found=f"the completion {self.completion[:40]!r} and the foil {self.foil[:40]!r}",
                needed="two texts that differ",
                do="say what is asked about, and what it is held against",
            )


@dataclass(frozen=True, kw_only=True)
@typed
class GuideConfig:
    """Which tokens are marked.

    Args:
        quantile: Only tokens whose score is above this quantile of all of them start a mark.
        window: Tokens before and after each of them that are marked along with it.
        budget: Share of the scored tokens that may be marked at most.
        floor: Only documents whose evidence, the root mean square of their positive token scores, is above this have marks. Left out, the
            evidence of all documents says how large chance makes it, where there are 50 or more; "off" for none, so that the whole budget
            is spent.

    Raises:
        BadInput: If a number is out of range.
    """

    quantile: float = 0.99
    window: int = 1
    budget: float = 0.02
    floor: float | Literal["off"] | None = None

    def __post_init__(self):
        if not (0 <= self.quantile < 1 and self.window >= 0 and 0 < self.budget <= 1):
            raise BadInput(
                found=f"quantile={self.quantile}, window={self.window}, budget={self.budget}",
                needed="a quantile from 0 to below 1, a window of 0 or more tokens, a budget above 0 and up to 1",
                do="correct it; the published values are 0.99, 1 and 0.02",
            )
        if self.floor is not None and self.floor != "off" and (isinstance(self.floor, str) or not 0 < self.floor < math.inf):
            raise BadInput(
                found=f"floor={self.floor!r}", needed="a number above zero, or off", do="correct it, or leave it out"
            )


@dataclass(frozen=True, kw_only=True)
@typed
class DistilConfig:
    """How a proxy is trained: AdamW, the learning rate rising over the first tenth of the steps and falling linearly to zero.

    Args:
        epochs: Passes over the inputs.
        batch_examples: Inputs per step.
        learning_rate: At its highest.
        weight_decay: Decoupled.
        is_sampled: Whether the proxy is shown one answer per position, drawn anew each time from the target's distribution, instead of the
            whole distribution: what can be had from a target that only answers.

    Raises:
        BadInput: If a number is out of range.
    """

    epochs: int = 4
    batch_examples: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    is_sampled: bool = False

    def __post_init__(self):
        if self.epochs < 1 or self.batch_examples < 1 or self.learning_rate <= 0 or self.weight_decay < 0:
            raise BadInput(
                found=f"{self.epochs} epochs of batches of {self.batch_examples}, learning rate {self.learning_rate:g}, weight decay "
                f"{self.weight_decay:g}",
                needed="one epoch and one example or more, a positive learning rate and no negative decay",
                do="correct it",
            )


@dataclass(frozen=True, kw_only=True)
@typed
class SampleConfig:
    """How continuations are drawn to measure a behaviour; the numbers of RealToxicityPrompts (Gehman et al. 2020) if left out.

    Args:
        samples: Continuations of each prompt.
        tokens: Of each continuation at most.
        temperature: Of the draws.
        top_p: Draw among the likeliest tokens that together have this probability.
        threshold: Score from which on a continuation shows the behaviour.
        seed: Of the draws.

    Raises:
        BadInput: If a number is out of range.
    """

    samples: int = 25
    tokens: int = 20
    temperature: float = 1.0
    top_p: float = 0.9
    threshold: float = 0.5
    seed: int = 0

    def __post_init__(self):
        if (
            self.samples < 1
            or self.tokens < 1
            or not self.temperature > 0
            or not 0 < self.top_p <= 1
            or not 0 < self.threshold <= 1
        ):
            raise BadInput(
                found=f"samples={self.samples}, tokens={self.tokens}, temperature={self.temperature:g}, top_p={self.top_p:g}, "
                f"threshold={self.threshold:g}",
                needed="1 or more samples and tokens, a positive temperature, top_p and threshold above 0 and up to 1",
                do="correct it",
            )


@dataclass(frozen=True, kw_only=True)
@typed
class ProbeConfig:
    """How much of the data a proxy is held against its target on.

    Args:
        train: Training records; all if there are not as many.
        queries: Queries; all if there are not as many.
        k: Length of the compared ends of the rankings.

    Raises:
        BadInput: If there are fewer than two records to rank, or no query.
    """

    train: int = 256
    queries: int = 16
    k: int = 10

    def __post_init__(self):
        if self.train < 2 or self.queries < 1:
            raise BadInput(
                found=f"a probe of {self.train} training records and {self.queries} queries",
                needed="2 records or more to rank, and a query",
                do="take more of them",
            )


@dataclass(frozen=True, kw_only=True)
@typed
class SelectConfig:
    """Which training examples are kept.

    Args:
        by: What to rank by: influence on a validation set, self-influence, the example's own loss, its Shapley value among nearest
            neighbours, or chance. Left out, what the table's
            values are, and influence where there is no table; a table of other values is refused.
        keep: How much to keep: 500 (examples), 50%, or "20000 tokens".
        drop: How much to drop instead.
        prefer: Which end to keep; high influence, low self-influence and low loss if left out.
        quota: Of groups: the same share of each ("proportional"), as much of each as there is ("equal"), or their shares by name. What a
            group cannot fill goes to the others.
        per_token: Rank by value over length in tokens. Losses and scores of texts are sums over tokens, so without it long texts are extreme.
        reweight: Weights for all instead of a choice, with mean 1 and as uneven as the choice would be; under these conditions those with the
            largest predicted gain.

    Raises:
        BadInput: If it says both how much to keep and how much to drop.
        UnknownOption: If there is no such criterion, end or quota.
    """

    by: By | None = None
    keep: Amount | None = None
    drop: Amount | None = None
    prefer: Literal["high", "low"] | None = None
    quota: Literal["proportional", "equal"] | Mapping[str, float] = "proportional"
    per_token: bool = False
    reweight: bool = False

    def __post_init__(self):
        for name, choices in (
            ("by", (None, *get_args(By))),
            ("prefer", (None, "high", "low")),
            ("quota", ("proportional", "equal")),
        ):
            value = getattr(self, name)
            if not isinstance(value, Mapping) and value not in choices:
                needed = ", ".join(str(word) for word in choices if word is not None)
                raise UnknownOption(found=f"{name}={value!r}", needed=f"one of: {needed}", do="pick one")
        if self.keep is not None and self.drop is not None:
            raise BadInput(found=f"keep={self.keep!r} and drop={self.drop!r}", needed="one of them", do="leave one out")


@dataclass(frozen=True, kw_only=True)
@typed
class SelectInTraining:
    """What is kept of the candidates of a training step.

    Args:
        keep: How much of them: a share ("50%") or a number of examples; one at least.
        every: Steps after which the gradient of the validation set is taken anew. It goes stale soon: ten steps lost most of what a choice
            is worth on digits (docs/curation.md).
        per_token: Rank by score over length in tokens: losses and gradients of texts are sums over tokens, so that long ones are extreme.
        reweight: Weights for them instead of a choice, as uneven as the choice would be.
        plain: Inner products of the gradients as they are, without what the optimizer divides them by.

    Raises:
        BadInput: If `every` is not positive.
    """

    keep: Amount = "50%"
    every: int = 1
    per_token: bool = False
    reweight: bool = False
    plain: bool = False

    def __post_init__(self):
        if self.every < 1:
            raise BadInput(found=f"every={self.every}", needed="1 or more steps", do="correct it")


@dataclass(frozen=True, kw_only=True)
@typed
class StudyConfig:
    """What is read off the scores of a study.

    Args:
        k: Documents of a tail, on each side of each query; None for 50, or a tenth of a small corpus.
        kinds: By id of a document its kind; None takes the source.
        seed: Of bootstrap and permutation draws.
        verbatim: Also say what of the queries is copied from the corpus word for word and which documents are related by words (BM25); an
            index of its words is kept in the folder of the study.
        side_by_side: Folder of a study of the same queries and documents with another model, to be compared with.
    """

    k: int | None = None
    kinds: Mapping[str, str] | None = None
    seed: int = 0
    verbatim: bool = False
    side_by_side: str | Path | None = None


@dataclass(frozen=True, kw_only=True)
@typed
class SharesConfig:
    """How scores become shares, and shares money.

    Args:
        several: What several tables are: "queries" adds their queries up, named by table and query (a month); "models" takes them as scores
            of the same queries by models trained alike, averages them and gives an interval. Must be said if there is more than one.
        rule: "positive": positive scores count, negative ones do not. "softmax": the exponential of every score counts. "signed": negative
            scores count against positive ones of the same source, and a source below zero gets nothing.
        temperature: Of softmax, in standard deviations of a query's scores.
        floor: Noise floor: scores nearer to zero, in the table's unit, go to a line of their own and are never paid. Left out, each
            query's own scores say how large chance makes them, where there are 50 examples or more; "off" for none.
        floor_errors: Noise floor as a number of standard errors over three models or more, instead.
        payout: Amount to split, with its currency, such as "1000.00 EUR".
        minimum: Who is due less than this amount is not paid; it is held back under the source's name.
        robust: Rules against gaming, with the rule "positive": near-duplicates count once, no document gets more than a quarter of a query,
            near-identical queries together count 1 % at most, or as one; and `norm_control`.
        norm_control: With `robust`, where lengths of gradients and a noise floor for all examples are at hand: a score loses the floor times
            how much longer than the median length its gradient is, which is what length alone gives, whatever is asked.
        draws: Bootstrap draws of the queries.
        seed: Of the draws.

    Raises:
        BadInput: If there are no draws, a minimum of nothing, or robust rules for a rule that they are not made for.
    """

    several: Several | None = None
    rule: RuleName = "positive"
    temperature: float | None = None
    floor: float | Literal["off"] | None = None
    floor_errors: float | None = None
    payout: str | None = None
    minimum: str | None = None
    robust: bool = False
    norm_control: bool = True
    draws: int = 1000
    seed: int = 0

    def __post_init__(self):
        if self.robust and self.rule != "positive":
            raise BadInput(
                found=f"robust=True with the rule {self.rule}", needed="the rule positive", do="leave one of the two out"
            )
        if self.draws < 1:
            raise BadInput(found=f"draws={self.draws}", needed="1 or more", do="leave it out for 1,000")
        if self.payout is None and self.minimum is not None:
            raise BadInput(found="a minimum without a payout", needed="an amount to split", do="pass payout")
