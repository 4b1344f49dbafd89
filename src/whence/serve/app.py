"""The service's paths."""

import asyncio
import base64
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from importlib.resources import files
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response, StreamingResponse
from starlette.exceptions import HTTPException

from whence._version import __version__
from whence.errors import BadInput, WhenceError
from whence.ledger import read_signer
from whence.serve.accounts import Account, Quotas, check_access
from whence.serve.catalog import seconds_of
from whence.serve.config import ServeConfig
from whence.serve.documents import id_of, with_documents, without_documents
from whence.serve.errors import failed
from whence.serve.health import Health
from whence.serve.hosted_store import HostedStore
from whence.serve.limits import LONGEST_TIME
from whence.serve.log import QueryLog
from whence.serve.metrics import Metrics
from whence.serve.middleware import Guard
from whence.serve.question import Question
from whence.serve.queue import Cancelled, Change, Full, Job, QuestionQueue, TooLate
from whence.serve.render import is_closed, shown
from whence.serve.responses import Refused, error_body, json_response
from whence.serve.schemas import AddDocuments, Ask, Attribute, AttributeItem, question_of
from whence.serve.streams import events, waited

__all__ = ["create_app"]

_DAY = 86_400.0
_SHOWN_SOURCES = 100
_ID_BYTES = 6
_Time = Annotated[str | None, Query(max_length=LONGEST_TIME)]
_DESCRIPTION = (
    "Which training examples does this behaviour come from? Scores above 0: more weight on the example raises the measurement."
)


def create_app(
    stores: Sequence[HostedStore],
    config: ServeConfig | None = None,
    *,
    token: str | None = None,
    write_token: str | None = None,
    accounts: Sequence[Account] = (),
) -> FastAPI:
    """The service as an ASGI application.

    Args:
        stores: The stores, loaded.
        config: Limits and options.
        token: What requests have to show; needed unless the address is a loopback one.
        accounts: Clients, each with a token of its own, instead of `token`.
        write_token: What requests have to show that add documents to a store or delete them; None refuses these.

    Returns:
        The application. It answers until its lifespan ends, and then finishes what it began.

    Raises:
        BadInput: If there is no store, two have one name, or a token keeps nobody out.
    """
    config = config or ServeConfig()
    check_access(config, token, write_token, accounts)
    names = [hosted.name for hosted in stores]
    if not names or len(set(names)) < len(names):
        raise BadInput(
            found=f"stores named {', '.join(names) or 'nothing'}",
            needed="one or more, each with a name of its own",
            do="write NAME=FOLDER",
        )
    service = _Service({hosted.name: hosted for hosted in stores}, config, accounts)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="whence", version=__version__, description=_DESCRIPTION, lifespan=lifespan,
        docs_url=None, redoc_url=None, redirect_slashes=False,
    )  # fmt: skip
    app.include_router(_pages())
    app.include_router(_api(service))
    # Whatever else goes wrong comes to the guard, which answers to it with the headers that every response carries.
    app.add_middleware(Guard, token=token, write_token=write_token, accounts=accounts, limits=config, metrics=service.metrics)
    for kind in (WhenceError, RequestValidationError, HTTPException, Refused, Full, Cancelled, TooLate):
        app.add_exception_handler(kind, failed)
    app.state.metrics = service.metrics
    return app


