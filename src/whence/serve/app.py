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
from whence.serve.catalog import seconds_of
from whence.serve.config import ServeConfig, check_token
from whence.serve.errors import failed
from whence.serve.health import Health
from whence.serve.hosted_store import Desk
from whence.serve.limits import LONGEST_TIME
from whence.serve.log import QueryLog
from whence.serve.metrics import Metrics
from whence.serve.middleware import Guard
from whence.serve.question import Question
from whence.serve.queue import Cancelled, Full, Job, Line, TooLate
from whence.serve.render import is_closed, shown
from whence.serve.responses import Refused, error_body, json_response
from whence.serve.schemas import Ask, Attribute, AttributeItem, question_of
from whence.serve.streams import events, waited

__all__ = ["create_app"]

_DAY = 86_400.0
_SHOWN_SOURCES = 100
_ID_BYTES = 6
_Time = Annotated[str | None, Query(max_length=LONGEST_TIME)]
_DESCRIPTION = (
    "Which training examples does this behaviour come from? Scores above 0: more weight on the example raises the measurement."
)


def create_app(desks: Sequence[Desk], config: ServeConfig | None = None, *, token: str | None = None) -> FastAPI:
    """The service as an ASGI application.

    Args:
        desks: The stores, loaded.
        config: Limits and options.
        token: What requests have to show; needed unless the address is a loopback one.

    Returns:
        The application. It answers until its lifespan ends, and then finishes what it began.

    Raises:
        BadInput: If there is no store, or two have one name.
    """
    config = config or ServeConfig()
    check_token(config.host, token)
    names = [desk.name for desk in desks]
    if not names or len(set(names)) < len(names):
        raise BadInput(
            found=f"stores named {', '.join(names) or 'nothing'}",
            needed="one or more, each with a name of its own",
            do="write NAME=FOLDER",
        )
    service = _Service({desk.name: desk for desk in desks}, config)

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
    app.add_middleware(Guard, token=token, limits=config, metrics=service.metrics)
    for kind in (WhenceError, RequestValidationError, HTTPException, Refused, Full, Cancelled, TooLate):
        app.add_exception_handler(kind, failed)
    app.state.metrics = service.metrics
    return app


