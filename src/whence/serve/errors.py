"""Errors as they go out: found, needed, do; never a stack trace, a path or a text of somebody else's."""

from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from whence.errors import BadInput, UnknownOption, Unsupported
from whence.serve.queue import Cancelled, Full, TooLate

__all__ = ["error_body", "failed", "told"]


async def failed(_: Request, error: Exception) -> JSONResponse:
    """Any error as a response.

    Args:
        _: The request.
        error: What went wrong.

    Returns:
        Status and body.
    """
    status, body, headers = told(error)
    return JSONResponse(body, status, headers)


def told(error: BaseException) -> tuple[int, dict[str, Any], dict[str, str]]:
    """What the outside learns of an error.

    Args:
        error: What went wrong.

    Returns:
        Status, body and headers. Nothing of an error that is not the asker's: its text names files and holds data.
    """
    headers: dict[str, str] = {}
    if isinstance(error, BadInput | UnknownOption | Unsupported):
        status, body = 400, error_body(error.found, error.needed, error.do)
    elif isinstance(error, RequestValidationError):
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"][1:])) or "the body"
        status, body = 422, error_body(f"a request that cannot be read, at {place}", first["msg"], "see /openapi.json")
    elif isinstance(error, HTTPException):
        status, body = error.status_code, error_body(str(error.detail), "", "see /openapi.json")
    elif isinstance(error, Full):
        status, body = (
            503,
            error_body("a service with too many questions waiting", "room", f"try again in {error.retry_after} s"),
        )
        headers["Retry-After"] = str(error.retry_after)
    elif isinstance(error, Cancelled):
        status, body = 409, error_body("an answer that was cancelled", "", "ask again")
    elif isinstance(error, TooLate):
        status, body = 504, error_body("no answer in time", "", "ask for fewer hits, without tokens, or later")
    else:
        status, body = 500, error_body("an error inside the service", "", "tell whoever runs it; its log says more")
    return status, body, headers


def error_body(found: str, needed: str, do: str) -> dict[str, Any]:
    """An error as it goes out.

    Args:
        found: What is there.
        needed: What was needed.
        do: The way out.

    Returns:
        What every error of the service looks like.
    """
    return {"error": {"found": found, "needed": needed, "do": do}}