class _Service:
    """What the paths share."""

    def __init__(self, stores: Mapping[str, HostedStore], config: ServeConfig, accounts: Sequence[Account]):
        self.config = config
        self.metrics, self.health = Metrics(), Health()
        self.redaction = config.redaction({account.name: account.salt for account in accounts if account.salt})
        receipts = None
        if config.receipts is not None and config.sign_with is not None:
            receipts = config.receipts, read_signer(config.sign_with)
        self.log = QueryLog(config.log, retention_days=config.retention_days, max_bytes=config.max_log_bytes, receipts=receipts)
        self.quotas, self.has_accounts = Quotas(accounts, self.log), bool(accounts)
        self.queue = QuestionQueue(
            stores, self.log, self.metrics, max_waiting=config.max_waiting, batch=config.batch, redacted=self.redaction,
            health=self.health, credits=config.credits,
        )  # fmt: skip
        self.jobs: dict[str, Job] = {}

    @property
    def stores(self) -> Mapping[str, HostedStore]:
        """The stores as they are now, by name."""
        return self.queue.stores

    def hosted(self, name: str) -> HostedStore:
        if name not in self.stores:
            raise Refused(404, found=f"no store {name[:80]!r}", needed=f"one of: {', '.join(self.stores)}", do="pick one")
        return self.stores[name]

    def job(self, name: str, question: Question, request: Request) -> Job:
        hosted, client = self.hosted(name), request.state.client
        hosted.check(question)
        self.quotas.check(client)
        return Job(_new_id(), hosted, question, time.monotonic() + self.config.seconds, client)

    def logged(self, name: str, request: Request) -> tuple[dict[str, Any], HostedStore]:
        """An answer from the log, and the store that it is of: that very version of it.

        Raises:
            Refused: If there is none, or a redacted service does not show it.
        """
        answer = self.log.answer(name)
        if answer is None or (self.has_accounts and answer.get("client") != request.state.client):
            raise Refused(404, found="no such answer", needed="one that was given here and is not too old", do="ask again")
        store = next((store for store, versions in self.queue.versions.items() if answer["digest"] in versions.digests), None)
        if store is None:
            problem = "an answer of a store that has changed since, or is not served any more"
            raise Refused(404, found=problem, needed="the store as it was when it was asked", do="ask again")
        if self.config.redacted and is_closed(answer):
            problem = "an answer to a question that a redacted service does not take"
            raise Refused(404, found=problem, needed="another answer", do="ask something else")
        return {**self.queue.versions[store].as_now(answer), "store": store}, self.stores[store]

    async def change(self, name: str, make: Callable[[HostedStore], tuple[HostedStore, Sequence[int]]]) -> HostedStore:
        """Have a store's documents changed, between two scans.

        Raises:
            Full: If too many changes wait.
        """
        change = Change(self.hosted(name).name, make)
        self.queue.put_change(change)
        return await asyncio.wrap_future(change.future)

    async def answer(self, request: Request, job: Job) -> Response:
        """Have a job done: as one answer, or as events if the request accepts these.

        Raises:
            Full: If there is no room for it.
        """
        self.jobs[job.id] = job
        job.future.add_done_callback(lambda _: self.jobs.pop(job.id, None))
        is_streamed = "text/event-stream" in request.headers.get("accept", "")
        stream = events(job) if is_streamed else None
        try:
            self.queue.put(job)
        except Full:
            del self.jobs[job.id]
            raise
        self.quotas.count(job.client)
        if stream is not None:
            return StreamingResponse(stream, media_type="text/event-stream")
        return json_response(await waited(job, request))

    def close(self) -> None:
        self.queue.close(self.config.drain_seconds)
        self.log.close()


def _new_id() -> str:
    # In the order of time, so that the log grows at one end; and with 72 bits that nobody guesses.
    milliseconds = int(1000 * time.time()) % (1 << 8 * _ID_BYTES)
    return base64.urlsafe_b64encode(milliseconds.to_bytes(_ID_BYTES)).decode() + secrets.token_urlsafe(9)


def _pages() -> APIRouter:
    router = APIRouter(include_in_schema=False)
    folder = files("whence.serve")
    style = files("whence.report").joinpath("page.css").read_bytes()
    for path, name, kind in (
        ("/", "page.html", "text/html"),
        ("/page.js", "page.js", "text/javascript"),
        ("/page.css", "page.css", "text/css"),
        ("/icon.svg", "icon.svg", "image/svg+xml"),
    ):
        content = folder.joinpath(name).read_bytes()
        # The page looks like the reports.
        content = style + content if name == "page.css" else content
        router.add_route(path, _static(content, f"{kind}; charset=utf-8"), methods=["GET"])
    return router


def _static(content: bytes, kind: str) -> Callable[[Request], Response]:
    return lambda _: Response(content, media_type=kind)


