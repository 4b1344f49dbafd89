"""Masked language models: the log-probability of tokens that are hidden from the model."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from whence.data import Dataset, Example
from whence.errors import BadInput
from whence.settings import records_only, typed
from whence.tasks.base import Batch
from whence.tasks.causal_lm import CausalLM, Long
from whence.tasks.labelled_tokens import AbstractTokenTask
from whence.tasks.measures import Measure
from whence.tasks.outputs import output_of
from whence.tasks.prepared import examples_from
from whence.tasks.token_inputs import vocabulary_size
from whence.tasks.token_loss import IGNORED

__all__ = ["Hiding", "MaskedLM"]


@dataclass(frozen=True, kw_only=True)
@typed
class Hiding:
    """Which tokens are hidden.

    Args:
        share: Of an example's tokens that are hidden; one at least. Special tokens never are.
        masked: Of those, the share that the mask token stands for.
        random: Of those, the share that a random token stands for; the rest stay as they are.
        seed: Of the draws.
        mask_id: The mask token's id; None takes the tokenizer's.

    Raises:
        BadInput: If a share is none.
    """

    share: float = 0.15
    masked: float = 0.8
    random: float = 0.1
    seed: int = 0
    mask_id: int | None = None

    def __post_init__(self):
        if not 0 < self.share <= 1 or self.masked < 0 or self.random < 0 or self.masked + self.random > 1 + 1e-9:
            raise BadInput(
                found=f"share={self.share}, masked={self.masked}, random={self.random}",
                needed="a share above 0, and two parts of it that are at most 1 together",
                do="correct them",
            )


class MaskedLM(AbstractTokenTask):
    """Prediction of hidden tokens with a Hugging Face style encoder (Devlin et al. 2019, section 3.1).

    Training hides other tokens in every epoch; here each example has one set of hidden tokens, drawn from its own tokens and the seed, so
    that the loss is one number per example whatever batch it is in. Scores of several seeds may be averaged.

    A record is a string, or a mapping with `text`, with `prompt` and `completion` (only tokens of the completion are hidden), or with ready
    `input_ids` (and `labels`, -100 where no token may be hidden). `id` and `source` are optional. The loss is the summed negative
    log-likelihood of the hidden tokens in nats.

    Args:
        model: Called with `input_ids` and `attention_mask`; returns a record with `.logits`.
        tokenizer: Its Hugging Face tokenizer; None for ready `input_ids`.
        hiding: Which tokens are hidden.
        long: As in `CausalLM`.
        max_length: As in `CausalLM`; None takes the model's context or the tokenizer's limit, whichever is less.
        measure: As in `CausalLM`.
        unit: What a measurement of one's own is counted in.
        **options: See `AbstractTask`.

    Raises:
        BadInput: If a share is none, there is no mask token, or `unit` is given for the named measurement.
    """

    kind = "masked_lm"

    @records_only(hiding=Hiding)
    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        hiding: Hiding = Hiding(),
        long: Long = "error",
        max_length: int | None = None,
        measure: Literal["loss"] | Measure = "loss",
        unit: str | None = None,
        **options: Any,
    ):
        super().__init__(model, measure, unit, {"loss": "nats of the hidden tokens' log-probability"}, **options)
        limit = int(getattr(tokenizer, "model_max_length", 1 << 20))
        # Reads, cuts and pads texts; it never runs.
        self._texts = CausalLM(
            model, tokenizer, long=long, max_length=min(limit if max_length is None else max_length, limit, 1 << 20)
        )
        self.tokenizer, self.share, self.masked, self.random = tokenizer, hiding.share, hiding.masked, hiding.random
        self.seed = hiding.seed
        mask_id = getattr(tokenizer, "mask_token_id", None) if hiding.mask_id is None else hiding.mask_id
        if mask_id is None:
            raise BadInput(
                found="no mask token",
                needed="a tokenizer that has one, or its id",
                do="pass mask_id; for a model that predicts the next token use whence.CausalLM",
            )
        self.mask_id = int(mask_id)
        vocabulary = vocabulary_size(model)
        if vocabulary is None or self.mask_id not in range(vocabulary):
            raise BadInput(
                found=f"the mask token {self.mask_id} for a model of {'unknown' if vocabulary is None else vocabulary} token ids",
                needed="a mask token that the model has an embedding for",
                do="load the tokenizer that the model was trained with; a model of one's own says with get_input_embeddings",
            )
        self._vocabulary = vocabulary

    @property
    def preprocessing(self) -> str:
        """Digest of the tokenizer and of how tokens are hidden."""
        settings = (self._texts.preprocessing, self.share, self.masked, self.random, self.seed, self.mask_id)
        return hashlib.sha256(repr(settings).encode()).hexdigest()

    def prepare(self, records: Iterable[Any]) -> Dataset:
        """Tokenize and hide; see the class for what a record may be."""
        return examples_from(records, self._encode, skip_bad=self.skip_bad)

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Right-padded token ids, labels (-100 where nothing is hidden) and mask, each of shape (B, T)."""
        return self._texts.collate(examples)

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits at every position, shape (B, T, vocabulary)."""
        return output_of(model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]))

    def _encode(self, number: int, record: Any) -> list[Example]:
        return [self._hidden(example) for example in self._texts.examples(number, record)]

    def _hidden(self, example: Example) -> Example:
        """The example with some of its tokens hidden.

        Raises:
            BadInput: If none may be.
        """
        ids, labels = (np.asarray(example.fields[name], np.int64) for name in ("input_ids", "labels"))
        special = np.asarray(getattr(self.tokenizer, "all_special_ids", None) or [self.mask_id])
        may_hide = np.flatnonzero((labels != IGNORED) & ~np.isin(ids, special))
        if not len(may_hide):
            raise BadInput(found=f"example {example.id!r} without a token to hide", needed="one at least", do="drop it")
        # From what the tokens are, not from the id: the same text has the same hidden tokens wherever it turns up.
        content = hashlib.sha256(f"{self.seed}:".encode() + ids.tobytes() + labels.tobytes()).digest()
        generator = np.random.default_rng(np.frombuffer(content, np.uint32))
        chosen = may_hide[generator.random(len(may_hide)) < self.share]
        chosen = chosen if len(chosen) else generator.choice(may_hide, 1)
        kinds, other = generator.random(len(chosen)), generator.integers(self._vocabulary, size=len(chosen))
        shown, wanted = ids.copy(), np.full_like(labels, IGNORED)
        wanted[chosen] = ids[chosen]
        shown[chosen] = np.where(
            kinds < self.masked, self.mask_id, np.where(kinds < self.masked + self.random, other, ids[chosen])
        )
        return replace(example, fields={"input_ids": shown.astype(np.int32), "labels": wanted.astype(np.int32)})
