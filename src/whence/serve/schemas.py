"""What requests hold, with examples for the OpenAPI page."""

import base64
import secrets
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from whence.errors import BadInput
from whence.serve.catalog import Filter, seconds_of
from whence.serve.config import ServeConfig
from whence.serve.limits import LONGEST_ID, LONGEST_NAME, LONGEST_TIME, MOST_DOCUMENTS, MOST_SOURCES
from whence.serve.question import Item, Question

__all__ = ["EXAMPLE_QUESTION", "AddDocuments", "Ask", "Attribute", "AttributeItem", "Document", "Filtering", "question_of"]

EXAMPLE_QUESTION: dict[str, Any] = {
    "prompt": "json.dumps: If ``ensure_ascii``",
    "k": 5,
    "tokens": True,
    "filter": {"sources": ["json*"]},
}
"""A request as the OpenAPI page shows it."""

# Surrogates and NUL are no text: tokenizers and databases refuse them.
_TEXT = r"^[^\x00]*$"
# Far above every limit: longer numbers are no counts.
_MANY = 1 << 31
# Below this, probabilities are those of the likeliest token alone, and logits divided by it are no numbers.
_LOWEST_TEMPERATURE = 0.01
_Name = Annotated[str, StringConstraints(min_length=1, max_length=LONGEST_NAME, pattern=_TEXT)]
_Label = Annotated[str, StringConstraints(max_length=LONGEST_NAME, pattern=_TEXT)]
_Time = Annotated[str, StringConstraints(min_length=1, max_length=LONGEST_TIME, pattern=_TEXT)]


class Document(BaseModel):
    """A training document that comes while the service answers."""

    model_config = ConfigDict(extra="forbid")
    text: str = Field(min_length=1, pattern=_TEXT)
    source: str = Field(default="", max_length=LONGEST_NAME, pattern=_TEXT)
    id: _Name | None = Field(default=None, description="Left out, one is made of the other fields.")
    label: _Name | None = Field(default=None, description="For classifiers of texts: its class, by name or number.")


class AddDocuments(BaseModel):
    """Add documents to a store."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"documents": [{"text": "json.dumps writes text.", "source": "json"}]}]}
    )
    documents: list[Document] = Field(min_length=1, max_length=MOST_DOCUMENTS)


class Filtering(BaseModel):
    """Which training examples may be hits."""

    model_config = ConfigDict(extra="forbid")
    sources: list[_Name] = Field(default=[], max_length=MOST_SOURCES, description="Sources, or patterns with * and ?.")
    text: str = Field(
        default="", max_length=LONGEST_NAME, pattern=_TEXT, description="What the text has to contain, in any case."
    )
    since: _Time | None = Field(default=None, description="Earliest time, ISO 8601.")
    until: _Time | None = Field(default=None, description="The first time that is too late, ISO 8601.")


class Ask(BaseModel):
    """Have the model complete a prompt, and say which training examples its answer comes from."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [EXAMPLE_QUESTION]})
    prompt: str = Field(min_length=1, pattern=_TEXT)
    max_tokens: int = Field(default=40, ge=1, lt=_MANY, description="Tokens to write at most.")
    temperature: float = Field(
        default=0,
        ge=0,
        le=10,
        allow_inf_nan=False,
        description="0 for the likeliest token at each step, 1 to draw as the model says.",
    )
    seed: int | None = Field(
        default=None, ge=0, lt=1 << 53, description="Of the draws; left out, a new one, which the answer names."
    )
    k: int = Field(default=10, ge=1, lt=_MANY, description="Hits on each side.")
    tokens: bool = Field(default=False, description="Score the tokens of every hit: the model runs on each again.")
    filter: Filtering = Filtering()


class Attribute(BaseModel):
    """Say which training examples a given completion comes from, or one token of it."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{**EXAMPLE_QUESTION, "completion": " is false, then the return value can contain non-ASCII"}]
        },
    )
    prompt: str = Field(default="", pattern=_TEXT, description="What comes before; empty to ask about a whole text.")
    completion: str = Field(min_length=1, pattern=_TEXT)
    foil: str = Field(
        default="", pattern=_TEXT, description="Why the completion and not this? Empty to ask about the completion alone."
    )
    token: int | None = Field(default=None, ge=1, lt=_MANY, description="Only this token of the completion, counted from 1.")
    k: int = Field(default=10, ge=1, lt=_MANY, description="Hits on each side.")
    tokens: bool = Field(default=False, description="Score the tokens of every hit: the model runs on each again.")
    filter: Filtering = Filtering()


class AttributeItem(BaseModel):
    """Say which training examples make the model see a text or an image as it does."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"text": "a good day", "label": "positive", "k": 5}]}
    )
    text: str = Field(default="", pattern=_TEXT, description="For stores of texts.")
    image: str = Field(default="", description="For stores of images: a PNG or JPEG file in base64.")
    example: str = Field(
        default="",
        max_length=LONGEST_ID,
        pattern=_TEXT,
        description="Or the id of the training example whose image is asked about.",
    )
    label: _Label | int | None = Field(
        default=None, description="A class by name or number; left out, the one that the model sees."
    )
    k: int = Field(default=10, ge=1, lt=_MANY, description="Hits on each side.")
    filter: Filtering = Filtering()