def _api(service: _Service) -> APIRouter:
    error = {
        "description": "What was found, what is needed, what to do.",
        "content": {"application/json": {"example": error_body("k=0", "1 or more", "ask for more")}},
    }
    statuses = (400, 401, 403, 404, 405, 408, 409, 411, 413, 414, 415, 422, 429, 431, 503, 504, 507)
    router = APIRouter(responses=dict.fromkeys(statuses, error))
    redacted = service.config.redacted

    @router.get("/health", summary="Whether it answers")
    async def health() -> Response:
        stores = {name: hosted.prepared.store for name, hosted in service.stores.items()}
        unreadable = await asyncio.to_thread(service.health.unreadable, stores)
        is_alive, log = service.queue.thread.is_alive(), service.log.trouble
        is_well = is_alive and not log and not unreadable
        body = {
            "status": "ok" if is_well else "failing" if is_alive else "stopped",
            "stores": list(service.stores),
            "unreadable": unreadable,
            "log": log or "ok",
            "waiting": len(service.queue.waiting),
        }
        return json_response(body, 200 if is_well else 503)

    @router.get("/metrics", summary="Counters for Prometheus", response_class=Response)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @router.get("/v1/stores", summary="The stores: what they are, what was verified and what was not")
    async def stores() -> Response:
        limits = {
            name: getattr(service.config, name)
            for name in ("max_k", "max_new_tokens", "max_characters", "max_image_bytes", "seconds")
        }
        facts = [hosted.facts(redacted=redacted) for hosted in service.stores.values()]
        return json_response({"stores": facts, "redacted": redacted, "limits": limits})

    @router.get("/v1/stores/{store}", summary="One store")
    async def store(store: str) -> Response:
        return json_response(service.hosted(store).facts(redacted=redacted))

    @router.post("/v1/stores/{store}/ask", summary="Write an answer and attribute it")
    async def ask(store: str, body: Ask, request: Request) -> Response:
        return await service.answer(request, service.job(store, question_of(body, service.config), request))

    @router.post("/v1/stores/{store}/attribute", summary="Attribute a completion, or one token of it")
    async def attribute(store: str, body: Attribute, request: Request) -> Response:
        return await service.answer(request, service.job(store, question_of(body, service.config), request))

    @router.post("/v1/stores/{store}/attribute-item", summary="Attribute the label of a text, or an image")
    async def attribute_item(store: str, body: AttributeItem, request: Request) -> Response:
        return await service.answer(request, service.job(store, question_of(body, service.config), request))

    @router.post("/v1/stores/{store}/documents", summary="Add documents to a store; needs the token for changes")
    async def add_documents(store: str, body: AddDocuments) -> Response:
        given = [document.model_dump(exclude_none=True) for document in body.documents]
        documents = [{**document, "id": document.get("id", id_of(document))} for document in given]
        ids: list[str] = []

        def make(hosted: HostedStore) -> tuple[HostedStore, Sequence[int]]:
            later, added = with_documents(hosted, documents)
            ids.extend(added)
            return later, ()

        hosted = await service.change(store, make)
        names = [document["id"] for document in documents]
        return json_response({"store": store, "ids": names, "added": ids, **_version(hosted, redacted=redacted)})

    @router.delete("/v1/stores/{store}/documents", summary="Delete documents from a store; needs the token for changes")
    async def delete_documents(store: str, names: Annotated[list[str], Query(alias="id", min_length=1)]) -> Response:
        hosted = await service.change(store, lambda hosted: without_documents(hosted, names))
        return json_response({"store": store, "deleted": names, **_version(hosted, redacted=redacted)})

    # Not below the example: ids may end in anything.
    @router.get("/v1/stores/{store}/images/{example:path}", summary="A training image, small, as PNG", response_class=Response)
    def image(store: str, example: str) -> Response:
        hosted = service.hosted(store)
        with service.health.reading(store):
            row = None if redacted else hosted.catalog.row_of(example)
            return _png(None if row is None else hosted.picture(row))

    @router.get("/v1/stores/{store}/examples/{example:path}", summary="A training example by its id")
    def example(store: str, example: str) -> Response:
        hosted = service.hosted(store)
        with service.health.reading(store):
            return json_response(_example(hosted, example, redacted=redacted, hides_ids=service.config.hide_ids))

    @router.get("/v1/stores/{store}/shares", summary="What the sources add up to over the questions of some time")
    def shares(
        request: Request,
        store: str,
        since: _Time = None,
        until: _Time = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = _SHOWN_SOURCES,
    ) -> Response:
        last = time.time() + 1 if until is None else seconds_of(until)
        first = last - 30 * _DAY if since is None else seconds_of(since)
        hosted = service.hosted(store)
        client = request.state.client if service.has_accounts else None
        by_source = service.log.shares(service.queue.versions[hosted.name].digests, first, last, limit, client)
        if service.redaction is not None:
            by_source["shares"] = service.redaction.shares(by_source["shares"], hosted.catalog.source_sizes)
        return json_response({"since": first, "until": last, **by_source})

    @router.get("/v1/answers/{answer}", summary="An answer that was given before")
    def answer(answer: str, request: Request) -> Response:
        logged, hosted = service.logged(answer, request)
        with service.health.reading(hosted.name):
            return json_response(shown(hosted, [logged], redacted=service.redaction)[0])

    @router.get("/v1/answers/{answer}/image", summary="The image that was asked about, small, as PNG", response_class=Response)
    def asked_image(answer: str, request: Request) -> Response:
        logged, _ = service.logged(answer, request)
        return _png(base64.b64decode(logged.get("item", {}).get("thumbnail", "")) or None)

    @router.post("/v1/answers/{answer}/cancel", summary="Stop working on an answer")
    async def cancel(answer: str, request: Request) -> Response:
        job = service.jobs.get(answer)
        if job is None or job.client != request.state.client:
            raise Refused(404, found="no such answer in the making", needed="the id of one that `begun` named", do="check it")
        job.is_cancelled = True
        return json_response({"id": answer, "cancelled": True})

    return router


def _version(hosted: HostedStore, *, redacted: bool) -> dict[str, Any]:
    """What a store is after a change."""
    return {"num_examples": len(hosted.prepared.store)} | ({} if redacted else {"digest": hosted.digest})


def _png(content: bytes | None) -> Response:
    if content is None:
        raise Refused(404, found="no image to show here", needed="an example with one, of a store that is shown", do="pick it")
    return Response(content, media_type="image/png")


def _example(hosted: HostedStore, name: str, *, redacted: bool, hides_ids: bool) -> dict[str, Any]:
    row = None if hides_ids else hosted.catalog.row_of(name)
    if row is None:
        raise Refused(404, found=f"no example {name[:80]!r} in the store {hosted.name}", needed="the id of one", do="check it")
    example = hosted.prepared.store.example(row)
    described: dict[str, Any] = {"id": name, "row": row, "source": example.get("source", "")}
    if not redacted:
        described |= {"length": example["length"], **hosted.catalog.time_of(row), "text": example.get("text", "")}
        described |= {"metadata": dict(hosted.catalog.metadata.get(name, {}))}
        described |= {"span": example["span"]} if "span" in example else {}
    return {**described, "redacted": redacted}
