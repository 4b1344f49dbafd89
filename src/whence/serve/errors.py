"""Errors as they go out: found, needed, do; never a stack trace, a path or a text of somebody else's."""

import http
from collections.abc import Mapping
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from whence.errors import BadInput, NonFinite, OutOfMemory, UnknownOption, Unsupported
from whence.serve.queue import Cancelled, Full, TooLate
from whence.serve.responses import Refused, error_body, internal_error, json_response

__all__ = ["failed", "error_response"]

# What whoever asks may have caused; what such an error says is about the question alone.
_ASKERS = (BadInput, UnknownOption, Unsupported)
_RETRY_SECONDS = 5


async def failed(_: Request, error: Exception) -> Response:
    """Any error as a response.

    Args:
        _: The request.
        error: What went wrong.

    Returns:
        Status and body.
    """
    status, body, headers = error_response(error)
    return json_response(body, status, headers)


def error_response(error: BaseException) -> tuple[int, dict[str, Any], Mapping[str, str]]:
    """What the outside learns of an error.

    Args:
        error: What went wrong.

    Returns:
        Status, body and headers. Nothing of an error that is not the asker's: its text names files and holds data.
    """
    if isinstance(error, Refused):
        return error.status, error.body, error.headers
    if isinstance(error, _ASKERS):
        return 400, error_body(error.found, error.needed, error.do), {}
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return 422, error_body(f"a body that is no JSON, at character {first['loc'][-1]}", "JSON", "see /openapi.json"), {}
        field = ".".join(map(str, first["loc"][1:]))[:80] or "the body"
        return 422, error_body(f"a request that cannot be read, at {field}", first["msg"], "see /openapi.json"), {}
    if isinstance(error, NonFinite):
        return 422, error_body("a question with a gradient or score that is not finite", "finite ones", "ask another one"), {}
    if isinstance(error, HTTPException):
        return _told_http(error)
    if isinstance(error, Full):
        wait = {"Retry-After": str(error.retry_after)}
        problem = "a service with too many questions waiting"
        return 503, error_body(problem, "room", f"try again in {error.retry_after} s"), wait
    if isinstance(error, Cancelled):
        return 409, error_body("an answer that was cancelled", "", "ask again"), {}
    if isinstance(error, TooLate):
        return 504, error_body("no answer in time", "", "ask for fewer hits, without tokens, or later"), {}
    if isinstance(error, OutOfMemory):
        wait = {"Retry-After": str(_RETRY_SECONDS)}
        return 503, error_body("too little memory for this question", "more of it", "shorten it, or try again later"), wait
    return 500, internal_error().body, {}


def _told_http(error: HTTPException) -> tuple[int, dict[str, Any], Mapping[str, str]]:
    """Errors of the framework: a path or a method that is none, a body that cannot be read."""
    headers = error.headers or {}
    if error.status_code == 405:
        needed = headers.get("Allow", "another method")
        return 405, error_body("a method that this path does not take", needed, "see /openapi.json"), headers
    if error.status_code == 404:
        return 404, error_body("nothing at this address", "a path of this service", "see /openapi.json"), headers
    if error.status_code == 400:
        return 400, error_body("a body that cannot be read", "JSON in UTF-8", "see /openapi.json"), headers
    phrase = http.HTTPStatus(error.status_code).phrase.lower()
    return error.status_code, error_body(phrase, "", "see /openapi.json"), headers