def question_of(request: Ask | Attribute | AttributeItem, config: ServeConfig) -> Question:
    """A request as a question, within the service's limits.

    Args:
        request: What came in.
        config: The limits.

    Returns:
        The question.

    Raises:
        BadInput: If it asks for more than the service gives.
    """
    completion = request.completion if isinstance(request, Attribute) else None
    item = _item(request, config) if isinstance(request, AttributeItem) else None
    prompt = "" if isinstance(request, AttributeItem) else request.prompt
    foil = request.foil if isinstance(request, Attribute) else ""
    if foil and (foil == completion or (isinstance(request, Attribute) and request.token is not None)):
        raise BadInput(
            found="a foil that is the completion itself" if foil == completion else "a foil for one token of the completion",
            needed="another text, for the whole completion",
            do="change it, or leave it out",
        )
    longest = max(len(prompt), len(completion or ""), len(foil), len(item.text) if item else 0)
    checks = [(longest, config.max_characters, "characters"), (request.k, config.max_k, "hits on each side")]
    if isinstance(request, Ask):
        checks.append((request.max_tokens, config.max_new_tokens, "tokens to write"))
    for value, most, what in checks:
        if value > most:
            raise BadInput(found=f"{value:,} {what}", needed=f"at most {most:,}", do="ask for less")
    chosen = request.filter
    if config.redacted and chosen.text:
        raise BadInput(
            found="a filter by text on a redacted service",
            needed="filters by source: a search would tell what the texts hold",
            do="leave it out",
        )
    if config.redacted and (chosen.since is not None or chosen.until is not None):
        raise BadInput(
            found="a filter by time on a redacted service",
            needed="filters by source: a search would tell the times of examples",
            do="leave it out",
        )
    tokens = not isinstance(request, AttributeItem) and request.tokens
    if config.redacted and tokens:
        raise BadInput(
            found="token scores on a redacted service",
            needed="scores of whole examples: tokens are parts of the texts",
            do="leave them out",
        )
    return Question(
        prompt=prompt,
        completion=completion,
        foil=foil,
        item=item,
        token=request.token if isinstance(request, Attribute) else None,
        k=request.k,
        tokens=tokens,
        filter=Filter(
            sources=tuple(chosen.sources),
            text=chosen.text,
            since=None if chosen.since is None else seconds_of(chosen.since),
            until=None if chosen.until is None else seconds_of(chosen.until),
        ),
        **(_writing(request) if isinstance(request, Ask) else {}),
    )


def _writing(request: Ask) -> dict[str, Any]:
    if request.seed is not None and not request.temperature:
        raise BadInput(
            found=f"seed {request.seed} with temperature 0",
            needed="a temperature above 0 for draws",
            do="raise it, or leave seed out",
        )
    if 0 < request.temperature < _LOWEST_TEMPERATURE:
        raise BadInput(found=f"temperature {request.temperature:g}", needed=f"0, or {_LOWEST_TEMPERATURE} to 10", do="pick one")
    seed = secrets.randbelow(1 << 32) if request.seed is None else request.seed
    return {"max_tokens": request.max_tokens, "temperature": request.temperature, "seed": seed}


def _item(request: AttributeItem, config: ServeConfig) -> Item:
    given = [name for name in ("text", "image", "example") if getattr(request, name)]
    if len(given) != 1:
        raise BadInput(
            found=" and ".join(given) or "nothing to ask about", needed="one of text, image and example", do="pass one"
        )
    if config.redacted and request.example:
        raise BadInput(
            found="a training example as the question on a redacted service",
            needed="an image of one's own",
            do="upload one",
        )
    try:
        image = base64.b64decode(request.image, validate=True)
    except ValueError:
        raise BadInput(found="an image that is not in base64", needed="a PNG or JPEG file in base64", do="encode it") from None
    if len(image) > config.max_image_bytes:
        raise BadInput(
            found=f"an image of {len(image):,} bytes", needed=f"at most {config.max_image_bytes:,}", do="make it smaller"
        )
    label = "" if request.label is None else str(request.label)
    return Item(text=request.text, image=image, example=request.example, label=label)
