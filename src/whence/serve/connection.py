"""A connection within limits: what it may send, how long it may take, and how many there may be.

uvicorn has none of these: its parser takes a header of any length, in quadratic time, and waits for the rest of a request for ever.
"""

import ipaddress
from collections.abc import Callable, Iterable
from typing import Any, Literal

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from whence.serve.limits import Limits
from whence.serve.responses import Refused

__all__ = ["Connection", "OpenConnections"]

Phase = Literal["idle", "headers", "body", "answer", "sending", "ending"]

# Of the first line besides the address: a method, a version, two spaces.
_LINE_BYTES = 32
# A client that takes less than this of its answer in the time that it has for that takes nothing.
_SENT_BYTES = 1 << 16
# How long what a refused client still sends is read and thrown away, so that it comes to read the answer.
_ENDING_SECONDS = 2.0
_IPV6_NETWORK = 64
_FEWER: dict[str, Any] = {"needed": "fewer", "do": "close some, or try again later", "headers": {"Retry-After": "1"}}


class OpenConnections:
    """All connections of one service, counted by address.

    Args:
        limits: What each may take.
        most: How many there may be.
        on_refusal: Told the status of every request that is refused before it comes to the application.
    """

    def __init__(self, limits: Limits, most: int, on_refusal: Callable[[int], None] = lambda _: None):
        self.limits, self.most, self.on_refusal = limits, most, on_refusal
        self.seconds: dict[Phase, float] = {
            "idle": limits.idle_seconds,
            "headers": limits.header_seconds,
            "body": limits.body_seconds,
            "answer": limits.seconds + limits.send_seconds,
            "sending": limits.send_seconds,
            "ending": _ENDING_SECONDS,
        }
        self.count = 0
        # Dictionaries, since these keep the order.
        self.by_address: dict[str, dict[Connection, None]] = {}

    def add(self, connection: "Connection") -> None:
        """Take a connection in; where there is no room, in place of the one that keeps the service waiting longest.

        Raises:
            Refused: If none waits for its client: all are being answered.
        """
        same = self.by_address.get(connection.address, {})
        if len(same) >= self.limits.max_connections_each and not _close_longest(same):
            raise Refused(429, found="too many connections of one address", **_FEWER)
        if self.count >= self.most and not _close_longest(
            open_connection for all in self.by_address.values() for open_connection in all
        ):
            raise Refused(503, found="a service with too many connections", **_FEWER)
        self.by_address.setdefault(connection.address, {})[connection] = None
        self.count += 1

    def remove(self, connection: "Connection") -> None:
        """Forget a connection, whether it was counted or not."""
        same = self.by_address.get(connection.address, {})
        if connection in same:
            del same[connection]
            self.count -= 1
            if not same:
                del self.by_address[connection.address]


