"""What may be asked of a store."""

import dataclasses
from typing import Literal

from whence.serve.catalog import Filter

__all__ = ["SIDES", "Item", "Kind", "Question", "Token"]

SIDES = ("proponents", "opponents")
"""The two lists of hits of an answer."""

Kind = Literal["completion", "text", "image"]
"""What a store is asked about: the completion of a prompt, the label of a text, or an image (with its label, where the model has labels)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
    """A text or an image to ask about, with its label.

    Args:
        text: The text.
        image: The file of an image, PNG or JPEG.
        example: Id of the training example whose image is asked about.
        label: A class by number or name; empty for the model's own.
    """

    text: str = ""
    image: bytes = dataclasses.field(default=b"", repr=False)
    example: str = ""
    label: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked of a store.

    Args:
        prompt: What comes before; empty to ask about a whole text.
        completion: What is asked about; None to have the model write it first.
        foil: What it is held against: why the completion and not this? Empty for nothing.
        item: A text or an image with a label, instead of a prompt and its completion.
        token: Only this token of the completion, counted from 1; None for all of them.
        k: Hits on each side.
        tokens: Whether hits get a score per token.
        filter: Which examples may be hits.
        max_tokens: Tokens to write at most.
        temperature: 0 to write the likeliest token at each step, else tokens are drawn from probabilities to the power of one over this.
        seed: Of the draws.
    """

    prompt: str = ""
    completion: str | None = None
    foil: str = ""
    item: Item | None = None
    token: int | None = None
    k: int = 10
    tokens: bool = False
    filter: Filter = dataclasses.field(default_factory=Filter)
    max_tokens: int = 40
    temperature: float = 0.0
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Token:
    """A token of the completion.

    Args:
        start: Its first character there.
        stop: One past its last.
        position: Its place in the model's input.
        is_scored: Whether it can be asked about: the very first token of a text cannot.
    """

    start: int
    stop: int
    position: int
    is_scored: bool