class _Service:
    """What the paths share."""

    def __init__(self, desks: Mapping[str, Desk], config: ServeConfig):
        self.desks, self.config = desks, config
        self.metrics, self.health = Metrics(), Health()
        self.log = QueryLog(config.log, retention_days=config.retention_days, max_bytes=config.max_log_bytes)
        self.line = Line(
            desks, self.log, self.metrics, max_waiting=config.max_waiting, batch=config.batch, redacted=config.redacted,
            health=self.health,
        )  # fmt: skip
        self.jobs: dict[str, Job] = {}

    def desk(self, name: str) -> Desk:
        if name not in self.desks:
            raise Refused(404, found=f"no store {name[:80]!r}", needed=f"one of: {', '.join(self.desks)}", do="pick one")
        return self.desks[name]

    def job(self, name: str, question: Question) -> Job:
        desk = self.desk(name)
        desk.check(question)
        return Job(_new_id(), desk, question, time.monotonic() + self.config.seconds)

    def kept(self, name: str) -> tuple[dict[str, Any], Desk]:
        """An answer from the log, and the store that it is of: that very version of it.

        Raises:
            Refused: If there is none, or a redacted service does not show it.
        """
        kept = self.log.answer(name)
        if kept is None:
            raise Refused(404, found="no such answer", needed="one that was given here and is not too old", do="ask again")
        desk = next((desk for desk in self.desks.values() if desk.digest == kept["digest"]), None)
        if desk is None:
            found = "an answer of a store that has changed since, or is not served any more"
            raise Refused(404, found=found, needed="the store as it was when it was asked", do="ask again")
        if self.config.redacted and is_closed(kept):
            found = "an answer to a question that a redacted service does not take"
            raise Refused(404, found=found, needed="another answer", do="ask something else")
        return {**kept, "store": desk.name}, desk

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
            self.line.put(job)
        except Full:
            del self.jobs[job.id]
            raise
        if stream is not None:
            return StreamingResponse(stream, media_type="text/event-stream")
        return json_response(await waited(job, request))

    def close(self) -> None:
        self.line.close(self.config.drain_seconds)
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
    router = APIRouter(responses=dict.fromkeys(statuses, error))  # type: ignore[arg-type]
    redacted = service.config.redacted

    @router.get("/health", summary="Whether it answers")
    async def health() -> Response:
        stores = {name: desk.warm.store for name, desk in service.desks.items()}
        unreadable = await asyncio.to_thread(service.health.unreadable, stores)
        is_alive, log = service.line.thread.is_alive(), service.log.trouble
        is_well = is_alive and not log and not unreadable
        body = {
            "status": "ok" if is_well else "failing" if is_alive else "stopped",
            "stores": list(service.desks),
            "unreadable": unreadable,
            "log": log or "ok",
            "waiting": len(service.line.waiting),
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
        facts = [desk.facts(redacted=redacted) for desk in service.desks.values()]
        return json_response({"stores": facts, "redacted": redacted, "limits": limits})

    @router.get("/v1/stores/{store}", summary="One store")
    async def store(store: str) -> Response:
        return json_response(service.desk(store).facts(redacted=redacted))

    @router.post("/v1/stores/{store}/ask", summary="Write an answer and attribute it")
    async def ask(store: str, body: Ask, request: Request) -> Response:
        return await service.answer(request, service.job(store, question_of(body, service.config)))

    @router.post("/v1/stores/{store}/attribute", summary="Attribute a completion, or one token of it")
    async def attribute(store: str, body: Attribute, request: Request) -> Response:
        return await service.answer(request, service.job(store, question_of(body, service.config)))

    @router.post("/v1/stores/{store}/attribute-item", summary="Attribute the label of a text, or an image")
    async def attribute_item(store: str, body: AttributeItem, request: Request) -> Response:
        return await service.answer(request, service.job(store, question_of(body, service.config)))

    # Not below the example: ids may end in anything.
    @router.get("/v1/stores/{store}/images/{example:path}", summary="A training image, small, as PNG", response_class=Response)
    def image(store: str, example: str) -> Response:
        desk = service.desk(store)
        with service.health.reading(store):
            row = None if redacted else desk.catalog.row_of(example)
            return _png(None if row is None else desk.picture(row))

    @router.get("/v1/stores/{store}/examples/{example:path}", summary="A training example by its id")
    def example(store: str, example: str) -> Response:
        desk = service.desk(store)
        with service.health.reading(store):
            return json_response(_example(desk, example, redacted=redacted))

    @router.get("/v1/stores/{store}/shares", summary="What the sources add up to over the questions of some time")
    def shares(
        store: str, since: _Time = None, until: _Time = None, limit: Annotated[int, Query(ge=1, le=1000)] = _SHOWN_SOURCES
    ) -> Response:
        last = time.time() + 1 if until is None else seconds_of(until)
        first = last - 30 * _DAY if since is None else seconds_of(since)
        found = service.log.shares(service.desk(store).digest, first, last, limit)
        return json_response({"since": first, "until": last, **found})

    @router.get("/v1/answers/{answer}", summary="An answer that was given before")
    def answer(answer: str) -> Response:
        kept, desk = service.kept(answer)
        with service.health.reading(desk.name):
            return json_response(shown(desk, [kept], redacted=redacted)[0])

    @router.get("/v1/answers/{answer}/image", summary="The image that was asked about, small, as PNG", response_class=Response)
    def asked_image(answer: str) -> Response:
        kept, _ = service.kept(answer)
        return _png(base64.b64decode(kept.get("item", {}).get("thumbnail", "")) or None)

    @router.post("/v1/answers/{answer}/cancel", summary="Stop working on an answer")
    async def cancel(answer: str) -> Response:
        job = service.jobs.get(answer)
        if job is None:
            raise Refused(404, found="no such answer in the making", needed="the id of one that `begun` named", do="check it")
        job.is_cancelled = True
        return json_response({"id": answer, "cancelled": True})

    return router


def _png(content: bytes | None) -> Response:
    if content is None:
        raise Refused(404, found="no image to show here", needed="an example with one, of a store that is shown", do="pick it")
    return Response(content, media_type="image/png")


def _example(desk: Desk, name: str, *, redacted: bool) -> dict[str, Any]:
    row = desk.catalog.row_of(name)
    if row is None:
        raise Refused(404, found=f"no example {name[:80]!r} in the store {desk.name}", needed="the id of one", do="check it")
    known = desk.warm.store.example(row)
    found: dict[str, Any] = {"id": name, "row": row, "source": known.get("source", "")}
    if not redacted:
        found |= {"length": known["length"], **desk.catalog.time_of(row), "text": known.get("text", "")}
        found |= {"metadata": dict(desk.catalog.metadata.get(name, {}))}
        found |= {"span": known["span"]} if "span" in known else {}
    return {**found, "redacted": redacted}
