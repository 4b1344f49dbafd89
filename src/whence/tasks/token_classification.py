"""Token classification: a class for each token or word, as in tagging and named entities."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from whence.data import Dataset, Example
from whence.errors import BadInput, UnknownOption
from whence.settings import records_only
from whence.tasks.base import Batch
from whence.tasks.causal_lm import tokenizer_digest
from whence.tasks.classification import TextLimits
from whence.tasks.fields import class_number, record_id, record_source, text_field, whole_numbers
from whence.tasks.labelled_tokens import AbstractTokenTask
from whence.tasks.measures import Measure
from whence.tasks.outputs import output_of
from whence.tasks.prepared import examples_from
from whence.tasks.token_inputs import check_tokens, context_length, fits_context, padding_token, vocabulary_size
from whence.tasks.token_loss import IGNORED
from whence.tasks.token_rows import token_rows

__all__ = ["TokenClassification"]


class TokenClassification(AbstractTokenTask):
    """A class for each word or token of a text, with a Hugging Face style model.

    A record is a mapping with `tokens`, a list of words, and `labels`, a class for each, by number or name (None or -100 for words that are
    not scored); or with ready `input_ids` and `labels`. `id` and `source` are optional. The loss is the summed cross-entropy of the scored
    tokens in nats.

    Args:
        model: Called with `input_ids` and `attention_mask`; returns a record with `.logits` (B, T, classes).
        tokenizer: A fast Hugging Face tokenizer; None for ready `input_ids`.
        scored: Which tokens of a word have its label: the "first" one, as training on words usually does, or "all".
        texts: How long a text may be.
        labels: Names of the classes in order; None takes those of the model's configuration.
        measure: What a query asks about: "loss" (the log-probability of its labels), or a function of model and batch that gives one
            value per query, shape (B,).
        **options: See `AbstractTask`.

    Raises:
        BadInput: If the tokenizer is a slow one, which does not say which word a token is of.
        UnknownOption: If `scored` is neither.
    """

    kind = "token_classification"

    @records_only(texts=TextLimits)
    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any = None,
        *,
        scored: Literal["first", "all"] = "first",
        texts: TextLimits = TextLimits(),
        labels: Sequence[str] | None = None,
        measure: Literal["loss"] | Measure = "loss",
        **options: Any,
    ):
        super().__init__(model, measure, None, {"loss": "nats of the labels' log-probability"}, **options)
        if scored not in ("first", "all"):
            raise UnknownOption(found=f"scored={scored!r}", needed="one of: first, all", do="pick one")
        if tokenizer is not None and not getattr(tokenizer, "is_fast", False):
            raise BadInput(
                found=f"a slow tokenizer, {type(tokenizer).__name__}",
                needed="a fast one, which says which word a token is of",
                do="load it with use_fast=True, or pass ready input_ids and labels",
            )
        self.tokenizer, self.scored, self.labels = tokenizer, scored, labels
        limit = min(context_length(model, tokenizer), int(getattr(tokenizer, "model_max_length", 1 << 20)))
        self.long, self.max_length = texts.long, limit if texts.max_length is None else min(texts.max_length, limit)

    @property
    def preprocessing(self) -> str:
        """Digest of the tokenizer and of which tokens are scored."""
        return hashlib.sha256(f"{self.scored}:{tokenizer_digest(self.tokenizer)}".encode()).hexdigest()

    def prepare(self, records: Iterable[Any]) -> Dataset:
        """Words as tokens, each with its label; see the class for what a record may be."""
        config: Any = getattr(self.model, "config", None)
        by_name = getattr(config, "label2id", None) or {}
        names = by_name if self.labels is None else {name: number for number, name in enumerate(self.labels)}
        classes = len(self.labels) if self.labels is not None else getattr(config, "num_labels", None)

        def example(number: int, record: Any) -> list[Example]:
            return [self._example(number, record, names, classes)]

        return examples_from(records, example, skip_bad=self.skip_bad)

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Token ids, labels and mask, right-padded, each of shape (B, T)."""
        return token_rows([example.fields for example in examples], padding_token(self.model, self.tokenizer) or 0, self.device)

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits at every position, shape (B, T, classes)."""
        return output_of(model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]))

    def _example(self, number: int, record: Any, names: Mapping[str, int], classes: int | None) -> Example:
        if not isinstance(record, Mapping) or "labels" not in record or not ("tokens" in record or "input_ids" in record):
            what = f"the fields {sorted(map(str, record))}" if isinstance(record, Mapping) else f"a {type(record).__name__}"
            raise BadInput(
                found=f"record {number} with {what}",
                needed="a mapping with 'tokens' or 'input_ids', and 'labels', one for each",
                do="convert the records; on the command line ask with --file and a file of such records",
            )
        name, source, where = record_id(number, record), record_source(number, record), f"record {number}"
        given = record["labels"]
        labels = list(given) if not isinstance(given, str | bytes | Mapping) else []
        numbers = [IGNORED if _is_unscored(label) else int(class_number(number, label, names, classes)) for label in labels]
        if "tokens" in record:
            words = _words(number, record["tokens"])
            _check_count(where, len(words), "tokens", numbers)
            ids, word_of = self._encoded(where, words)
            firsts = [index for index, word in enumerate(word_of) if index == 0 or word_of[index - 1] != word]
            scored = set(firsts) if self.scored == "first" else set(range(len(ids)))
            aligned = [IGNORED if word is None or index not in scored else numbers[word] for index, word in enumerate(word_of)]
            text = " ".join(words)
        else:
            ids, aligned, text = whole_numbers(record["input_ids"]) or [], numbers, str(record.get("text", ""))
            _check_count(where, len(ids), "input_ids", numbers)
        if all(label == IGNORED for label in aligned):
            raise BadInput(found=f"{where} with no scored token", needed="one label at least", do="drop it or fill it in")
        check_tokens(where, ids, vocabulary_size(self.model), self.tokenizer)
        fits_context(name, len(ids), self.max_length, "pass long='truncate' to cut longer ones (--long truncate)")
        fields = {"input_ids": np.asarray(ids, np.int32), "labels": np.asarray(aligned, np.int64)}
        return Example(name, fields, len(ids), source, text)

    def _encoded(self, where: str, words: Sequence[str]) -> tuple[list[int], list[int | None]]:
        if self.tokenizer is None:
            raise BadInput(
                found=f"{where} with words for a task without a tokenizer",
                needed="the model's tokenizer, or ready 'input_ids'",
                do="pass the tokenizer to the task",
            )
        cut = {"truncation": True, "max_length": self.max_length} if self.long == "truncate" else {}
        encoding = self.tokenizer(list(words), is_split_into_words=True, verbose=False, **cut)
        return list(encoding["input_ids"]), encoding.word_ids()


def _words(number: int, given: Any) -> list[str]:
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise BadInput(
            found=f"record {number} whose 'tokens' are a {type(given).__name__}", needed="a list of words", do="split the text"
        )
    return [text_field(number, "tokens", word) for word in given]


def _is_unscored(label: Any) -> bool:
    return label is None or (not isinstance(label, str) and np.ndim(label) == 0 and label == IGNORED)


def _check_count(where: str, count: int, of: str, labels: Sequence[int]) -> None:
    if count != len(labels) or not count:
        raise BadInput(
            found=f"{where} with {len(labels)} labels for {count} {of}",
            needed="a label for each, and one at least",
            do="correct the record, or drop it",
        )
