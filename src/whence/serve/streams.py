"""Waiting for an answer without blocking: as one response, or as a stream of events."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi import Request

from whence.serve.errors import error_response
from whence.serve.queue import Cancelled, Job, TooLate

__all__ = ["events", "waited"]

# A browser sees a tenth of a second as a steady movement.
_EVERY_SECONDS = 0.1
# Whoever stands between closes connections that are silent for long.
_SILENT_SECONDS = 10.0
_LOOK_SECONDS = 0.5


async def waited(job: Job, request: Request) -> dict[str, Any]:
    """The answer of a job; the job is cancelled if whoever asked goes away.

    Args:
        job: Put into the line before.
        request: Whose connection is looked at.

    Returns:
        The answer as it goes out.

    Raises:
        Cancelled: If nobody waits for it any more.
        TooLate: If it took too long.
    """
    future = asyncio.wrap_future(job.future)
    while not future.done():
        await asyncio.wait([future], timeout=_LOOK_SECONDS)
        if future.done():
            break
        if time.monotonic() > job.deadline or await request.is_disconnected():
            # What becomes of it is nobody's business any more.
            future.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
            error = TooLate() if time.monotonic() > job.deadline else Cancelled()
            job.is_cancelled = True
            raise error
    return future.result()


def events(job: Job) -> AsyncIterator[str]:
    """Server-sent events of a job: `begun`, `progress`, `written`, then `answer` or `error`.

    Args:
        job: Not yet in the line: it is given a listener here.

    Returns:
        The events. The job is cancelled if they are not taken to the end.
    """
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[dict[str, Any] | None]()
    last: dict[str, Any] = {"phase": "", "time": 0.0}

    def listen(event: dict[str, Any]) -> None:
        now = time.monotonic()
        if event["phase"] == last["phase"] and now - last["time"] < _EVERY_SECONDS:
            return
        last.update(phase=event["phase"], time=now)
        loop.call_soon_threadsafe(queue.put_nowait, event)

    job.listener = listen
    job.future.add_done_callback(lambda _: loop.call_soon_threadsafe(queue.put_nowait, None))
    return _stream(job, queue)


async def _stream(job: Job, queue: "asyncio.Queue[dict[str, Any] | None]") -> AsyncIterator[str]:
    try:
        yield _event("begun", {"id": job.id})
        while True:
            try:
                event = await asyncio.wait_for(queue.get(), _SILENT_SECONDS)
            except TimeoutError:
                if time.monotonic() > job.deadline:
                    break
                yield ": still at it\n\n"
                continue
            if event is None:
                break
            yield _event("written" if event["phase"] == "written" else "progress", event)
        error = job.future.exception() if job.future.done() else TooLate()
        if error is None:
            yield _event("answer", job.future.result())
        else:
            status, body, _ = error_response(error)
            yield _event("error", {"status": status, **body})
    finally:
        job.is_cancelled = True


def _event(name: str, data: Mapping[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"
