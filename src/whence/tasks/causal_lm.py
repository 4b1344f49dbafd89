"""Language models: the log-probability of a text, or of a completion after its prompt."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from whence.data import Dataset, Example
from whence.errors import BadInput, UnknownOption, Unsupported
from whence.tasks.base import AbstractTask, Batch
from whence.tasks.fields import record_id, record_source
from whence.tasks.lm_records import Tokenized, tokenized
from whence.tasks.measures import Measure, chosen_measure, mean_log_odds
from whence.tasks.outputs import Outputs, output_of
from whence.tasks.prepared import examples_from
from whence.tasks.token_inputs import context_length, fits_context, padding_token, vocabulary_size
from whence.tasks.token_loss import IGNORED
from whence.tasks.token_rows import next_token_losses, token_rows

__all__ = ["CausalLM", "contrast_notes", "contrasted", "token_queries", "tokenizer_digest"]

Long = Literal["error", "split", "truncate"]


class CausalLM(AbstractTask):
    """Next-token prediction with a Hugging Face style model (`model(input_ids=..., attention_mask=...).logits`).

    A record is a string, or a mapping in one of these forms, `id` and `source` optional:

    - `text`;
    - `prompt` and `completion`, tokenized apart: only the completion is scored;
    - `messages`, a conversation with roles (and `tools`): the tokenizer's chat template makes the text, each turn of the assistant is scored;
    - `input_ids`, and `labels`, -100 where not scored. A packed row has `position_ids` that start again with each document; each
      becomes an example of its own, which is what it was to the model;
    - `text` that has its special tokens in it, and `scored_spans`, pairs of characters between which it is scored.

    A query with `foil` beside its `completion` (or its `text`) is a contrast, why this and not that: its measurement is the log-probability
    of the one less that of the other.

    The loss is the summed negative log-likelihood in nats of every scored token. The first token of a text is not scored.

    Args:
        model: The language model; one with LoRA from the peft package has its adapters attributed, as all else is frozen.
        tokenizer: Its Hugging Face tokenizer.
        long: What to do with a text longer than the context: refuse it, split it into several examples, or cut it.
        max_length: Tokens per example at most; None takes the model's context length.
        measure: What a query asks about: "loss" (the log-probability of its scored tokens), "margin" (their log-odds, see `output_function`),
            or a function of model and batch that gives one value per query, shape (B,). The batch is a mapping of `input_ids`, `labels` and
            `attention_mask`, each (B, T).
        unit: What a measurement of one's own is counted in.
        **options: See `AbstractTask`.

    Raises:
        BadInput: If `unit` is given for the named measurement, which has its own, or `max_length` leaves no token to score.
        UnknownOption: If `long` or `measure` is none of these.
        Unsupported: If the model has an adapter that adds positions instead of weights.
    """

    kind = "causal_lm"

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        long: Long = "error",
        max_length: int | None = None,
        measure: Literal["loss", "margin"] | Measure = "loss",
        unit: str | None = None,
        **options: Any,
    ):
        super().__init__(model, **options)
        units = {"loss": "nats of the query's log-probability", "margin": "log-odds of the query's tokens"}
        self.measure, self.unit = chosen_measure(measure, unit, units)
        if long not in ("error", "split", "truncate"):
            raise UnknownOption(found=f"long={long!r}", needed="one of: error, split, truncate", do="pick one")
        adapter = getattr(model, "active_peft_config", None)
        if getattr(adapter, "is_prompt_learning", False):
            raise Unsupported(
                found=f"an adapter of the type {type(adapter).__name__}, which puts vectors before the text",
                needed="an adapter of the weights, such as LoRA",
                do="attribute the model it was put on, or train LoRA instead",
            )
        self.tokenizer = tokenizer
        self.long = long
        context = context_length(model, tokenizer)
        if max_length is not None and max_length < 2:
            raise BadInput(
                found=f"max_length={max_length}",
                needed="2 or more, since the first token is not scored",
                do="correct it, or leave it out",
            )
        self.max_length = context if max_length is None else min(max_length, context)

    @property
    def preprocessing(self) -> str:
        """Digest of the tokenizer."""
        return tokenizer_digest(self.tokenizer)

    def prepare(self, records: Iterable[Any]) -> Dataset:
        """Tokenize; see the class for what a record may be."""
        return examples_from(records, self.examples, skip_bad=self.skip_bad)

    def examples(self, number: int, record: Any) -> list[Example]:
        """What one record stands for: an example, or several windows or documents.

        Args:
            number: Of the record, which is its id if it has none.
            record: See the class.

        Raises:
            BadInput: If it is something else, empty, or longer than the context.
        """
        record = {"text": record} if isinstance(record, str) else record
        if not isinstance(record, Mapping):
            raise BadInput(
                found=f"record {number} of type {type(record).__name__}",
                needed="a string or a mapping with 'text', 'prompt' and 'completion', 'messages', or 'input_ids'",
                do="convert the records",
            )
        if record.get("foil") is not None:
            return [self._contrast(number, record)]
        texts = tokenized(number, record, self.tokenizer, vocabulary_size(self.model))
        name, source = record_id(number, record), record_source(number, record)
        if len(texts) == 1:
            return self._windows(texts[0], name, source)
        # A document of one token has no loss, so it has taught the model nothing.
        scored = [
            (part, part_text) for part, part_text in enumerate(texts) if any(label != IGNORED for label in part_text.labels[1:])
        ]
        return [example for part, part_text in scored for example in self._windows(part_text, f"{name}:{part}", source)]

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Token ids, labels and mask, right-padded with the model's padding token, each of shape (B, T).

        Where one of them is a contrast each has two rows, its foil's after its own, and there are `signs` (B, 2), 0 for a foil that is none.
        """
        padding = padding_token(self.model, self.tokenizer) or 0
        if not any("foil_ids" in example.fields for example in examples):
            return token_rows([example.fields for example in examples], padding, self.device)
        rows: list[Mapping[str, Any]] = []
        for example in examples:
            own = example.fields
            foil = {"input_ids": own["foil_ids"], "labels": own["foil_labels"]} if "foil_ids" in own else own
            rows += [own, foil]
        signs_B2 = torch.tensor([[1.0, -1.0 if "foil_ids" in example.fields else 0.0] for example in examples])
        return {**token_rows(rows, padding, self.device), "signs": signs_B2.to(self.device)}

    def num_rows(self, batch: Batch, num_examples: int) -> int:
        """Two for each example where there are contrasts."""
        return len(batch["input_ids"])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Summed negative log-likelihood of each example's scored tokens in nats, shape (B,).

        Raises:
            BadInput: If one is a contrast.
        """
        if "signs" in batch:
            raise BadInput(
                found="a training example with a foil",
                needed="examples without: a contrast is a question",
                do="drop the field; pairs that a model was trained on are whence.tasks.Preference's",
            )
        return next_token_losses(model, batch)

    def measurement(self, model: nn.Module, batch: Batch) -> Tensor:
        """Log-probability of each query's scored tokens, less its foil's, their log-odds, or what one's own function gives, shape (B,).

        Raises:
            BadInput: If a contrast is to be measured by anything else.
        """
        if "signs" not in batch:
            if not isinstance(self.measure, str):
                return self.measure(model, batch)
            return -self.loss(model, batch) if self.measure == "loss" else self.output_function(model, batch)
        if self.measure != "loss":
            what = "log-odds" if self.measure == "margin" else "a measurement of one's own"
            raise BadInput(
                found=f"a query with a foil for {what}",
                needed="the log-probability, of which a contrast is the difference",
                do="leave measure out, or write the contrast into it",
            )
        log_p_R = -next_token_losses(model, batch)
        return (log_p_R.view(-1, 2) * batch["signs"].to(log_p_R.dtype)).sum(1)

    @property
    def highest_measurement(self) -> float | None:
        """0 for the log-probability, None for any other measurement."""
        return 0.0 if self.measure == "loss" else None

    def output_function(self, model: nn.Module, batch: Batch) -> Tensor:
        """Log-odds of the scored tokens' geometric mean probability, times their number, shape (B,).

        The log-odds of a whole sequence's probability would be its log-probability to the last digit, and no longer TRAK.
        """
        return mean_log_odds(self.loss(model, batch), _num_scored(batch))

    def output_weights(self, values_B: Tensor, batch: Batch) -> Tensor:
        """One minus the scored tokens' geometric mean probability, shape (B,)."""
        return torch.sigmoid(-values_B / _num_scored(batch))

    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        """Logits at every scored position, shape (M, vocabulary)."""
        logits_BTV = output_of(model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]))
        labels_BT = batch["labels"][:, 1:]
        is_scored_BT = labels_BT != IGNORED
        values_MV = logits_BTV[:, :-1][is_scored_BT]
        wide = torch.promote_types(values_MV.dtype, torch.float32)
        return Outputs(values_MV.to(wide), is_scored_BT.nonzero()[:, 0], labels_BT[is_scored_BT], "categorical")

    def positions(self, batch: Batch) -> Tensor:
        """True at real tokens, shape (B, T)."""
        return batch["attention_mask"].bool()

    def _contrast(self, number: int, record: Mapping[str, Any]) -> Example:
        """A query with its foil.

        Raises:
            BadInput: If there is nothing that it stands beside, or either does not fit into one window.
        """
        field = "completion" if "completion" in record else "text"
        if field not in record:
            raise BadInput(
                found=f"record {number} with a 'foil' and neither 'completion' nor 'text'",
                needed="what is asked about, beside what it is held against",
                do="give 'prompt', 'completion' and 'foil'",
            )
        own = {name: value for name, value in record.items() if name != "foil"}
        foil = _single_foil(number, record["foil"])
        foil = {**own, **foil} if isinstance(foil, Mapping) else {**own, field: foil}
        windows = [self.examples(number, own), self.examples(number, foil)]
        if any(len(parts) != 1 for parts in windows):
            raise BadInput(
                found=f"record {number} with a foil, of several windows",
                needed=f"at most {self.max_length:,} tokens on either side",
                do="shorten the prompt",
            )
        return contrasted(windows[0][0], windows[1][0])

    def _windows(self, tokenized: Tokenized, name: str, source: str) -> list[Example]:
        ids, labels = tokenized.ids, tokenized.labels
        if len(ids) < 2:
            raise BadInput(
                found=f"example {name!r} with {len(ids)} token(s)",
                needed="at least 2, since the first token is not scored",
                do="drop empty texts",
            )
        if all(label == IGNORED for label in labels[1:]):
            raise BadInput(found=f"example {name!r} with no scored token", needed="a completion", do="drop it or fill it in")
        if self.long == "error":
            choices = "pass long='split' (each window becomes an example) or long='truncate'; on the command line --long split"
            fits_context(name, len(ids), self.max_length, choices)
        last = self.max_length if self.long == "truncate" else len(ids)
        windows = [(start, min(start + self.max_length, last)) for start in range(0, last, self.max_length)]
        windows = [(start, stop) for start, stop in windows if any(label != IGNORED for label in labels[start + 1 : stop])]
        if not windows:
            raise BadInput(
                found=f"example {name!r}, whose completion starts after token {self.max_length:,}",
                needed="a scored token within the context",
                do="shorten the prompt",
            )
        names = [name] if len(windows) == 1 else [f"{name}#{part}" for part in range(len(windows))]
        return [self._window(tokenized, *window, called, source) for window, called in zip(windows, names, strict=True)]

    def _window(self, tokenized: Tokenized, first: int, last: int, name: str, source: str) -> Example:
        ids, labels, spans = tokenized.ids[first:last], tokenized.labels[first:last], tokenized.spans[first:last]
        # One array for both where every token is scored: a corpus is held in memory while it is built.
        tokens = np.asarray(ids, np.int32)
        fields = {"input_ids": tokens, "labels": tokens if labels == ids else np.asarray(labels, np.int32)}
        if not spans:
            return Example(name, fields, len(ids), source, tokenized.text, prompt=tokenized.prompt)
        start, stop = min(a for a, _ in spans), max(b for _, b in spans)
        inside = (np.asarray(spans, np.int32) - start).clip(0)
        scored = tuple((max(a - start, 0), min(b, stop) - start) for a, b in tokenized.scored if start < b and a < stop)
        text, prompt = tokenized.text[start:stop], max(tokenized.prompt - start, 0)
        return Example(name, fields, len(ids), source, text, (start, stop), prompt, inside, scored)


