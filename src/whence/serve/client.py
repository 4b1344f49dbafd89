"""Asking a service from Python, with nothing but Python."""

from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlencode

from whence.errors import BadInput
from whence.plain_files import read_plain
from whence.report import Beside, Hit, Hits, QueryFacts
from whence.serve.transport import Transport
from whence.settings import Contrast, Writing
from whence.strict_json import is_plain

__all__ = ["Client", "HitFilter"]

Progress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class HitFilter:
    """Which training examples may be hits. What is left empty lets all through.

    Args:
        sources: Names of sources, or patterns with * and ?.
        text: What their text has to contain.
        since: Earliest time, in ISO 8601.
        until: The first time that is too late.
    """

    sources: Sequence[str] = ()
    text: str = ""
    since: str | None = None
    until: str | None = None

    def body(self) -> dict[str, Any]:
        """As the service takes it."""
        return {"filter": {"sources": list(self.sources), "text": self.text, "since": self.since, "until": self.until}}


class Client:
    """A service started with `whence serve`.

    It speaks to that address alone: a redirect is an error, since the token is for nobody else.

    Args:
        url: Its address, such as http://127.0.0.1:8420.
        token: What it wants to see, if it wants to.
        write_token: What it wants to see of those who add and delete documents.
        seconds: How long to wait for an answer, and for room in a service that is full.

    Raises:
        BadInput: If the address is none, or the token cannot be sent.
    """

    def __init__(self, url: str, *, token: str | None = None, write_token: str | None = None, seconds: float = 120.0):
        self.transport, self.writer = Transport(url, token, seconds), Transport(url, write_token, seconds)
        self.url = self.transport.url

    def stores(self) -> list[dict[str, Any]]:
        """What the service's stores are, what was verified of them and what was not."""
        stores = self._part(self._get("/v1/stores"), "stores")
        if not isinstance(stores, list):
            raise self.transport.foreign()
        return stores

    def ask(
        self,
        prompt: str,
        *,
        store: str | None = None,
        writing: Writing = Writing(),
        k: int = 10,
        tokens: bool = False,
        among: HitFilter = HitFilter(),
        on_progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Have the model complete a prompt, and its answer attributed.

        Args:
            prompt: What the model goes on from.
            store: Name of the store; may be left out where there is one.
            writing: How the model writes. With a temperature another seed draws other tokens; the answer names it.
            k: Hits on each side.
            tokens: Whether hits get a score per token.
            among: Which training examples may be hits.
            on_progress: Called with each event on the way.

        Returns:
            The answer, as docs/serve.md describes it.
        """
        drawn = {"seed": writing.seed} if writing.temperature else {}
        body = {"prompt": prompt, "max_tokens": writing.max_new_tokens, "temperature": writing.temperature, **drawn}
        return self._answer_to(store, "ask", body | {"k": k, "tokens": tokens}, among.body(), on_progress)

    def attribute(
        self,
        completion: str | Contrast,
        *,
        prompt: str = "",
        token: int | None = None,
        store: str | None = None,
        k: int = 10,
        tokens: bool = False,
        among: HitFilter = HitFilter(),
        on_progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Have a given completion attributed, or one token of it.

        Args:
            completion: What is asked about, or a `whence.settings.Contrast`: why this and not that.
            prompt: What comes before; empty to ask about a whole text.
            token: Only this token of the completion, counted from 1.
            store: As in `ask`.
            k: As in `ask`.
            tokens: As in `ask`.
            among: As in `ask`.
            on_progress: As in `ask`.

        Returns:
            As `ask` does.
        """
        texts = {"completion": completion} if isinstance(completion, str) else asdict(completion)
        body = {"prompt": prompt, **texts, "token": token, "k": k, "tokens": tokens}
        return self._answer_to(store, "attribute", body, among.body(), on_progress)

    def attribute_item(
        self,
        *,
        text: str = "",
        image: str | Path | bytes = b"",
        example: str = "",
        label: str | int | None = None,
        store: str | None = None,
        k: int = 10,
        among: HitFilter = HitFilter(),
        on_progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Have the label of a text or of an image attributed, or an image of a diffusion model; one of text, image and example.

        Args:
            text: For a store of texts.
            image: For a store of images: a PNG or JPEG file, by its path or its bytes.
            example: Or the id of the training example whose image is asked about.
            label: A class by name or number; None for the one that the model sees.
            store: As in `ask`.
            k: As in `ask`.
            among: As in `ask`, but for `text`.
            on_progress: As in `ask`.

        Returns:
            As `ask` does, with `item`.

        Raises:
            BadInput: If the file cannot be read.
        """
        try:
            content = b64encode(image if isinstance(image, bytes) else read_plain(Path(image), is_named=True)).decode()
        except OSError as error:
            raise BadInput(
                found=f"the image {image!s}, which cannot be read ({error.strerror})",
                needed="a PNG or JPEG file",
                do="check the path",
            ) from error
        body = {"text": text, "image": content, "example": example, "label": label, "k": k}
        return self._answer_to(store, "attribute-item", body, among.body(), on_progress)

    def query(self, queries: Iterable[Any], *, store: str | None = None, k: int = 10, tokens: bool = False) -> Hits:
        """What `whence.query` gives, from the service.

        Args:
            queries: Texts, or mappings with `text`, or with `prompt` and `completion`, and perhaps a `foil`.
            store: As in `ask`.
            k: Hits on each side.
            tokens: Whether hits get a score per token.

        Returns:
            Both tails per query; with the second column of words, where the service has one (`whence serve --verbatim`).

        Raises:
            BadInput: If there is no query, or one has no text.
        """
        answers, facts = [], []
        for number, query in enumerate(queries):
            record = {"text": query} if isinstance(query, str) else query
            completion = record.get("completion", record.get("text")) if isinstance(record, Mapping) else None
            if not isinstance(completion, str):
                raise BadInput(
                    found=f"query {number} without a text", needed="'text', or 'prompt' and 'completion'", do="write it so"
                )
            plain = {str(name): value for name, value in record.items() if name != "id" and is_plain(value)}
            facts.append(QueryFacts({"id": str(record.get("id", number)), **plain}))
            question = _question(number, completion, record)
            answers.append(self.attribute(question, prompt=record.get("prompt", ""), store=store, k=k, tokens=tokens))
        if not answers:
            raise BadInput(found="no query", needed="one or more", do="add one")
        try:
            return _hits(answers, facts)
        except (KeyError, TypeError, ValueError):
            raise self.transport.foreign() from None

    def example(self, name: str, *, store: str | None = None) -> dict[str, Any]:
        """A training example by its id, with what is known of it."""
        return self._get(f"/v1/stores/{self._store(store)}/examples/{quote(name)}")

    def shares(self, *, store: str | None = None, since: str | None = None, until: str | None = None) -> dict[str, Any]:
        """What the sources add up to over the questions of some time; the last 30 days if left out."""
        chosen = {name: value for name, value in (("since", since), ("until", until)) if value is not None}
        return self._get(f"/v1/stores/{self._store(store)}/shares?{urlencode(chosen)}")

    def answer(self, name: str) -> dict[str, Any]:
        """An answer that was given before, by its id."""
        return self._get(f"/v1/answers/{quote(name, safe='')}")

    def add_documents(self, documents: Iterable[Mapping[str, Any]], *, store: str | None = None) -> dict[str, Any]:
        """Add documents to a store; the client needs `write_token`. Adding the same ones again changes nothing.

        Args:
            documents: Mappings with `text`, and perhaps `source`, `id` and, for classifiers, `label`.
            store: As in `ask`.

        Returns:
            The `ids`, those that were `added`, and the store's `digest` and `num_examples` after it.
        """
        body = {"documents": list(documents)}
        return dict(self.writer.json("POST", f"/v1/stores/{self._store(store)}/documents", body))

    def delete_documents(self, ids: Sequence[str], *, store: str | None = None) -> dict[str, Any]:
        """Delete documents from a store; the client needs `write_token`.

        Args:
            ids: Of the documents.
            store: As in `ask`.

        Returns:
            What was `deleted`, and the store's `digest` and `num_examples` after it.
        """
        chosen = urlencode([("id", name) for name in ids])
        return dict(self.writer.json("DELETE", f"/v1/stores/{self._store(store)}/documents?{chosen}"))

    def cancel(self, name: str) -> None:
        """Stop the work on an answer whose `begun` event was seen."""
        self.transport.json("POST", f"/v1/answers/{quote(name, safe='')}/cancel", {})

    def _answer_to(
        self,
        store: str | None,
        verb: Literal["ask", "attribute", "attribute-item"],
        body: dict[str, Any],
        chosen: Any,
        listener: Progress | None,
    ) -> dict[str, Any]:
        path = f"/v1/stores/{self._store(store)}/{verb}"
        if listener is None:
            return dict(self.transport.json("POST", path, body | chosen))
        for name, data in self.transport.events(path, body | chosen):
            if name == "answer":
                return dict(data)
            if name == "error":
                raise self.transport.error_of(data)
            listener({"event": name, **data})
        raise self.transport.failed("the answer ended before its end")

    def _store(self, name: str | None) -> str:
        if name is None:
            names = [self._part(store, "name") for store in self.stores()]
            if len(names) != 1:
                url = self.transport.url
                raise BadInput(found=f"{len(names)} stores at {url}", needed=f"one of: {', '.join(names)}", do="pass store")
            return quote(names[0], safe="")
        return quote(name, safe="")

    def _get(self, path: str) -> dict[str, Any]:
        return dict(self.transport.json("GET", path))

    def _part(self, answer: Any, name: str) -> Any:
        if not isinstance(answer, Mapping) or name not in answer:
            raise self.transport.foreign()
        return answer[name]


def _question(number: int, completion: str, record: Mapping[str, Any]) -> str | Contrast:
    """What a query asks about.

    Raises:
        BadInput: If it has several foils, or one of another prompt, which the service does not take.
    """
    foil = record.get("foil")
    if foil is None:
        return completion
    foil = foil[0] if isinstance(foil, list | tuple) and len(foil) == 1 else foil
    if isinstance(foil, Mapping) and foil.get("prompt", record.get("prompt")) == record.get("prompt"):
        foil = foil.get("completion")
    if not isinstance(foil, str):
        raise BadInput(found=f"query {number} with a foil that is no text", needed="one, of the same prompt", do="write it so")
    return Contrast(completion=completion, foil=foil)


def _hits(answers: Sequence[Mapping[str, Any]], facts: Sequence[QueryFacts]) -> Hits:
    first = answers[0]
    columns = tuple(_beside(answer) for answer in answers if "beside" in answer)
    if columns and len(columns) != len(answers):
        raise ValueError("a second column for some of the queries only")
    return Hits(
        queries=tuple(answer["prompt"] + answer["completion"] for answer in answers),
        proponents=tuple(tuple(map(_hit, answer["proponents"])) for answer in answers),
        opponents=tuple(tuple(map(_hit, answer["opponents"])) for answer in answers),
        measurements=tuple(answer["measurement"] for answer in answers),
        unit=first["unit"],
        method=first["method"],
        num_examples=first["num_examples"],
        notes=tuple(first["notes"]),
        measurement_unit=first["measurement_unit"],
        facts=tuple(facts),
        beside=columns,
        query_tokens=tuple(tuple(map(str, answer.get("query_tokens", ()))) for answer in answers),
    )


def _beside(answer: Mapping[str, Any]) -> Beside:
    """The second column of an answer.

    Raises:
        KeyError: If it says nothing of a hit.
    """
    column = Beside.from_dict(answer["beside"], answer["completion"], answer["num_examples"])
    for hit in (*answer["proponents"], *answer["opponents"]):
        if hit["row"] not in column.hits:
            raise KeyError(hit["row"])
    return column


def _hit(content: Mapping[str, Any]) -> Hit:
    tokens = content.get("tokens", ())
    return Hit(
        id=content["id"],
        row=content["row"],
        score=content["score"],
        source=content["source"],
        text=content.get("text", ""),
        span=tuple(content["span"]) if "span" in content else None,
        token_spans=tuple(tuple(token["span"]) for token in tokens),
        token_scores=tuple(token["score"] for token in tokens),
        query_scores=tuple(map(float, content.get("query_scores", ()))),
    )
