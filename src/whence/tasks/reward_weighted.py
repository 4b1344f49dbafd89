"""Sequences that were weighted by a reward: policy gradients such as GRPO's.

Axes: B examples, T positions, M scored tokens.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from whence.data import Dataset, Example
from whence.errors import BadInput, UnknownOption
from whence.tasks.base import AbstractTask, Batch
from whence.tasks.causal_lm import CausalLM
from whence.tasks.fields import as_numbers, record_id, scalar
from whence.tasks.measures import Measure, chosen_measure
from whence.tasks.outputs import Outputs
from whence.tasks.prepared import examples_from
from whence.tasks.token_loss import IGNORED

__all__ = ["RewardWeighted"]

# What GRPO's reference implementations add to the standard deviation of a group's rewards.
_LEAST_SPREAD = 1e-4


class RewardWeighted(AbstractTask):
    """A language model's own sequences, each weighted by how much better than its group it was.

    The loss of a sequence is -A / |o| sum_t log p(o_t), A its advantage and |o| its number of tokens: the gradient of GRPO's objective (Shao
    et al. 2024, equation 3) at the policy that drew it, where the ratio of probabilities is 1 and nothing is clipped. The penalty for moving
    away from a reference is left out. The loss is not convex in the logits where A is negative; curvature is the Fisher information of the
    policy itself, the metric of natural policy gradients (Kakade 2001).

    A record is a mapping with `prompt`, `completion` and `advantage`, or a whole group: `prompt`, `completions` and `rewards`, of which each
    completion becomes an example, `id:0`, `id:1`, ..., its advantage the reward less the group's mean, over its standard deviation. `id`
    and `source` are optional. A query needs no advantage: it asks about the log-probability of its completion.

    Args:
        model: The language model, as in `CausalLM`.
        tokenizer: Its Hugging Face tokenizer.
        per: Whether a "sequence" counts once however long it is, as in GRPO, or each "token" of it (no |o|).
        scaled: Whether a group's advantages are divided by the standard deviation of its rewards.
        long: What to do with a text longer than the context: refuse it, or cut it.
        max_length: Tokens per example at most; None takes the model's context length.
        measure: What a query asks about: "log_probability" of its completion, or a function of model and batch that gives one value per
            query, shape (B,).
        **options: See `AbstractTask`.

    Raises:
        UnknownOption: If `per`, `long` or `measure` is none of these.
    """

    kind = "reward_weighted"

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        per: Literal["sequence", "token"] = "sequence",
        scaled: bool = True,
        long: Literal["error", "truncate"] = "error",
        max_length: int | None = None,
        measure: Literal["log_probability"] | Measure = "log_probability",
        **options: Any,
    ):
        super().__init__(model, **options)
        for name, value, allowed in (("per", per, ("sequence", "token")), ("long", long, ("error", "truncate"))):
            if value not in allowed:
                raise UnknownOption(found=f"{name}={value!r}", needed=f"one of: {', '.join(allowed)}", do="pick one")
        self.measure, self.unit = chosen_measure(measure, None, {"log_probability": "nats of the completion's log-probability"})
        self.tokenizer, self.per, self.scaled = tokenizer, per, scaled
        self._texts = CausalLM(model, tokenizer, long=long, max_length=max_length)

    @property
    def preprocessing(self) -> str:
        """Digest of the tokenizer and of the weights' rule."""
        return hashlib.sha256(f"{self.per}:{self.scaled}:{self._texts.preprocessing}".encode()).hexdigest()

    def prepare(self, records: Iterable[Any]) -> Dataset:
        """Tokenize and weigh; see the class for what a record may be."""
        return examples_from(records, self._examples, skip_bad=self.skip_bad)

    def collate(self, examples: Sequence[Example]) -> Batch:
        """As in `CausalLM`, and weights (B,), NaN where a query has no advantage."""
        weights_B = torch.as_tensor(np.stack([example.fields["weight"] for example in examples]))
        return {**self._texts.collate(examples), "weight": weights_B.to(self.device, torch.float64)}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Negative log-likelihood of each sequence times its weight, shape (B,)."""
        loss_B = self._texts.loss(model, batch)
        return loss_B * _checked_weights(batch["weight"]).to(loss_B.dtype)

    def measurement(self, model: nn.Module, batch: Batch) -> Tensor:
        """Log-probability of each query's completion, or what one's own function gives, shape (B,)."""
        return -self._texts.loss(model, batch) if isinstance(self.measure, str) else self.measure(model, batch)

    @property
    def highest_measurement(self) -> float | None:
        """0 for the log-probability, None for any other measurement."""
        return 0.0 if isinstance(self.measure, str) else None

    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        """Logits at every scored position with the weight of its sequence, shape (M, vocabulary)."""
        outputs = self._texts.outputs(model, batch)
        weights_M = _checked_weights(batch["weight"])[outputs.owners_M]
        return replace(outputs, weights_M=weights_M.to(outputs.values_MC.dtype))

    def positions(self, batch: Batch) -> Tensor:
        """True at real tokens, shape (B, T)."""
        return batch["attention_mask"].bool()

    def _examples(self, number: int, record: Any) -> list[Example]:
        if not isinstance(record, Mapping) or not ("completion" in record or {"completions", "rewards"} <= set(record)):
            what = f"the fields {sorted(map(str, record))}" if isinstance(record, Mapping) else f"a {type(record).__name__}"
            raise BadInput(
                found=f"record {number} with {what}",
                needed="'prompt', 'completion' and 'advantage', or 'prompt', 'completions' and 'rewards'",
                do="convert the records; on the command line ask with --file and a file of such records",
            )
        if "completion" in record:
            return [self._weighted(number, record, _advantage(number, record))]
        completions, rewards = record["completions"], as_numbers(record["rewards"])
        given = [] if rewards is None or rewards.ndim != 1 else rewards.tolist()
        is_group = isinstance(completions, Sequence) and not isinstance(completions, str) and bool(given)
        if not is_group or rewards is None or len(given) != len(completions) or len(given) < 2:
            counts = f"{len(given)} rewards for {len(completions)} completions" if is_group else "no lists of both"
            raise BadInput(
                found=f"record {number} with {counts}",
                needed="a number for every completion, and two or more of them, since a group is compared with itself",
                do="correct the record, or give 'completion' and 'advantage'",
            )
        advantages = rewards.astype(np.float64) - rewards.mean()
        if self.scaled:
            advantages = advantages / (rewards.std(ddof=1) + _LEAST_SPREAD)
        shared = {name: value for name, value in record.items() if name not in ("completions", "rewards", "id")}
        name = record_id(number, record)
        return [
            self._weighted(number, {**shared, "completion": completion, "id": f"{name}:{part}"}, float(advantage))
            for part, (completion, advantage) in enumerate(zip(completions, advantages, strict=True))
        ]

    def _weighted(self, number: int, record: Mapping[str, Any], advantage: float) -> Example:
        (example,) = self._texts.examples(number, record)
        count = int((np.asarray(example.fields["labels"])[1:] != IGNORED).sum())
        weight = advantage / count if self.per == "sequence" else advantage
        return replace(example, fields={**example.fields, "weight": np.asarray(weight)})


def _advantage(number: int, record: Mapping[str, Any]) -> float:
    """A record's advantage; NaN if it has none.

    Raises:
        BadInput: If it is no finite number.
    """
    value = scalar(record.get("advantage"))
    if value is None:
        return float("nan")
    if not isinstance(value, int | float) or not np.isfinite(value):
        raise BadInput(
            found=f"record {number} with the advantage {value!r:.40}", needed="a finite number", do="drop or fill it"
        )
    return float(value)


def _checked_weights(weights_B: Tensor) -> Tensor:
    """The weights.

    Raises:
        BadInput: If one is missing.
    """
    if bool(weights_B.isnan().any()):
        raise BadInput(
            found="a training record without an advantage",
            needed="'advantage', or a group with 'rewards'",
            do="add it; sequences that all count alike are whence.CausalLM's",
        )
    return weights_B
