"""The service's limits, on real sockets: whatever one client sends, withholds or leaves unread, the others are answered."""

import contextlib
import json
import os
import random
import re
import resource
import socket
import time
from urllib.parse import urlsplit

import pytest

from tests.test_serve import ASKED, HOSTILE, SOURCE, desk, folder, gate, live, store, task  # noqa: F401
from whence.errors import BadInput
from whence.serve.config import ServeConfig
from whence.serve.connection import _network_of
from whence.serve.limits import Limits, most_connections
from whence.serve.responses import SECURITY_HEADERS

HOST = b"Host: 127.0.0.1\r\n"
JSON = b"Content-Type: application/json\r\n"
PATH = b"/v1/stores/store/attribute"


def get(path, *headers):
    return b"\r\n".join([b"GET " + path + b" HTTP/1.1", b"Host: 127.0.0.1", *headers, b"", b""])


def post(body, *headers, path=PATH):
    lines = [b"POST " + path + b" HTTP/1.1", b"Host: 127.0.0.1", b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join([*(lines if headers else [*lines, b"Content-Type: application/json"]), b"", body])


ASKING = post(json.dumps(ASKED).encode())


class Talk:
    """A connection to a service, byte by byte."""

    def __init__(self, url, seconds=20.0, source="127.0.0.1", buffer=None):
        parts = urlsplit(url)
        self.socket = socket.socket()
        if buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.socket.bind((source, 0))
        self.socket.settimeout(seconds)
        self.socket.connect((parts.hostname, parts.port))
        self.content = b""

    def send(self, content):
        with contextlib.suppress(OSError):  # it may have been closed meanwhile
            self.socket.sendall(content)
        return self

    def answer(self):
        """Status, headers and body of the next answer; None if the connection ends before it."""
        while b"\r\n\r\n" not in self.content:
            if not self._more():
                return None
        first, _, self.content = self.content.partition(b"\r\n\r\n")
        lines = first.decode().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines[1:])}
        length = int(headers["content-length"])
        while len(self.content) < length:
            assert self._more()
        body, self.content = self.content[:length], self.content[length:]
        return int(lines[0].split()[1]), headers, body

    def ends(self):
        """Wait for the end of the connection, and say how many bytes came before it."""
        count = len(self.content)
        with contextlib.suppress(ConnectionError):
            while content := self.socket.recv(1 << 16):
                count += len(content)
        return count

    def _more(self):
        try:
            content = self.socket.recv(1 << 16)
        except ConnectionError:
            return False
        self.content += content
        return bool(content)


@pytest.fixture
def talk():
    """Opens connections; closes them after the test."""
    opened = []

    def open_one(url, **options):
        opened.append(Talk(url, **options))
        return opened[-1]

    yield open_one
    for one in opened:
        one.socket.close()


@pytest.fixture(scope="module")
def shared(desk, tmp_path_factory):  # noqa: F811
    """A service for what changes nothing in it."""
    # The fixture is a generator that needs its arguments; one service is enough for all requests of a table.
    generator = live.__wrapped__(desk, tmp_path_factory.mktemp("shared"))
    start = next(generator)
    yield start()
    with contextlib.suppress(StopIteration):
        next(generator)


def metric(url, name):
    _, _, body = Talk(url).send(get(b"/metrics", b"Connection: close")).answer()
    found = re.search(rf"^{re.escape(name)} (\S+)$", body.decode(), re.M)
    return float(found[1]) if found else 0.0


# --- every way to be refused


def error_of(answer):
    status, headers, body = answer
    assert headers["content-type"] == "application/json"
    for name, value in SECURITY_HEADERS:
        assert headers[name.decode()] == value.decode()
    assert set(json.loads(body)["error"]) == {"found", "needed", "do"}
    return status, headers, json.loads(body)["error"]["found"]


