"""What requests hold, with examples for the OpenAPI page."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from whence.errors import BadInput
from whence.serve.catalog import Filter, seconds_of
from whence.serve.config import ServeConfig
from whence.serve.desk import Question

__all__ = ["ASKED", "Ask", "Attribute", "Filtering", "question_of"]

ASKED: dict[str, Any] = {
    "prompt": "json.dumps: If ``ensure_ascii``",
    "k": 5,
    "tokens": True,
    "filter": {"sources": ["json*"]},
}
"""A request as the OpenAPI page shows it."""

# Surrogates and NUL are no text: tokenizers and databases refuse them.
_TEXT = r"^[^\x00]*$"
_Name = Annotated[str, StringConstraints(min_length=1, max_length=400, pattern=_TEXT)]
_Time = Annotated[str, StringConstraints(min_length=1, max_length=40)]


class Filtering(BaseModel):
    """Which training examples may be hits."""

    model_config = ConfigDict(extra="forbid")
    sources: list[_Name] = Field(default=[], max_length=64, description="Sources, or patterns with * and ?.")
    text: str = Field(default="", max_length=400, pattern=_TEXT, description="What the text has to contain, in any case.")
    since: _Time | None = Field(default=None, description="Earliest time, ISO 8601.")
    until: _Time | None = Field(default=None, description="The first time that is too late, ISO 8601.")


class Ask(BaseModel):
    """Have the model complete a prompt, and say which training examples its answer comes from."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [ASKED]})
    prompt: str = Field(min_length=1, pattern=_TEXT)
    max_tokens: int = Field(default=40, ge=1, description="Tokens to write at most.")
    k: int = Field(default=10, ge=1, description="Hits on each side.")
    tokens: bool = Field(default=False, description="Score the tokens of every hit: the model runs on each again.")
    filter: Filtering = Filtering()


class Attribute(BaseModel):
    """Say which training examples a given completion comes from, or one token of it."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{**ASKED, "completion": " is false, then the return value can contain non-ASCII"}]},
    )
    prompt: str = Field(default="", pattern=_TEXT, description="What comes before; empty to ask about a whole text.")
    completion: str = Field(min_length=1, pattern=_TEXT)
    token: int | None = Field(default=None, ge=0, description="Only this token of the completion, counted from 0.")
    k: int = Field(default=10, ge=1, description="Hits on each side.")
    tokens: bool = Field(default=False, description="Score the tokens of every hit: the model runs on each again.")
    filter: Filtering = Filtering()


def question_of(request: Ask | Attribute, config: ServeConfig) -> Question:
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
    longest = max(len(request.prompt), len(completion or ""))
    checks = [(longest, config.max_characters, "characters"), (request.k, config.max_k, "hits on each side")]
    if isinstance(request, Ask):
        checks.append((request.max_tokens, config.max_new_tokens, "tokens to write"))
    for found, most, what in checks:
        if found > most:
            raise BadInput(found=f"{found:,} {what}", needed=f"at most {most:,}", do="ask for less")
    chosen = request.filter
    if config.redacted and chosen.text:
        raise BadInput(
            found="a filter by text on a redacted service",
            needed="filters by source or time: a search would tell what the texts hold",
            do="leave it out",
        )
    if config.redacted and request.tokens:
        raise BadInput(
            found="token scores on a redacted service",
            needed="scores of whole examples: tokens are parts of the texts",
            do="leave them out",
        )
    return Question(
        prompt=request.prompt,
        completion=completion,
        token=request.token if isinstance(request, Attribute) else None,
        k=request.k,
        tokens=request.tokens,
        filter=Filter(
            sources=tuple(chosen.sources),
            text=chosen.text,
            since=None if chosen.since is None else seconds_of(chosen.since),
            until=None if chosen.until is None else seconds_of(chosen.until),
        ),
        max_tokens=request.max_tokens if isinstance(request, Ask) else 1,
    )
