"""The client in front of whoever answers: it speaks to the address that it was given, and takes an end of everything."""

import gzip
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import whence
from whence.cli import main
from whence.errors import BadInput
from whence.serve import transport as transport_module

TOKEN = "0123456789abcdef"
STORES = json.dumps({"stores": [{"name": "store"}]}).encode()


class Foreign:
    """A server on this machine that answers as it is told, and remembers what it was asked."""

    def __init__(self, answer):
        seen = self.seen = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                seen.append((self.path, self.headers.get("Authorization")))
                answer(self)

            do_POST = do_GET

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"


def reply(handler, status=200, content=STORES, **headers):
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    if "Content_Length" not in headers:
        handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


@pytest.fixture
def foreign():
    opened = []

    def make(answer):
        opened.append(Foreign(answer))
        return opened[-1]

    yield make
    for one in opened:
        one.server.shutdown()
        one.server.server_close()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_token_goes_to_no_other_address(foreign, status):
    other = foreign(reply)
    for place in (
        other.url + "/v1/stores",
        "/elsewhere",
        "https://127.0.0.1:1/",
        "//127.0.0.1:1",
        "file:///etc/passwd",
        "\x1b[31m",
    ):
        server = foreign(lambda handler, place=place: reply(handler, status, b"", Location=place))
        client = whence.serve.Client(server.url, token=TOKEN)
        with pytest.raises(BadInput, match="found a redirect from .* to .*a token is for nobody else") as told:
            client.stores()
        assert "\x1b" not in str(told.value)
        with pytest.raises(BadInput, match="found a redirect"):
            client.attribute(" sat", store="store")
        with pytest.raises(BadInput, match="found a redirect"):
            client.attribute(" sat", store="store", on_progress=print)
        assert [path for path, _ in server.seen] == ["/v1/stores"] + 2 * ["/v1/stores/store/attribute"]
    assert other.seen == []


def test_the_command_line_follows_no_redirect(foreign, capsys, tmp_path):
    other = foreign(reply)
    server = foreign(lambda handler: reply(handler, 302, b"", Location=other.url))
    (tmp_path / "token").write_text(TOKEN)
    arguments = ["query", "store", "--text", "a", "--url", server.url, "--token-file", str(tmp_path / "token")]
    assert main(arguments) == 2
    assert "found a redirect from" in capsys.readouterr().err and other.seen == []


def test_nothing_is_unpacked(foreign):
    bomb = gzip.compress(bytes(10_000_000))
    for status in (200, 400):
        server = foreign(lambda handler, status=status: reply(handler, status, bomb, Content_Encoding="gzip"))
        with pytest.raises(BadInput, match="found (a packed answer|status 400) from"):
            whence.serve.Client(server.url).stores()


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"3", b"null", b"{}", b'{"stores": 3}', b'{"stores": [3]}', b"[" * 100_000, b"\xff", b'{"stores": []}'],
)
def test_whoever_is_no_service_is_told_apart(foreign, content):
    client = whence.serve.Client(foreign(lambda handler: reply(handler, 200, content)).url)
    with pytest.raises(BadInput, match="that is not whence's|found 0 stores"):
        client.attribute("a")
    with pytest.raises(BadInput, match="that is not whence's"):
        client.query(["a"], store="store")


@pytest.mark.parametrize("content", [b"", b"<html>", b"{}", b'{"error": "no"}', b'{"error": {"found": 3}}', b'{"error": {}}'])
def test_errors_of_others_are_told_by_their_status(foreign, content):
    client = whence.serve.Client(foreign(lambda handler: reply(handler, 418, content)).url)
    with pytest.raises(BadInput, match="found (status 418|an answer) from"):
        client.stores()


def test_an_answer_has_an_end(foreign, monkeypatch):
    monkeypatch.setattr(transport_module, "_MOST_BYTES", 1 << 20)

    def endless(handler):
        reply(handler, 200, b"", Content_Length="99999999999")
        with_line = handler.headers["Accept"] == "text/event-stream"
        try:
            while True:
                handler.wfile.write(b"x" * 65_536 if not with_line else b"data: " + b"x" * 65_536)
        except OSError:
            pass

    client = whence.serve.Client(foreign(endless).url)
    for listener in (None, print):
        with pytest.raises(BadInput, match="found an answer of more than 1 MiB from"):
            client.attribute("a", store="store", on_progress=listener)


def test_an_answer_has_a_time(foreign):
    def slow(handler):
        reply(handler, 200, b"", Content_Length="99999")
        try:
            for _ in range(100):
                handler.wfile.write(b": \n" if handler.headers["Accept"] == "text/event-stream" else b" ")
                handler.wfile.flush()
                time.sleep(0.05)
        except OSError:
            pass

    client = whence.serve.Client(foreign(slow).url, seconds=0.5)
    for listener in (None, print):
        started = time.monotonic()
        with pytest.raises(BadInput, match="it did not end within 0.5 s"):
            client.attribute("a", store="store", on_progress=listener)
        assert time.monotonic() - started < 4


def test_half_an_answer_is_none(foreign):
    client = whence.serve.Client(foreign(lambda handler: reply(handler, 200, STORES, Content_Length="500")).url)
    with pytest.raises(BadInput, match="the answer ended before its end"):
        client.stores()


@pytest.mark.parametrize("wait", ["0", "\xb2", "-1", "9" * 5000, "soon", ""])
def test_a_full_service_is_asked_again_no_more_than_once_a_second(foreign, wait):
    server = foreign(lambda handler: reply(handler, 503, b"{}", Retry_After=wait))
    with pytest.raises(BadInput, match="found status 503|not whence's"):
        whence.serve.Client(server.url, seconds=1.5).stores()
    assert len(server.seen) <= 2


def test_a_token_fits_into_a_header():
    for token in ("a\r\nX: y" + TOKEN, "é" * 20, "\x00" * 20):
        with pytest.raises(BadInput, match="found a token that no header can hold"):
            whence.serve.Client("http://127.0.0.1:1", token=token)
