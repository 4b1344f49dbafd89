"""What a model and its tokenizer say of token ids: how many there are, how many fit, and what fills up the shorter rows of a batch."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from whence.errors import BadInput

__all__ = [
    "check_tokens",
    "configured_context",
    "context_length",
    "end_marks",
    "fits_context",
    "padding_token",
    "vocabulary_size",
]

# Tokenizers without a limit report a number with thirty digits.
_NO_LIMIT = 1 << 20


def vocabulary_size(model: nn.Module) -> int | None:
    """Number of token ids that the model has an embedding for; None if it does not say."""
    try:
        of_hugging_face: Any = model
        embedding = of_hugging_face.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    # Of a layer whose weight is packed into fewer bits only the number is right.
    size = getattr(embedding, "num_embeddings", None)
    weight = getattr(embedding, "weight", None)
    return int(size) if size is not None else None if weight is None else int(weight.shape[0])


def context_length(model: nn.Module, tokenizer: Any) -> int:
    """Tokens that the model takes at most, by its configuration, or by its tokenizer if that does not say."""
    own = configured_context(model)
    return min(int(getattr(tokenizer, "model_max_length", 2048)), _NO_LIMIT) if own is None else own


def configured_context(model: nn.Module) -> int | None:
    """Tokens that the model takes at most by its configuration; None if that does not say."""
    config = getattr(model, "config", None)
    for name in ("max_position_embeddings", "n_positions"):
        length = getattr(config, name, None)
        if isinstance(length, int) and length > 0:  # XLNet says -1 for any number
            return length - _reserved_positions(model)
    return None


def _reserved_positions(model: nn.Module) -> int:
    """Positions at the start that are not used: RoBERTa and its like count from behind the padding's."""
    for name, module in model.named_modules():
        if name.rpartition(".")[2] == "position_embeddings" and isinstance(module, nn.Embedding):
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0


def padding_token(model: nn.Module, tokenizer: Any) -> int | None:
    """The token that fills up rows: the model's own, which decides what it takes for the end of a text, or else its tokenizer's.

    Returns:
        Its id; 0 for a model without a configuration, which can only go by the mask; None for one that has no such token.
    """
    vocabulary = vocabulary_size(model)
    config: Any = getattr(model, "config", None)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    own = getattr(config, "pad_token_id", None)
    given = getattr(tokenizer, "pad_token_id", None) if own is None else own
    if given is not None:
        # Some configurations name a token that was never given an embedding, such as -1.
        return int(given) if vocabulary is None or 0 <= int(given) < vocabulary else None
    return None if hasattr(config, "pad_token_id") else 0


def check_tokens(where: str, ids: Sequence[int], vocabulary: int | None, tokenizer: Any = None) -> None:
    """Refuse tokens that the model has no embedding for.

    Args:
        where: What errors call the record, such as "record 3".
        ids: Its tokens.
        vocabulary: Number of those that there are; None if it is not known.
        tokenizer: What made them from a text, for the error; None for ready ones.

    Raises:
        BadInput: If there is one.
    """
    if not len(ids) or (min(ids) >= 0 and (vocabulary is None or max(ids) < vocabulary)):
        return
    wrong = next(token for token in ids if token < 0 or (vocabulary is not None and token >= vocabulary))
    word = "" if tokenizer is None else f" ({tokenizer.convert_ids_to_tokens(int(wrong))!r})"
    allowed = "0 or more" if vocabulary is None else f"from 0 to {vocabulary - 1}, which the model has embeddings for"
    raise BadInput(
        found=f"{where} with the token id {wrong}{word}",
        needed=f"token ids {allowed}",
        do="check which tokenizer the ids are from"
        if tokenizer is None
        else "load the tokenizer that the model was trained with",
    )


def fits_context(name: str, count: int, limit: int, choices: str) -> None:
    """Refuse a text that is longer than the model takes.

    Args:
        name: Id of the example.
        count: Its tokens.
        limit: What the model takes.
        choices: What may be asked for instead.

    Raises:
        BadInput: If it is longer.
    """
    if count > limit:
        raise BadInput(
            found=f"example {name!r} of {count:,} tokens",
            needed=f"at most {limit:,}, the model's context",
            do=choices,
        )


def end_marks(model: nn.Module, tokenizer: Any) -> set[int]:
    """Tokens after which a text ends, by the model's configuration of generation and by its tokenizer."""
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    marks = named if isinstance(named, list | tuple) else [named]
    return {mark for mark in (*marks, getattr(tokenizer, "eos_token_id", None)) if isinstance(mark, int)}