class Connection(HttpToolsProtocol):
    """uvicorn's connection, given the headers of one request at a time and as much of a body as they announce.

    Nothing is upgraded, bodies without a length are refused, and the next request is read once the last one is answered.

    Args:
        others: All connections of the service.
        arguments: Of uvicorn's.
    """

    def __init__(self, *, others: OpenConnections, **arguments: Any):
        super().__init__(**arguments)
        self.others, self.limits = others, others.limits
        self.address, self.timer = "", None
        self.phase: Phase = "headers"
        self.since = 0.0
        # What has come and was not parsed; how much of it holds no end of headers; what is missing of the body.
        self.unparsed, self.searched, self.missing = bytearray(), 0, 0
        # What was left to send when the client was last seen to take something; what came after it was refused.
        self.unsent, self.thrown_away = 0, 0
        self.refusal: Refused | None = None

    def connection_made(self, transport: Any) -> None:
        """Count it, and wait for its first request."""
        super().connection_made(transport)
        self.address = _network_of(self.client)
        self._enter("headers")
        try:
            self.others.add(self)
        except Refused as refusal:
            self.give_way(refusal)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self.others.remove(self)
        self._stop_timer()
        self.unparsed.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what comes: a part of the headers or the body that are waited for, or the beginning of the next request."""
        if self.phase == "ending":
            self.thrown_away += len(data)
            if self.thrown_away > self.limits.max_request_bytes:
                self.transport.abort()
            return
        self.unparsed += data
        if self.phase == "body":
            self._take_body()
        elif self.phase in ("idle", "headers"):
            self._take_headers()
        elif len(self.unparsed) > self.limits.max_header_bytes:
            # Too many requests on top of the one that is being answered: that one is the last.
            self.unparsed.clear()
            self.cycle.keep_alive = False

    def on_headers_complete(self) -> None:
        """Called by the parser: begin with the request, unless it is one that is never taken."""
        try:
            self.missing = _body_length(self.parser.get_http_version(), self.url, self.headers, self.limits)
        except Refused as refusal:
            self.refusal = refusal
        else:
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Called by the parser, which is given no body: `_take_body` says when a request is whole."""

    def on_response_complete(self) -> None:
        """Called once an answer is written: wait for it to go out, then for the next request."""
        super().on_response_complete()
        self._unset_keepalive_if_required()
        if self.phase == "body":
            # Answered before it was whole: what comes of it would be taken for the next request.
            self._end()
        elif self.transport.is_closing():
            self._enter("sending")
        elif self.phase == "answer":
            self._enter("idle")
            self.loop.call_soon(self._take_headers)

    def pause_writing(self) -> None:
        """Called when the client does not take what it is sent."""
        super().pause_writing()
        if self.phase in ("answer", "idle"):
            self._enter("sending")

    def resume_writing(self) -> None:
        """Called when it has taken most of it."""
        super().resume_writing()
        if self.phase == "sending" and not self.cycle.response_complete:
            self._enter("answer")
        elif self.phase == "sending":
            self._enter("idle")
            self.loop.call_soon(self._take_headers)

    @property
    def waits_for_client(self) -> bool:
        """Whether nothing happens here until the client does something."""
        return self.phase != "answer"

    def refuse(self, refusal: Refused) -> None:
        """Answer with an error; what the client still sends is thrown away, so that it comes to read it."""
        if self._say(refusal):
            self._end()

    def give_way(self, refusal: Refused) -> None:
        """Close it at once for want of room; say why where an answer is waited for."""
        self.others.remove(self)
        if self.phase in ("headers", "body") and self._say(refusal):
            self._enter("ending")
            self.transport.close()
        else:
            self.transport.abort()

    def _say(self, refusal: Refused) -> bool:
        """Write an error in place of an answer; False if one has begun to go out."""
        self.others.on_refusal(refusal.status)
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if self.cycle.response_started:
                self.transport.abort()
                return False
        self.transport.write(refusal.raw())
        return True

    def _take_headers(self) -> None:
        if self.phase not in ("idle", "headers") or self.transport.is_closing() or not self.unparsed:
            return
        if self.phase == "idle":
            self._enter("headers")
        end = self.unparsed.find(b"\r\n\r\n", max(0, self.searched - 3))
        size = len(self.unparsed) if end < 0 else end + 4
        longest = self.limits.max_url_bytes + _LINE_BYTES
        if size > longest and self.unparsed.find(b"\r\n", 0, longest) < 0:
            self.refuse(Refused(414, **_longer("an address", self.limits.max_url_bytes)))
        elif size > self.limits.max_header_bytes:
            self.refuse(Refused(431, **_longer("headers", self.limits.max_header_bytes)))
        elif end < 0:
            self.searched = size
        else:
            headers, self.searched = bytes(self.unparsed[:size]), 0
            del self.unparsed[:size]
            self._parse(headers)

    def _parse(self, headers: bytes) -> None:
        # A parser of its own for each request: whatever one did to it, the next one finds it as new.
        self.parser, self.refusal, before = httptools.HttpRequestParser(self), None, self.cycle
        try:
            self.parser.feed_data(headers)
        except httptools.HttpParserUpgrade:
            pass  # whoever would rather speak another protocol is answered in this one
        except httptools.HttpParserError:
            self.refusal = self.refusal or _unreadable()
        if self.refusal is None and self.cycle is before:
            self.refusal = _unreadable()
        if self.refusal is not None:
            self.refuse(self.refusal)
            return
        if self.missing:
            self._enter("body")
        self._take_body()

    def _take_body(self) -> None:
        body = bytes(self.unparsed[: self.missing])
        del self.unparsed[: len(body)]
        self.missing -= len(body)
        if body:
            self.on_body(body)
        if not self.missing:
            self._enter("answer")
            super().on_message_complete()

    def _enter(self, phase: Phase) -> None:
        self._stop_timer()
        self.phase, self.since = phase, self.loop.time()
        if phase == "sending":
            self.unsent = self.transport.get_write_buffer_size()
        self.timer = self.loop.call_later(self.others.seconds[phase], self._too_late)

    def _too_late(self) -> None:
        self.timer = None
        is_begun = self.phase == "body" or (self.phase == "headers" and bool(self.unparsed))
        if is_begun and not self.transport.is_closing():
            needed = f"all of it within {self.others.seconds[self.phase]:g} s"
            self.refuse(Refused(408, found="a request that does not come to its end", needed=needed, do="send it again"))
        elif self.phase == "sending" and self.unsent - self.transport.get_write_buffer_size() >= _SENT_BYTES:
            self._enter("sending")
        else:
            self.transport.abort()

    def _end(self) -> None:
        self.unparsed.clear()
        self._enter("ending")
        if not self.transport.is_closing():
            self.transport.write_eof()

    def _stop_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


