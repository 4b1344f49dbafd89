"""Sequence to sequence: the log-probability of what a decoder writes about what an encoder read.

Axes: B examples, T positions of the encoder, S of the decoder, V vocabulary.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from whence.data import Dataset, Example
from whence.errors import BadInput, UnknownOption, Unsupported
from whence.tasks.base import Batch
from whence.tasks.causal_lm import tokenizer_digest
from whence.tasks.fields import record_id, record_source, text_field, whole_numbers
from whence.tasks.labelled_tokens import AbstractTokenTask
from whence.tasks.measures import Measure
from whence.tasks.outputs import output_of
from whence.tasks.prepared import examples_from
from whence.tasks.token_inputs import check_tokens, context_length, fits_context, padding_token, vocabulary_size
from whence.tasks.token_loss import IGNORED

__all__ = ["Seq2Seq"]


class Seq2Seq(AbstractTokenTask):
    """An encoder and decoder of transformers, such as T5, BART, Marian or an `EncoderDecoderModel`.

    A record is a mapping with `prompt`, which the encoder reads, and `completion`, which the decoder has to write; or with ready `input_ids`
    and `labels`, -100 where not scored. `id` and `source` are optional. The loss is the summed negative log-likelihood of the completion's
    tokens in nats, the mark of its end among them where the tokenizer sets one.

    Args:
        model: Makes the decoder's inputs with `prepare_decoder_input_ids_from_labels`, as all of transformers do.
        tokenizer: Its Hugging Face tokenizer; None for ready `input_ids`.
        long: What to do with a text longer than the context: refuse it, or cut it.
        max_length: Tokens on either side at most; None takes the model's context or the tokenizer's limit, whichever is less.
        measure: What a query asks about: "loss" (the log-probability of the completion), or a function of model and batch that gives one
            value per query, shape (B,).
        unit: What a measurement of one's own is counted in.
        **options: See `AbstractTask`.

    Raises:
        BadInput: If `unit` is given for the named measurement.
        UnknownOption: If `long` is neither.
        Unsupported: If the model makes no inputs for its decoder.
    """

    kind = "seq2seq"

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        long: Literal["error", "truncate"] = "error",
        max_length: int | None = None,
        measure: Literal["loss"] | Measure = "loss",
        unit: str | None = None,
        **options: Any,
    ):
        super().__init__(model, measure, unit, {"loss": "nats of the completion's log-probability"}, **options)
        if long not in ("error", "truncate"):
            raise UnknownOption(found=f"long={long!r}", needed="one of: error, truncate", do="pick one")
        if not hasattr(model, "prepare_decoder_input_ids_from_labels"):
            raise Unsupported(
                found=f"a {type(model).__name__}, which makes no inputs for a decoder",
                needed="an encoder and decoder of transformers with prepare_decoder_input_ids_from_labels",
                do="pass such a model, or for one that only reads on use whence.CausalLM",
            )
        self.tokenizer, self.long = tokenizer, long
        limit = min(context_length(model, tokenizer), int(getattr(tokenizer, "model_max_length", 1 << 20)))
        self.max_length = limit if max_length is None else min(max_length, limit)

    @property
    def preprocessing(self) -> str:
        """Digest of the tokenizer."""
        return hashlib.sha256(f"seq2seq:{tokenizer_digest(self.tokenizer)}".encode()).hexdigest()

    def prepare(self, records: Iterable[Any]) -> Dataset:
        """Tokenize both sides; see the class for what a record may be."""
        return examples_from(records, lambda number, record: [self._example(number, record)], skip_bad=self.skip_bad)

    def collate(self, examples: Sequence[Example]) -> Batch:
        """What the encoder reads with its mask (B, T), and the decoder's inputs, their mask and labels (B, S); right-padded."""
        padding = padding_token(self.model, self.tokenizer) or 0
        model: Any = self.model
        rows = []
        for example in examples:
            ids, labels = (torch.as_tensor(example.fields[name]).long() for name in ("input_ids", "labels"))
            # One at a time: some models turn the last token that is no padding to the front.
            given = model.prepare_decoder_input_ids_from_labels(labels=labels[None])[0]
            rows.append((ids, torch.ones_like(ids), given, torch.ones_like(given), labels))
        longest = max(len(row[0]) for row in rows)
        written = max(len(row[4]) for row in rows)
        # Both sides' positions are told apart by how many there are.
        written += written == longest
        sizes = {
            "input_ids": (longest, padding), "attention_mask": (longest, 0), "decoder_input_ids": (written, padding),
            "decoder_mask": (written, 0), "labels": (written, IGNORED),
        }  # fmt: skip
        batch = {name: torch.full((len(rows), size), filler) for name, (size, filler) in sizes.items()}
        for number, row in enumerate(rows):
            for name, values in zip(sizes, row, strict=True):
                batch[name][number, : len(values)] = values
        return {name: value.to(self.device) for name, value in batch.items()}

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits at every position of the decoder, shape (B, S, V)."""
        names = ("input_ids", "attention_mask", "decoder_input_ids")
        return output_of(model(**{name: batch[name] for name in names}))

    def positions(self, batch: Batch) -> tuple[Tensor, ...]:
        """True at real tokens of the encoder (B, T), and of the decoder (B, S)."""
        return batch["attention_mask"].bool(), batch["decoder_mask"].bool()

    def _example(self, number: int, record: Any) -> Example:
        if not isinstance(record, Mapping) or not (
            {"prompt", "completion"} <= set(record) or {"input_ids", "labels"} <= set(record)
        ):
            what = f"the fields {sorted(map(str, record))}" if isinstance(record, Mapping) else f"a {type(record).__name__}"
            raise BadInput(
                found=f"record {number} with {what}",
                needed="a mapping with 'prompt' and 'completion', or with 'input_ids' and 'labels'",
                do="convert the records; on the command line ask with --file and a file of such records",
            )
        name, source, where = record_id(number, record), record_source(number, record), f"record {number}"
        text, given = str(record.get("text", "")), 0
        if "input_ids" in record:
            ids, labels = whole_numbers(record["input_ids"]), whole_numbers(record["labels"])
        else:
            prompt, completion = (text_field(number, field, record[field]) for field in ("prompt", "completion"))
            ids, labels = self._encoded(where, prompt), self._encoded(where, completion, is_target=True)
            text, given = f"{prompt}\n{completion}", len(prompt) + 1
        if not ids or not labels or all(label == IGNORED for label in labels):
            raise BadInput(
                found=f"{where} with nothing to read or nothing to write",
                needed="tokens on both sides, one after the other",
                do="drop it or fill it in",
            )
        vocabulary = vocabulary_size(self.model)
        check_tokens(where, ids, vocabulary, self.tokenizer)
        check_tokens(where, [label for label in labels if label != IGNORED], vocabulary, self.tokenizer)
        # One less to write, since a batch of as many positions on both sides gets one more.
        for values, limit in ((ids, self.max_length), (labels, self.max_length - 1)):
            fits_context(name, len(values), limit, "pass long='truncate' to cut longer ones (--long truncate)")
        fields = {"input_ids": np.asarray(ids, np.int32), "labels": np.asarray(labels, np.int32)}
        return Example(name, fields, len(ids) + len(labels), source, text, prompt=given)

    def _encoded(self, where: str, text: str, *, is_target: bool = False) -> list[int]:
        if self.tokenizer is None:
            raise BadInput(
                found=f"{where} with a text for a task without a tokenizer",
                needed="the model's tokenizer, or ready 'input_ids' and 'labels'",
                do="pass the tokenizer to the task",
            )
        cut = {"truncation": True, "max_length": self.max_length - is_target} if self.long == "truncate" else {}
        given = {"text_target": text} if is_target else {"text": text}
        return list(self.tokenizer(**given, verbose=False, **cut)["input_ids"])
