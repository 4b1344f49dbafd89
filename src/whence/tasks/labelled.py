"""Records with one target each as examples: what classification and regression share."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from whence.data import Example
from whence.errors import BadInput
from whence.tasks.fields import array_field, plain_text, record_id, record_source, valid_text
from whence.tasks.images import image_path, image_sha256
from whence.tasks.token_inputs import check_tokens, configured_context, fits_context, vocabulary_size

__all__ = ["Texts", "as_mapping", "labelled_example", "target_of"]

# Fields of a record that do not go into the model.
_APART = ("id", "source", "text", "text_pair")


@dataclass(frozen=True)
class Texts:
    """How texts become token ids.

    Args:
        tokenizer: A Hugging Face tokenizer.
        limit: Tokens at most.
        cuts: Whether longer ones are cut instead of refused.
    """

    tokenizer: Any
    limit: int
    cuts: bool

    def encoded(self, number: int, name: str, record: Mapping[str, Any], vocabulary: int | None) -> dict[str, np.ndarray]:
        """The model's inputs from a text, or from two that the tokenizer joins in its own way.

        Args:
            number: Of the record, for errors.
            name: Its id.
            record: With `text`, and perhaps `text_pair`.
            vocabulary: Number of token ids that the model knows; None if it does not say.

        Raises:
            BadInput: If it is no text, an empty one, one that is too long, or one with tokens that the model does not know.
        """
        texts = [record.get("text"), *([record["text_pair"]] if "text_pair" in record else [])]
        for field, text in zip(("text", "text_pair"), texts, strict=False):
            if not isinstance(text, str) or not text:
                what = "a text" if field == "text" else "a second text"
                raise BadInput(found=f"record {number} without {what}", needed=f"a non-empty {field!r}", do="drop or fill it")
            valid_text(number, field, text)
        cut = {"truncation": True, "max_length": self.limit} if self.cuts else {}
        encoded = self.tokenizer(*texts, verbose=False, **cut)
        ids = encoded["input_ids"]
        if not len(ids):
            raise BadInput(found=f"record {number} with a text of no tokens", needed="one at least", do="drop or fill it")
        choices = "pass long='truncate' to cut longer ones (--long truncate), as training with a truncating tokenizer did"
        fits_context(name, len(ids), self.limit, choices)
        check_tokens(f"record {number}", ids, vocabulary, self.tokenizer)
        return {key: np.asarray(value, np.int64) for key, value in encoded.items()}


def as_mapping(number: int, record: Any, target_name: str, *, has_texts: bool) -> Mapping[str, Any]:
    """A record as a mapping, if it is a pair of an input and its target.

    Args:
        number: Of the record, for errors.
        record: A pair or a mapping.
        target_name: The field with the target, "label" or "target".
        has_texts: Whether the input of a pair may be a text.

    Raises:
        BadInput: If it is something else.
    """
    is_row = isinstance(record, np.ndarray) and record.dtype.hasobject  # of a table of objects
    if (is_row or (isinstance(record, Sequence) and not isinstance(record, str | bytes | bytearray))) and len(record) == 2:
        name = "text" if has_texts and isinstance(record[0], str) else "inputs"
        return {name: record[0], target_name: record[1]}
    if not isinstance(record, Mapping) or target_name not in record:
        what = f"the fields {sorted(map(str, record))}" if isinstance(record, Mapping) else f"a {type(record).__name__}"
        raise BadInput(
            found=f"record {number} with {what}" if isinstance(record, Mapping) else f"record {number}, {what}",
            needed=f"a pair (input, {target_name}) or a mapping with {target_name!r}",
            do="convert the records; on the command line ask with --file and a file of such records",
        )
    return record


def target_of(number: int, value: Any) -> np.ndarray:
    """A record's real targets.

    Raises:
        BadInput: If one is no finite number.
    """
    target = array_field(number, "target", value)
    if target.dtype.kind == "c" or not target.size or not np.isfinite(target).all():
        raise BadInput(
            found=f"record {number} with the target {value!r:.60}",
            needed="finite numbers",
            do="drop the record or fill it in",
        )
    return target


def labelled_example(
    number: int, record: Mapping[str, Any], target_name: str, target: np.ndarray, model: nn.Module, texts: Texts | None
) -> Example:
    """One record as an example.

    Args:
        number: Of the record, for errors, and its id if it has none.
        record: A mapping.
        target_name: The field with the target, "label" or "target".
        target: What it says.
        model: What takes the inputs.
        texts: For records with a text.

    Raises:
        BadInput: If its inputs are none that the model takes.
    """
    image = image_path(record.get("image"))
    name = record_id(number, record, None if image is None else record["image"])
    source = record_source(number, record)
    vocabulary = vocabulary_size(model)
    if image is not None:
        _check_alone(number, record, target_name)
        fields = {"image_sha256": image_sha256(number, image), "target": target}
        return Example(name, fields, 1, source, plain_text(number, record), image=str(image))
    if texts is not None:
        inputs = texts.encoded(number, name, record, vocabulary)
        shown = "\n".join(record[field] for field in ("text", "text_pair") if field in record)
        return Example(name, {**inputs, "target": target}, len(inputs["input_ids"]), source, shown)
    inputs = {str(key): array_field(number, key, value) for key, value in record.items() if key not in (target_name, *_APART)}
    _check_names(number, list(inputs), model)
    if "input_ids" in inputs:
        _check_ids(f"record {number}", inputs["input_ids"], vocabulary)
        fits_context(
            name, len(inputs["input_ids"]), configured_context(model) or len(inputs["input_ids"]), "cut it, or drop it"
        )
    length = max((len(value) for value in inputs.values() if value.ndim == 1 and value.dtype.kind in "iu"), default=1)
    return Example(name, {**inputs, "target": target}, max(length, 1), source, plain_text(number, record))


def _check_alone(number: int, record: Mapping[str, Any], target_name: str) -> None:
    others = sorted(set(record) - {"image", target_name, *_APART})
    if others:
        raise BadInput(
            found=f"record {number} with an image and {others[0]!r}",
            needed="the image as the only input",
            do="drop the field, or use whence.Custom with a collate function that opens the image",
        )


def _check_names(number: int, names: Sequence[str], model: nn.Module) -> None:
    """Refuse inputs that the model's forward has no argument for.

    Raises:
        BadInput: If there is one, or there are none at all.
    """
    if not names:
        raise BadInput(found=f"record {number} without an input", needed="one at least", do="add it to the record")
    if set(names) == {"inputs"}:
        return
    taken = inspect.signature(model.forward).parameters
    odd = [name for name in names if name not in taken]
    if odd and not any(parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) for parameter in taken.values()):
        raise BadInput(
            found=f"record {number} with the field {odd[0]!r}, which the model does not take",
            needed=f"its arguments by name: {', '.join(taken)}",
            do="drop or rename the field",
        )


def _check_ids(where: str, ids: np.ndarray, vocabulary: int | None) -> None:
    if ids.dtype.kind not in "iu" or ids.ndim != 1 or not ids.size:
        raise BadInput(
            found=f"{where} with input_ids that are no list of integers",
            needed="token ids, one after the other",
            do="convert them; of a batch of one row take the row",
        )
    check_tokens(where, ids.tolist(), vocabulary)