def _body_length(version: str, url: bytes, headers: list[tuple[bytes, bytes]], limits: Limits) -> int:
    """Length of a request's body.

    Raises:
        Refused: If the request is one that is never taken.
    """
    if version not in ("1.0", "1.1"):
        raise Refused(505, found=f"HTTP/{version}", needed="HTTP/1.1", do="use that")
    if len(url) > limits.max_url_bytes:
        raise Refused(414, **_longer("an address", limits.max_url_bytes))
    if len(headers) > limits.max_headers:
        raise Refused(431, found=f"{len(headers)} headers", needed=f"at most {limits.max_headers}", do="send fewer")
    given = dict(headers)
    if b"transfer-encoding" in given:
        needed = "a body with its length, in Content-Length"
        raise Refused(411, found="a body in chunks", needed=needed, do="send it whole")
    length = int(given.get(b"content-length", b"0"))
    if length > limits.max_request_bytes:
        raise Refused(413, **_longer("a body", limits.max_request_bytes))
    return length


def _unreadable() -> Refused:
    return Refused(400, found="a request that is no HTTP", needed="HTTP/1.1", do="see RFC 9112")


def _longer(what: str, most: int) -> dict[str, Any]:
    return {"found": f"{what} of more than {most:,} bytes", "needed": "no more", "do": "send less"}


def _close_longest(connections: Iterable[Connection]) -> bool:
    """Close the connection that waits for its client longest; False if none does."""
    waiting = [connection for connection in connections if connection.waits_for_client]
    if waiting:
        longest = min(waiting, key=lambda connection: connection.since)
        problem = "a service with too many connections, of which this one keeps it waiting"
        longest.give_way(Refused(503, found=problem, **_FEWER))
    return bool(waiting)


def _network_of(client: tuple[str, int] | None) -> str:
    """What one client can have many addresses in: the address itself, or the network of an IPv6 address."""
    try:
        address = ipaddress.ip_address((client or ("", 0))[0].partition("%")[0])
    except ValueError:
        return ""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is None:
        return str(ipaddress.ip_network((address, _IPV6_NETWORK), strict=False).network_address)
    return str(getattr(address, "ipv4_mapped", None) or address)