def _single_foil(number: int, foil: Any) -> Any:
    """The foil of a query, which may stand in a list.

    Raises:
        BadInput: If there are several.
    """
    if not isinstance(foil, list | tuple):
        return foil
    if len(foil) != 1:
        raise BadInput(
            found=f"record {number} with {len(foil)} foils",
            needed="one; a study (whence study) takes several, and their mean",
            do="make a query of each",
        )
    return foil[0]


def contrasted(example: Example, foil: Example) -> Example:
    """A query held against another: its measurement is the difference of the two log-probabilities."""
    fields = {**example.fields, "foil_ids": foil.fields["input_ids"], "foil_labels": foil.fields["labels"]}
    # Both are a row of the batch.
    return replace(example, fields=fields, length=2 * max(example.length, foil.length))


def token_queries(example: Example) -> list[Example]:
    """A query for each scored token of a query, whose measurements add up to its own: those of a foil behind its own, negative.

    Args:
        example: A query, perhaps with a foil.
    """
    own = {name: example.fields[name] for name in ("input_ids", "labels")}
    alone = replace(example, fields=own, length=len(own["labels"]))
    queries = [replace(alone, fields={**own, "labels": labels}) for labels in _single_labels(own["labels"])]
    if "foil_ids" not in example.fields:
        return queries
    nothing = {**example.fields, "labels": np.full_like(own["labels"], IGNORED)}
    foils = _single_labels(example.fields["foil_labels"])
    return queries + [replace(example, fields={**nothing, "foil_labels": labels}) for labels in foils]


