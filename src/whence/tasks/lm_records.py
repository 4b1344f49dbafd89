"""Records of text as token ids and labels: which forms a record may have, and what is scored in each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from whence.errors import BadInput
from whence.tasks.chat import Ranges, rendered
from whence.tasks.fields import text_field, whole_numbers
from whence.tasks.packed import unpacked
from whence.tasks.token_inputs import check_tokens
from whence.tasks.token_loss import IGNORED

__all__ = ["Tokenized", "encoded", "tokenized"]

_FORMS = "'text', or 'prompt' and 'completion', or 'messages', or 'input_ids'"


@dataclass(frozen=True)
class Tokenized:
    """One text ready for the model.

    Args:
        ids: Its tokens.
        labels: The same, -100 where a token is not scored.
        text: What it reads; empty if not known.
        prompt: How many characters at the start of it are given.
        spans: Characters of `text` of each token; empty if not known.
        scored: Characters of `text` that are scored, where that is not everything after the prompt.
    """

    ids: list[int]
    labels: list[int]
    text: str = ""
    prompt: int = 0
    spans: Sequence[tuple[int, int]] = ()
    scored: Ranges = ()


def tokenized(number: int, record: Mapping[str, Any], tokenizer: Any, vocabulary: int | None) -> list[Tokenized]:
    """What a record stands for: one text, or each document of a packed row.

    Args:
        number: Of the record, for errors.
        record: In one of the forms that `CausalLM` lists.
        tokenizer: The Hugging Face tokenizer.
        vocabulary: Number of token ids that the model knows; None if it does not say.

    Returns:
        One or more.

    Raises:
        BadInput: If the record has none of the forms, or two of them, or tokens that the model does not know.
    """
    where = f"record {number}"
    if "input_ids" in record:
        ids, labels = _ready_ids(where, record, vocabulary)
        documents = unpacked(where, record, ids, labels) if ids else [(ids, labels)]
        text = str(record.get("text", "")) if len(documents) == 1 else ""
        return [Tokenized(*document, text=text) for document in documents]
    text = _of_text(number, record, tokenizer)
    check_tokens(where, text.ids, vocabulary, tokenizer)
    return [text]


def _of_text(number: int, record: Mapping[str, Any], tokenizer: Any) -> Tokenized:
    """A record's text by its tokenizer.

    Raises:
        BadInput: If the record has none of the forms, or two of them.
    """
    where = f"record {number}"
    both = [
        fields
        for fields in (("text", "completion"), ("messages", "text"), ("messages", "completion"))
        if all(f in record for f in fields)
    ]
    if both:
        raise BadInput(
            found=f"{where} with both {both[0][0]!r} and {both[0][1]!r}",
            needed=f"one of the forms {_FORMS}",
            do="drop the field that is not meant",
        )
    if tokenizer is None and any(field in record for field in ("text", "prompt", "completion", "messages")):
        raise BadInput(
            found=f"{where} with a text for a task without a tokenizer",
            needed="the model's tokenizer, or ready 'input_ids'",
            do="pass the tokenizer to the task",
        )
    if "messages" in record:
        return _of_ranges(*rendered(where, record, tokenizer), tokenizer)
    if "text" in record and record.get("scored_spans") is not None:
        return _of_ranges(text_field(number, "text", record["text"]), _spans(where, record["scored_spans"]), tokenizer)
    if "text" in record:
        text = text_field(number, "text", record["text"])
        ids, spans = encoded(tokenizer, text, special=True)
        return Tokenized(ids, ids, text, 0, spans)
    if "prompt" in record and "completion" in record:
        prompt, completion = (text_field(number, field, record[field]) for field in ("prompt", "completion"))
        ids, spans = encoded(tokenizer, prompt, special=True)
        more, more_spans = encoded(tokenizer, completion, special=False)
        shifted = [(a + len(prompt), b + len(prompt)) for a, b in more_spans]
        return Tokenized(ids + more, [IGNORED] * len(ids) + more, prompt + completion, len(prompt), spans + shifted)
    raise BadInput(found=f"{where} with the fields {sorted(map(str, record))}", needed=_FORMS, do="rename the fields")


def _spans(where: str, given: Any) -> Ranges:
    given = given.tolist() if isinstance(given, np.ndarray) else given
    rows = [whole_numbers(pair) for pair in given] if isinstance(given, Sequence) and not isinstance(given, str | bytes) else []
    if not rows or any(row is None or len(row) != 2 for row in rows):
        raise BadInput(
            found=f"{where} with scored_spans that are no pairs of whole numbers",
            needed="for each span its first character and the one after its last",
            do="correct them",
        )
    return tuple((row[0], row[1]) for row in rows if row is not None)


def _of_ranges(text: str, scored: Ranges, tokenizer: Any) -> Tokenized:
    """A text that has its special tokens in it, some characters of which are scored: with a token that reaches into them, all of it."""
    ids, spans = encoded(tokenizer, text, special=False)
    is_scored = [any(a < stop and start < b for start, stop in scored) for a, b in spans]
    labels = [token if inside else IGNORED for token, inside in zip(ids, is_scored, strict=True)]
    return Tokenized(ids, labels, text, scored[0][0], spans, scored)


def _ready_ids(where: str, record: Mapping[str, Any], vocabulary: int | None) -> tuple[list[int], list[int]]:
    ids = whole_numbers(record["input_ids"])
    labels = whole_numbers(record.get("labels", ids))
    if ids is None or labels is None:
        raise BadInput(
            found=f"{where} with input_ids or labels that are no list of integers",
            needed="token ids, one after the other",
            do="convert them; of a batch of one row take the row",
        )
    allowed = range(1 << 62 if vocabulary is None else vocabulary)
    wrong = [token for token in ids if token not in allowed] + [t for t in labels if t not in allowed and t != IGNORED]
    if wrong or len(ids) != len(labels):
        raise BadInput(
            found=f"{where} with {f'the token id {wrong[0]}' if wrong else f'{len(labels)} labels for {len(ids)} input_ids'}",
            needed=f"as many labels as input_ids, each from 0 to {allowed.stop - 1}, labels also {IGNORED}",
            do="check which tokenizer the ids are from",
        )
    return ids, labels


def encoded(tokenizer: Any, text: str, *, special: bool) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids of a text, and the characters of each where the tokenizer can tell.

    Args:
        tokenizer: A Hugging Face tokenizer.
        text: The text.
        special: Whether to add the marks that the tokenizer puts around a text.

    Returns:
        Ids, and spans of characters; no spans from a slow tokenizer.
    """
    if getattr(tokenizer, "is_fast", False):
        encoding = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
        return list(encoding["input_ids"]), [(int(a), int(b)) for a, b in encoding["offset_mapping"]]
    return list(tokenizer(text, add_special_tokens=special)["input_ids"]), []
