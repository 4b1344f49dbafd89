"""Speaking HTTP to one service, and to nobody else, with nothing but Python.

What a service says is as foreign as what a client says: no redirect is followed, nothing is unpacked, and sizes and times have an end.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from http.client import HTTPException, HTTPResponse
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from whence.errors import BadInput, WhenceError
from whence.strict_json import parse_json

__all__ = ["Transport"]

# A hundred hits with texts of a megabyte each.
_MOST_BYTES = 1 << 28
_READ_AT_ONCE = 1 << 16
_SHOWN = 200


class _NoRedirect(HTTPRedirectHandler):
    """Follows none: urllib would take the token along, wherever it leads."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Give no request, so that the redirect is an error."""


class Transport:
    """Requests to a service.

    Args:
        url: Its address, such as http://127.0.0.1:8420.
        token: What it wants to see, if it wants to.
        seconds: How long to wait for an answer, and for room in a service that is full.

    Raises:
        BadInput: If the address is none, or the token cannot be sent.
    """

    def __init__(self, url: str, token: str | None, seconds: float):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise BadInput(found=f"the address {url!r}", needed="one such as http://127.0.0.1:8420", do="write it out")
        if token is not None and not (token.isascii() and token.isprintable()):
            raise BadInput(
                found="a token that no header can hold", needed="printable ASCII", do="take it from the service's file"
            )
        self.url, self.token, self.seconds = url.rstrip("/"), token, seconds
        self.opener = build_opener(_NoRedirect)

    def json(self, method: str, path: str, body: Any = None) -> Mapping[str, Any]:
        """What a path answers with.

        Raises:
            BadInput: If the service refuses, or gives no answer of its kind.
        """
        with self._open(method, path, body, "application/json") as response:
            return self._parsed(self._whole(response))

    def events(self, path: str, body: Any) -> Iterator[tuple[str, Any]]:
        """The events that a path answers with.

        Yields:
            The name of each and what it says.

        Raises:
            BadInput: If the service refuses, or gives no answer of its kind.
        """
        until = time.monotonic() + self.seconds
        with self._open("POST", path, body, "text/event-stream") as response:
            name, count = "", 0
            while line := self._read(lambda: response.readline(_MOST_BYTES + 1)):
                count += len(line)
                self._check(count, until)
                field, _, value = line.decode("utf-8", "replace").rstrip("\n").partition(": ")
                if field == "event":
                    name = value
                elif field == "data":
                    yield name, self._parsed(value)

    def failed(self, why: str) -> BadInput:
        """That there is no answer."""
        return BadInput(found=f"no answer from {self.url} ({why})", needed="a running `whence serve`", do="check the address")

    def foreign(self) -> BadInput:
        """That whoever answers is no service of ours."""
        return BadInput(
            found=f"an answer from {self.url} that is not whence's", needed="a whence service", do="check the address"
        )

    def error_of(self, body: Any) -> WhenceError:
        """An error of the service."""
        error = body.get("error") if isinstance(body, Mapping) else None
        if not isinstance(error, Mapping) or not all(isinstance(error.get(name), str) for name in ("found", "needed", "do")):
            return self.foreign()
        return BadInput(found=error["found"], needed=error["needed"], do=error["do"])

    def _open(self, method: str, path: str, body: Any, accept: str) -> HTTPResponse:
        headers = {"Accept": accept, **({"Authorization": f"Bearer {self.token}"} if self.token else {})}
        content = None if body is None else json.dumps(body).encode()
        if content is not None:
            headers["Content-Type"] = "application/json"
        until = time.monotonic() + self.seconds
        while True:
            try:
                return self.opener.open(Request(self.url + path, content, headers, method=method), timeout=self.seconds)
            except HTTPError as error:
                wait = _retry_after(error)
                if wait is not None and time.monotonic() + wait < until:
                    error.close()
                    time.sleep(wait)
                    continue
                with error:
                    raise self._error_of(error) from None
            except (URLError, HTTPException, OSError, ValueError) as error:
                raise self.failed(str(getattr(error, "reason", error))) from None

    def _error_of(self, error: HTTPError) -> WhenceError:
        """What the service said, or that it is none."""
        if 300 <= error.code < 400:
            where = ascii(error.headers.get("Location", "nowhere")[:_SHOWN])
            return BadInput(
                found=f"a redirect from {self.url} to {where}",
                needed="an answer from the address itself, since a token is for nobody else",
                do="pass that address, if you trust it",
            )
        try:
            return self.error_of(self._parsed(self._whole(error)))
        except WhenceError:
            return BadInput(found=f"status {error.code} from {self.url}", needed="a whence service", do="check the address")

    def _whole(self, response: Any) -> bytes:
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise BadInput(found=f"a packed answer from {self.url}", needed="a plain one", do="check what stands between")
        until, parts, count = time.monotonic() + self.seconds, [], 0
        while part := self._read(lambda: response.read1(_READ_AT_ONCE)):
            parts.append(part)
            count += len(part)
            self._check(count, until)
        if getattr(response, "length", None):  # `read1` does not say so
            raise self.failed("the answer ended before its end")
        return b"".join(parts)

    def _read(self, read: Callable[[], bytes]) -> bytes:
        try:
            return read()
        except (HTTPException, OSError, ValueError) as error:  # it was stopped in the middle
            raise self.failed(str(error) or type(error).__name__) from None

    def _check(self, count: int, until: float) -> None:
        if count > _MOST_BYTES:
            raise BadInput(
                found=f"an answer of more than {_MOST_BYTES >> 20} MiB from {self.url}", needed="less", do="ask for less"
            )
        if time.monotonic() > until:
            raise self.failed(f"it did not end within {self.seconds:g} s")

    def _parsed(self, content: bytes | str) -> Mapping[str, Any]:
        try:
            parsed = parse_json(content)
        except ValueError:
            parsed = None
        if not isinstance(parsed, Mapping):
            raise self.foreign()
        return parsed


def _retry_after(error: HTTPError) -> int | None:
    """Seconds after which to try again; None if that has no use."""
    wait = error.headers.get("Retry-After", "")
    if error.code not in (429, 503) or not (wait.isascii() and wait.isdigit() and len(wait) < 6):
        return None
    return max(1, int(wait))
