"""Around every request: what it may be, who may ask, what a browser may do with the answer, and what is counted."""

import hmac
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from whence.serve.accounts import Account, account_of
from whence.serve.config import is_loopback
from whence.serve.errors import error_response
from whence.serve.limits import Limits
from whence.serve.metrics import Metrics
from whence.serve.responses import SECURITY_HEADERS, Refused, json_response

__all__ = ["Guard"]

# The page itself holds nothing; it asks for the token.
_OPEN = {"/", "/page.js", "/page.css", "/icon.svg", "/health"}
# Requests that may hold an image, or many documents.
_LARGE = ("/attribute-item", "/documents")
# Given twice, whoever stands between might go by the one and we by the other.
_SINGLE = (b"host", b"authorization", b"content-type", b"content-length", b"content-encoding")
_logger = logging.getLogger("whence.serve")


class Guard:
    """ASGI middleware.

    Args:
        app: What it guards.
        token: What requests have to show as `Authorization: Bearer`; None lets everyone in who is on this machine.
        write_token: What requests have to show instead that change documents; None refuses them.
        accounts: Clients with a token each, one of which requests have to show instead of `token`.
        limits: Of a request's body.
        metrics: What is counted.
    """

    def __init__(
        self,
        app: Any,
        *,
        token: str | None,
        write_token: str | None,
        accounts: Sequence[Account] = (),
        limits: Limits,
        metrics: Metrics,
    ):
        self.write_token, self.accounts = write_token, accounts
        self.app, self.token, self.limits, self.metrics = app, token, limits, metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        started, status = time.monotonic(), 0

        async def guarded(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], *SECURITY_HEADERS]}
            await send(message)

        headers = dict(scope["headers"])
        try:
            await self._pass(scope, headers, receive, guarded)
        except Exception as error:
            if status:  # an answer has begun to go out: the connection ends with it
                raise
            if not isinstance(error, Refused):
                _logger.error("%s %s failed", scope["method"], ascii(scope["path"][:80]), exc_info=error)
            code, body, more = error_response(error)
            await json_response(body, code, more)(scope, receive, guarded)
        finally:
            path = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(path, str(status or 500)).inc()
            self.metrics.seconds.labels(path).observe(time.monotonic() - started)

    async def _pass(self, scope: Any, headers: Mapping[bytes, bytes], receive: Any, send: Any) -> None:
        try:
            self._check(scope, headers)
        except Refused:
            await self._read_body(headers, receive)
            raise
        await self.app(scope, receive, send)

    def _check(self, scope: Any, headers: Mapping[bytes, bytes]) -> None:
        """Refuse what costs most first: sizes before the token, the token before all else.

        Raises:
            Refused: If the request may not be asked.
        """
        if len(headers) < len(scope["headers"]):
            _check_single(scope["headers"])
        if b"host" not in headers and scope["http_version"] == "1.1":
            raise Refused(400, found="a request without a host", needed="a Host header", do="send one")
        self._check_body(scope["path"], headers)
        scope.setdefault("state", {})["client"] = self._check_asker(scope["path"], headers, is_change=_is_change(scope))
        kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
        # A form of another site can send anything else without asking.
        if scope["method"] == "POST" and kind != b"application/json" and headers.get(b"content-length", b"0") != b"0":
            accepted = {"Accept": "application/json"}
            raise Refused(415, found="a body that is not JSON", needed="application/json", do="send that", headers=accepted)

    def _check_body(self, path: str, headers: Mapping[bytes, bytes]) -> None:
        if b"transfer-encoding" in headers:
            needed = "a body with its length, in Content-Length"
            raise Refused(411, found="a body in chunks", needed=needed, do="send it whole")
        if headers.get(b"content-encoding", b"identity").strip().lower() not in (b"identity", b""):
            plain = {"Accept-Encoding": "identity"}
            raise Refused(415, found="a compressed body", needed="a plain one", do="send it as it is", headers=plain)
        given = headers.get(b"content-length", b"0")
        if not given.isdigit():
            raise Refused(400, found="a length that is no number", needed="one in Content-Length", do="correct it")
        most = self.limits.max_request_bytes if path.endswith(_LARGE) else self.limits.max_body_bytes
        if len(given) > len(str(most)) + 1 or int(given) > most:
            raise Refused(413, found=f"a body of more than {most:,} bytes", needed="no more", do="send less")

    def _check_asker(self, path: str, headers: Mapping[bytes, bytes], *, is_change: bool) -> str:
        """The name of the client that asks; empty where clients have no names, or for a path that is open.

        Raises:
            Refused: If it may not ask.
        """
        # A page elsewhere whose name suddenly leads to this machine (DNS rebinding) still calls it by that name.
        if self.token is None and not self.accounts and not is_loopback(_hostname(headers.get(b"host", b"").decode("latin-1"))):
            needed = "127.0.0.1 or localhost"
            raise Refused(403, found="a host name that is not this machine's", needed=needed, do="use that address")
        if is_change and self.write_token is None:
            needed = "a service that takes changes of its documents"
            raise Refused(403, found="a change of documents", needed=needed, do="start it with --write-token-file")
        token = self.write_token if is_change else self.token
        given = headers.get(b"authorization", b"")
        account = None if is_change else account_of(given, self.accounts)
        is_open = path in _OPEN or (token is None and not self.accounts)
        if not is_open and account is None and (token is None or not hmac.compare_digest(given, f"Bearer {token}".encode())):
            needed, challenge = (
                f"the token of this service{' for changes' if is_change else ''}",
                {"WWW-Authenticate": "Bearer"},
            )
            do = "send Authorization: Bearer TOKEN"
            raise Refused(401, found="no token, or another", needed=needed, do=do, headers=challenge)
        is_elsewhere = headers.get(b"sec-fetch-site") in (b"cross-site", b"same-site")
        if path not in _OPEN and is_elsewhere and headers.get(b"sec-fetch-mode") != b"navigate":
            raise Refused(403, found="a request of another site's page", needed="this service's own page", do="open that")
        return "" if account is None else account.name

    async def _read_body(self, headers: Mapping[bytes, bytes], receive: Any) -> None:
        """Read a small body to its end: a connection that is closed before may take the answer along."""
        given = headers.get(b"content-length", b"0")
        if given.isdigit() and len(given) < 20 and int(given) <= self.limits.max_body_bytes:
            while (await receive()).get("more_body"):
                pass


def _is_change(scope: Any) -> bool:
    """Whether a request would change a store's documents."""
    return scope["method"] in ("POST", "DELETE") and scope["path"].endswith("/documents")


def _check_single(headers: Any) -> None:
    names = [name for name, _ in headers]
    for name in _SINGLE:
        if names.count(name) > 1:
            raise Refused(400, found=f"{name.decode()} given twice", needed="it once", do="leave one out")


def _hostname(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
