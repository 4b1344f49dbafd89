"""Conversations as one text and the characters of it that the assistant wrote."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from whence.errors import BadInput, first_line

__all__ = ["Ranges", "prompt_of", "rendered"]

Ranges = tuple[tuple[int, int], ...]
"""First character and one past the last, several times."""

# What a chat template puts around the assistant's words so that they can be told.
_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")


def rendered(where: str, record: Mapping[str, Any], tokenizer: Any) -> tuple[str, Ranges]:
    """The text that the tokenizer's chat template makes of a conversation, and where the assistant speaks in it.

    The template's own `{% generation %}` marks say where, if it has them. Without, a turn of the assistant is what its message adds to the
    text of the messages before it with the generation prompt: the words and the mark of the turn's end, which is what the model had to write.

    Args:
        where: What errors call the record, such as "record 3".
        record: With `messages`, mappings with `role` and `content`, and perhaps `tools`.
        tokenizer: A fast Hugging Face tokenizer with a chat template.

    Returns:
        The text with all of its special tokens, and the characters that are scored, in order.

    Raises:
        BadInput: If the assistant says nothing in it.
    """
    messages = record["messages"]
    _check(where, messages, tokenizer)
    text = _text(where, record, tokenizer, messages)
    if _MARKED.search(str(tokenizer.chat_template)):
        chat = _marked(record, tokenizer, messages)
    else:
        chat = _added(where, record, tokenizer, messages, text)
    if not chat:
        raise BadInput(
            found=f"{where} in which the assistant says nothing",
            needed="a message with the role 'assistant'",
            do="drop it, or correct the roles",
        )
    return text, chat


def prompt_of(where: str, messages: Sequence[Any], tokenizer: Any) -> str:
    """The text after which the assistant is to speak: the conversation so far with the template's generation prompt.

    Args:
        where: What errors call it.
        messages: The conversation.
        tokenizer: With a chat template.

    Returns:
        The text with all of its special tokens.
    """
    _check(where, messages, tokenizer)
    return _text(where, {}, tokenizer, messages, prompts=True)


def _check(where: str, messages: Any, tokenizer: Any) -> None:
    is_list = isinstance(messages, Sequence) and not isinstance(messages, str) and len(messages)
    if not is_list or not all(isinstance(message, Mapping) and "role" in message for message in messages):
        raise BadInput(
            found=f"{where} with messages that are no conversation",
            needed="a list of mappings with 'role' and 'content'",
            do="convert them",
        )
    if not getattr(tokenizer, "chat_template", None) or not getattr(tokenizer, "is_fast", False):
        raise BadInput(
            found=f"{where} with messages for a tokenizer without a chat template, or a slow one",
            needed="the fast tokenizer of a chat model",
            do="set tokenizer.chat_template, or give 'prompt' and 'completion'",
        )


def _text(where: str, record: Mapping[str, Any], tokenizer: Any, messages: Sequence[Any], *, prompts: bool = False) -> str:
    try:
        return tokenizer.apply_chat_template(
            list(messages), tools=record.get("tools"), tokenize=False, add_generation_prompt=prompts
        )
    except Exception as error:  # templates raise whatever their authors thought of
        raise BadInput(
            found=f"{where}, which the chat template refuses ({first_line(error)})",
            needed="a conversation as the model was trained on",
            do="correct the order and the fields of the messages",
        ) from error


def _marked(record: Mapping[str, Any], tokenizer: Any, messages: Sequence[Any]) -> Ranges:
    encoded = tokenizer.apply_chat_template(
        list(messages), tools=record.get("tools"), tokenize=True, return_dict=True, return_assistant_tokens_mask=True,
        tokenizer_kwargs={"return_offsets_mapping": True, "verbose": False},
    )  # fmt: skip
    spans: list[tuple[int, int]] = []
    before = 0
    for is_scored, (start, stop) in zip(encoded["assistant_masks"], encoded["offset_mapping"], strict=True):
        if is_scored and before:
            spans[-1] = (spans[-1][0], max(stop, spans[-1][1]))
        elif is_scored:
            spans.append((start, stop))
        before = is_scored
    return tuple(spans)


def _added(where: str, record: Mapping[str, Any], tokenizer: Any, messages: Sequence[Any], text: str) -> Ranges:
    spans = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _text(where, record, tokenizer, messages[:number], prompts=True)
        after = _text(where, record, tokenizer, messages[: number + 1])
        if not after.startswith(before) or not text.startswith(after):
            raise BadInput(
                found=f"{where} with a chat template that writes message {number} otherwise once others follow",
                needed="a template that adds each turn to the text before it, or that marks the assistant's words",
                do="put {% generation %} around them in tokenizer.chat_template, or give 'prompt' and 'completion'",
            )
        spans.append((len(before), len(after)))
    return tuple(spans)