def _single_labels(labels: np.ndarray) -> list[np.ndarray]:
    """The same with one label each; the first token is not predicted."""
    positions = (labels[1:] != IGNORED).nonzero()[0] + 1
    return [np.where(np.arange(len(labels)) == at, labels, np.asarray(IGNORED, labels.dtype)) for at in positions]


def contrast_notes(queries: Sequence[Example]) -> tuple[str, ...]:
    """What a reader has to know of queries with foils."""
    count = sum("foil_ids" in query.fields for query in queries)
    which = "the query is a contrast" if count == len(queries) == 1 else f"{count:,} of {len(queries):,} queries are contrasts"
    return (f"{which}: measured is the log-probability of the completion less that of its foil",) if count else ()


def _num_scored(batch: Batch) -> Tensor:
    """Scored tokens of each example, shape (B,)."""
    return (batch["labels"][:, 1:] != IGNORED).sum(1)


def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 of the tokenizer's vocabulary, merges and rules."""
    if hasattr(tokenizer, "backend_tokenizer"):
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        # Calling a tokenizer with padding or truncation writes these two into it; they are not part of what it is.
        content["padding"] = content["truncation"] = None
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    vocabulary = sorted(tokenizer.get_vocab().items()) if hasattr(tokenizer, "get_vocab") else repr(tokenizer)
    return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()
