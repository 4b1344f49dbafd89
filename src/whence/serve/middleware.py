"""Around every request: who may ask, what a browser may do with the answer, and what is counted."""

import hmac
import json
import time
from typing import Any
from urllib.parse import urlsplit

from whence.serve.config import is_loopback
from whence.serve.errors import error_body
from whence.serve.metrics import Metrics

__all__ = ["Guard"]

# Nothing is fetched from elsewhere, nothing runs that is not a file of this service, nobody may frame it.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
_HEADERS = (
    ("content-security-policy", _POLICY),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cache-control", "no-store"),
)
# The page itself holds nothing; it asks for the token.
_OPEN = {"/", "/page.js", "/page.css", "/icon.svg", "/health"}


class Guard:
    """ASGI middleware.

    Args:
        app: What it guards.
        token: What requests have to show as `Authorization: Bearer`; None lets everyone in who is on this machine.
        metrics: What is counted.
    """

    def __init__(self, app: Any, *, token: str | None, metrics: Metrics):
        self.app, self.token, self.metrics = app, token, metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.monotonic(), 500
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}

        async def guarded(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                extra = [(name.encode(), value.encode()) for name, value in _HEADERS]
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        try:
            refusal = self._refusal(scope["path"], headers)
            if refusal is None:
                await self.app(scope, receive, guarded)
            else:
                await _answer(guarded, *refusal)
        finally:
            path = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(path, str(status)).inc()
            self.metrics.seconds.labels(path).observe(time.monotonic() - started)

    def _refusal(self, path: str, headers: dict[str, str]) -> tuple[int, dict[str, Any]] | None:
        if self.token is None:
            # A page elsewhere whose name suddenly leads to this machine (DNS rebinding) still calls it by that name.
            if not is_loopback(_hostname(headers.get("host", ""))):
                return 403, error_body("a host name that is not this machine's", "127.0.0.1 or localhost", "use that address")
            return None
        given = headers.get("authorization", "")
        wanted = f"Bearer {self.token}"
        if path not in _OPEN and not hmac.compare_digest(given.encode("latin-1"), wanted.encode()):
            return 401, error_body("no token, or another", "the token of this service", "send Authorization: Bearer TOKEN")
        return None


def _hostname(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


async def _answer(send: Any, status: int, body: dict[str, Any]) -> None:
    content = json.dumps(body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