REFUSED = {
    "a path that is none": (get(b"/nope"), 404, {}),
    "a method that a path does not take": (b"DELETE /health HTTP/1.1\r\n" + HOST + b"\r\n", 405, {"allow": "GET"}),
    "a question as GET": (get(PATH), 405, {"allow": "POST"}),
    "a preflight of another origin": (b"OPTIONS " + PATH + b" HTTP/1.1\r\nOrigin: http://evil\r\n" + HOST + b"\r\n", 405, {"allow": "POST"}),
    "bytes that are no HTTP": (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", 400, {}),
    "empty lines": (b"\r\n\r\n" + get(b"/health"), 400, {}),
    "a method that is none": (b"STEAL / HTTP/1.1\r\n" + HOST + b"\r\n", 400, {}),
    "a space before a colon": (b"GET / HTTP/1.1\r\nHost : 127.0.0.1\r\n\r\n", 400, {}),
    "a folded header": (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n folded\r\n\r\n", 400, {}),
    "lines without a return": (b"GET / HTTP/1.1\nHost: 127.0.0.1\n\n\r\n\r\n", 400, {}),
    "an address with bytes above 127": (get(b"/\xff"), 400, {}),
    "a tunnel": (b"CONNECT a:443 HTTP/1.1\r\n" + HOST + b"\r\n", 400, {}),
    "no host": (b"GET /health HTTP/1.1\r\n\r\n", 400, {}),
    "two hosts": (b"GET /health HTTP/1.1\r\n" + HOST + HOST + b"\r\n", 400, {}),
    "another name of this machine": (b"GET /health HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403, {}),
    "another site's page": (get(b"/v1/stores", b"Sec-Fetch-Site: cross-site", b"Sec-Fetch-Mode: no-cors"), 403, {}),
    "HTTP of 1991": (b"GET /\r\n\r\n", 505, {}),
    "the beginning of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, {}),
    "two lengths": (b"POST " + PATH + b" HTTP/1.1\r\n" + HOST + JSON + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}", 400, {}),
    "a length and chunks": (b"POST " + PATH + b" HTTP/1.1\r\n" + HOST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n", 400, {}),
    "a length below 0": (b"POST " + PATH + b" HTTP/1.1\r\n" + HOST + b"Content-Length: -2\r\n\r\n", 400, {}),
    "chunks": (b"POST " + PATH + b" HTTP/1.1\r\n" + HOST + JSON + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n", 411, {}),
    "an odd coding": (b"POST " + PATH + b" HTTP/1.1\r\n" + HOST + JSON + b"Transfer-Encoding: xchunked\r\n\r\n2\r\n{}\r\n", 411, {}),
    "a body that is announced too large": (b"POST " + PATH + b" HTTP/1.1\r\n" + HOST + b"Content-Length: 99999999999\r\n\r\n", 413, {}),
    "a body too large for its path": (post(b"x" * 70_000), 413, {}),
    "a body too large for any": (post(b"x" * 6_000_000), 413, {}),
    "a long address": (get(b"/" + b"a" * 9000), 414, {}),
    "an address without end": (b"GET /" + b"a" * 30_000, 414, {}),
    "a body of a form": (post(b"{}", b"Content-Type: text/plain"), 415, {"accept": "application/json"}),
    "a compressed body": (post(b"\x1f\x8b", JSON[:-2], b"Content-Encoding: gzip"), 415, {"accept-encoding": "identity"}),
    "no JSON": (post(b"{"), 422, {}),
    "no UTF-8": (post(b'{"prompt": "\xff"}'), 400, {}),
    "deep JSON": (post(b"[" * 60_000), 400, {}),
    "deep JSON in a field": (post(b'{"completion": "a", "filter": ' + b'{"filter": ' * 500 + b"1" + b"}" * 501), 422, {}),
    "a long number": (post(b'{"completion": "a", "k": ' + b"9" * 5000 + b"}"), 400, {}),
    "a large number": (post(b'{"completion": "a", "token": ' + b"9" * 4000 + b"}"), 422, {}),
    "a number that is none": (post(b'{"completion": "a", "k": NaN}'), 422, {}),
    "a number beyond all": (post(b'{"completion": "a", "k": 1e999}'), 422, {}),
    "half a character": (post(b'{"completion": "\\ud800"}'), 422, {}),
    "half a character in a name": (post(b'{"completion": "a", "\\ud800": 1}'), 422, {}),
    "half a character in a time": (post(b'{"completion": "a", "filter": {"since": "\\ud800"}}'), 422, {}),
    "a temperature that is hardly one": (post(b'{"prompt": "a", "temperature": 1e-300}', path=b"/v1/stores/store/ask"), 400, {}),
    "a long header": (get(b"/health", b"A: " + b"b" * 17_000), 431, {}),
    "a header without end": (b"GET /health HTTP/1.1\r\n" + HOST + b"A: " + b"b" * 300_000, 431, {}),
    "many headers": (get(b"/health", *[b"A: b"] * 64), 431, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_whoever_is_refused_is_told_why_in_one_format(shared, talk, name):
    content, status, wanted = REFUSED[name]
    found, headers, _ = error_of(talk(shared).send(content).answer())
    assert found == status
    for header, value in wanted.items():
        assert headers[header] == value
    status, _, body = talk(shared).send(get(b"/health")).answer()
    assert status == 200 and json.loads(body)["status"] == "ok"


def test_what_is_taken_all_the_same(shared, talk):
    """Old and polite clients: another protocol that is offered, a length of 0, one empty line, an address with a host, 1.0."""
    h2c = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk")
    websocket = (b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: eA==")
    body = json.dumps(ASKED).encode()
    for content in (
        get(b"/health", *h2c),
        get(b"/health", *websocket),
        post(body, JSON[:-2], *h2c),
        post(body, JSON[:-2], b"Expect: 100-nothing"),
        b"\r\n" + get(b"/health"),
        get(b"http://127.0.0.1/health"),
        b"GET /health HTTP/1.0\r\n" + HOST + b"\r\n",
        get(b"/health", *[b"A: b"] * 62),
    ):
        connection = talk(shared).send(content)
        assert connection.answer()[0] == 200
        if b"HTTP/1.0" not in content:
            assert connection.send(get(b"/health")).answer()[0] == 200  # and then as before


def test_requests_that_come_at_once_are_answered_one_by_one(shared, talk):
    connection = talk(shared).send(get(b"/health") + ASKING + get(b"/v1/stores") + ASKING[:-5])
    assert [connection.answer()[0] for _ in range(3)] == [200, 200, 200]
    assert connection.send(ASKING[-5:]).answer()[0] == 200
    flood = talk(shared).send(get(b"/health") * 20_000)
    count = 0
    while (answer := flood.answer()) is not None:
        assert answer[0] == 200
        count += 1
    assert 1 <= count < 2000  # the rest was never read


def test_no_bytes_break_it(live):  # noqa: F811
    """Requests with bytes changed, added and left out, in pieces, by clients that leave: never a 5xx of ours, and nothing stays behind."""
    url, choose = live(header_seconds=0.5, body_seconds=0.5), random.Random(5)
    stream = ASKING.replace(b"Content-Type", b"Accept: text/event-stream\r\nContent-Type")
    added = (
        b"\r\n",
        b"\0",
        b":",
        b"Content-Length: 5\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Connection: close\r\n",
        b"\xff",
        b"%00",
    )
    for _ in range(150):
        content = bytearray(choose.choice((ASKING, stream, get(b"/health"), get(b"/page.js"))) * choose.choice((1, 1, 3)))
        for _ in range(choose.randrange(4)):
            place, kind = choose.randrange(len(content)), choose.randrange(4)
            if kind == 0:
                content[place] = choose.randrange(256)
            elif kind == 1:
                content[place:place] = choose.choice(added)
            elif kind == 2:
                del content[place : place + choose.randrange(1, 20)]
            else:
                content = content[: place + 1]
            content = content or bytearray(b"GET")
        with contextlib.closing(Talk(url, seconds=0.05).send(content).socket) as connection, contextlib.suppress(OSError):
            if choose.random() < 0.7:
                connection.recv(1 << 16)
    until = time.monotonic() + 20
    while metric(url, "whence_open_connections") > 1 and time.monotonic() < until:
        time.sleep(0.1)
    _, _, body = Talk(url).send(get(b"/metrics", b"Connection: close")).answer()
    assert "whence_open_connections 1.0" in body.decode()
    assert not re.search(r'whence_requests_total{.*status="50[0-4]"', body.decode())


# --- time


def test_what_never_comes_is_not_waited_for(live, talk):  # noqa: F811
    url = live(header_seconds=0.8, body_seconds=0.8, idle_seconds=0.8)
    started = time.monotonic()
    headers = talk(url).send(b"GET /health HTTP/1.1\r\nHost: ")
    body = talk(url).send(ASKING[:-1])
    silent, idle = talk(url), talk(url).send(get(b"/health"))
    assert idle.answer()[0] == 200
    for connection in (headers, body):
        assert error_of(connection.answer())[0] == 408
    assert silent.ends() == idle.ends() == 0
    assert time.monotonic() - started < 10
    assert metric(url, 'whence_requests_total{path="none",status="408"}') == 2


def test_a_request_is_not_kept_open_by_a_byte_now_and_then(live, talk):  # noqa: F811
    url = live(header_seconds=0.8, body_seconds=0.8)
    headers, body = talk(url), talk(url).send(ASKING[: -len(json.dumps(ASKED))])
    until = time.monotonic() + 2
    for byte in b"GET /" + b"a" * 12:
        headers.send(bytes([byte]))
        body.send(b" ")
        time.sleep(0.1)
    assert error_of(headers.answer())[0] == error_of(body.answer())[0] == 408
    assert time.monotonic() < until + 5


def test_a_slow_request_within_its_time_is_answered(shared, talk):
    connection = talk(shared)
    for start in range(0, len(ASKING), 40):
        connection.send(ASKING[start : start + 40])
        time.sleep(0.02)
    assert connection.answer()[0] == 200


def test_whoever_reads_nothing_is_cut_off(live, talk):  # noqa: F811
    url = live(send_seconds=0.5)
    connection = talk(url, buffer=4096)
    # As much as the kernel's buffers hold, and more: 400 times the script of the page.
    connection.send(get(b"/page.js") * 400)
    time.sleep(1)
    until = time.monotonic() + 20
    while metric(url, "whence_open_connections") > 1 and time.monotonic() < until:  # the one that asks for it
        time.sleep(0.1)
    assert metric(url, "whence_open_connections") == 1
    assert connection.ends() < 400 * 20_000


def test_a_stream_that_nobody_reads_ends_with_its_question(live, talk, gate):  # noqa: F811
    url = live(seconds=0.5, idle_seconds=0.5)
    body = json.dumps(ASKED).encode()
    connection = talk(url).send(post(body, JSON[:-2], b"Accept: text/event-stream"))
    assert gate.inside.wait(20)
    time.sleep(0.6)
    gate.open()
    while connection._more():
        pass
    assert b"event: error" in connection.content and b"504" in connection.content


# --- number


@pytest.mark.parametrize("begun", [b"GET /health HTTP/1.1\r\nHost: ", ASKING[:-1], b""])
def test_half_requests_lock_nobody_out(live, talk, begun):  # noqa: F811
    url = live(max_connections=12, max_connections_each=12)
    for _ in range(40):
        talk(url).send(begun)
    assert talk(url).send(get(b"/health")).answer()[0] == 200
    assert talk(url).send(ASKING).answer()[0] == 200
    assert metric(url, "whence_open_connections") <= 12


def test_one_address_does_not_take_what_others_need(live, talk):  # noqa: F811
    url = live(max_connections=12, max_connections_each=8)
    other = talk(url, source="127.0.0.2").send(ASKING[:-1])
    for _ in range(40):
        talk(url, source="127.0.0.3").send(ASKING[:-1])
    assert other.send(ASKING[-1:]).answer()[0] == 200


def test_where_all_are_being_answered_the_next_one_is_told_to_wait(live, talk, gate):  # noqa: F811
    url = live(max_connections=3, max_connections_each=2)
    waiting = [talk(url).send(ASKING) for _ in range(2)]
    assert gate.inside.wait(20)
    status, headers, found = error_of(talk(url).answer())
    assert (status, headers["retry-after"], found) == (429, "1", "too many connections of one address")
    waiting.append(talk(url, source="127.0.0.2").send(ASKING))
    time.sleep(0.2)
    status, headers, found = error_of(talk(url, source="127.0.0.3").answer())
    assert (status, headers["retry-after"], found) == (503, "1", "a service with too many connections")
    gate.open()
    assert [connection.answer()[0] for connection in waiting] == [200, 200, 200]
    assert talk(url).send(get(b"/health")).answer()[0] == 200


def test_files_are_kept_in_reserve(monkeypatch):
    allowed = 256 + len(os.listdir("/dev/fd"))  # what other tests left open
    monkeypatch.setattr(resource, "getrlimit", lambda _: (allowed, allowed))
    assert 100 < most_connections(Limits()) <= 256 - 128
    assert most_connections(Limits(max_connections=5)) == 5
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert most_connections(Limits()) == 512
    monkeypatch.setattr(resource, "getrlimit", lambda _: (130, 130))
    with pytest.raises(BadInput, match="files left for connections, of 130 that this process may open; .*raise `ulimit -n`"):
        most_connections(Limits())


def test_an_ipv6_network_counts_as_one_address():
    assert _network_of(("2001:db8::1", 1)) == _network_of(("2001:db8::ffff:2", 2)) != _network_of(("2001:db9::1", 1))
    assert _network_of(("::ffff:10.0.0.1", 1)) == _network_of(("10.0.0.1", 1)) == "10.0.0.1"
    assert _network_of(None) == _network_of(("", 0)) == ""
    assert _network_of(("fe80::1%eth0", 1)) == "fe80::"


# --- one place


def test_every_limit_is_documented_with_its_default():
    page = (SOURCE.parent / "docs" / "serve.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", page, re.M))
    assert {name: rows.get(name, "").strip() for name in vars(Limits())} == {
        name: f"{value:,}" if isinstance(value, int) else f"{value:g}" for name, value in vars(Limits()).items()
    }


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_a_limit_is_a_number_above_0(value):
    for name in ("header_seconds", "max_connections", "max_log_bytes"):
        with pytest.raises(BadInput, match=f"found {name}="):
            ServeConfig(**{name: value})
