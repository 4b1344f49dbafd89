"""Responses: JSON that any reader takes, and errors, wherever a request ends in one."""

import http
import json
from collections.abc import Mapping
from typing import Any

from fastapi.responses import Response

__all__ = ["SECURITY_HEADERS", "Refused", "error_body", "internal_error", "json_response"]

# Nothing is fetched from elsewhere, nothing runs that is not a file of this service, nobody may frame it.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
SECURITY_HEADERS = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)
"""What every response carries."""


class Refused(Exception):
    """A request that is refused.

    Args:
        status: Of the response.
        found: What is there.
        needed: What was needed.
        do: The way out.
        headers: What the response carries besides.
    """

    def __init__(self, status: int, *, found: str, needed: str = "", do: str, headers: Mapping[str, str] | None = None):
        super().__init__(found)
        self.status, self.body, self.headers = status, error_body(found, needed, do), dict(headers or {})

    def raw(self) -> bytes:
        """The whole response, as it goes over a connection that ends with it."""
        body = json.dumps(self.body).encode()
        lines = [f"HTTP/1.1 {self.status} {http.HTTPStatus(self.status).phrase}".encode()]
        own = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close", **self.headers}
        lines += [f"{name}: {value}".encode() for name, value in own.items()]
        lines += [name + b": " + value for name, value in SECURITY_HEADERS]
        return b"\r\n".join([*lines, b"", body])


def internal_error() -> Refused:
    """What is said of an error that is nobody's mistake but ours: its text names files and holds data."""
    return Refused(500, found="an error inside the service", do="tell whoever runs it; its log says more")


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A response in JSON.

    In ASCII, since half of a surrogate pair, which JSON can hold and UTF-8 cannot, may stand in an id or in a request.
    """
    return Response(json.dumps(content), status, headers, media_type="application/json")


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
