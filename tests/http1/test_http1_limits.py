"""How much, and how long: body limits, decompression, and every timeout of a connection.

Timeouts are set to fractions of a second and their effects awaited; no test
says how soon something happens, only that it does, and that it does not to
those who keep going.
"""

from __future__ import annotations

import asyncio
import gzip
import threading
import time
from typing import Any

import pytest
import tornado
from tornado import web

from helpers.server_thread import Client, Message, Messages, Serve
from helpers.tls_files import TLSFiles
from helpers.waiting import DEADLINE_S, eventually

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
MALFORMED = "INFO tornado.general: Malformed HTTP message from 127.0.0.1: "


def post(body: bytes, *fields: str, length: int | None = None) -> bytes:
    length = len(body) if length is None else length
    lines = ["POST / HTTP/1.1", "Host: a", f"Content-Length: {length}", *fields, "", ""]
    return "\r\n".join(lines).encode() + body


def chunked(*chunks: bytes) -> bytes:
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + body


# -- sizes ---------------------------------------------------------------------


@pytest.mark.parametrize("feed", [Client.send, Client.send_slowly])
def test_body_at_the_limit_is_taken(serve: Serve, feed: Any) -> None:
    client = serve(Messages(), max_body_size=10).connect()
    feed(client, post(b"0123456789") + chunked(b"01234", b"56789") + b"0\r\n\r\n")
    for _ in range(2):
        assert client.response().body == b"POST / HTTP/1.1 a 0123456789"


@pytest.mark.parametrize("feed", [Client.send, Client.send_slowly])
def test_length_over_the_limit_is_refused_before_the_body(serve: Serve, feed: Any) -> None:
    app = Messages()
    client = serve(app, max_body_size=10).connect()
    feed(client, post(b"0123456789a") + GET)
    assert client.receive_all() == BAD_REQUEST
    serve.logs.expect(MALFORMED + "Content-Length too long")
    assert [m.body for m in app.messages] == [b""]
    assert [m.closed for m in app.messages] == [True]


@pytest.mark.parametrize("feed", [Client.send, Client.send_slowly])
def test_chunks_over_the_limit_are_refused(serve: Serve, feed: Any) -> None:
    app = Messages()
    client = serve(app, max_body_size=10).connect()
    feed(client, chunked(b"01234", b"56789", b"a") + b"0\r\n\r\n" + GET)
    assert client.receive_all() == BAD_REQUEST
    serve.logs.expect(MALFORMED + "chunked body too large")
    assert len(app.messages) == 1
    assert not app.messages[0].finished
    assert len(app.messages[0].body) <= 10


@pytest.mark.parametrize("limit", [5, 20])
@pytest.mark.parametrize("how", ["length", "chunked"])
def test_set_max_body_size_holds_for_one_request(serve: Serve, limit: int, how: str) -> None:
    def set_limit(message: Message) -> None:
        if message.headers.get("X") == "set":
            message.conn.set_max_body_size(limit)

    app = Messages(on_headers=set_limit)
    client = serve(app, max_body_size=10).connect()
    body = b"b" * limit
    fit = post(body, "X: set") if how == "length" else chunked(body) + b"0\r\n\r\n"
    fit = fit.replace(b"Host: a", b"Host: a\r\nX: set") if how == "chunked" else fit
    client.send(fit)
    assert client.response().body == body
    client.send(post(b"b" * 10))
    assert client.response().body == b"b" * 10
    client.send(
        fit.replace(b": %d\r" % limit, b": %d\r" % (limit + 1))
        if how == "length"
        else fit.replace(b"%x\r\n" % limit, b"%x\r\nb" % (limit + 1))
    )
    assert client.receive_all() == BAD_REQUEST
    serve.logs.expect(f"re:{MALFORMED}(Content-Length too long|chunked body too large)")


@web.stream_request_body
class Streamed(web.RequestHandler):
    async def prepare(self) -> None:
        await asyncio.sleep(0)
        if limit := self.get_argument("limit", None):
            self.request.connection.set_max_body_size(int(limit))  # type: ignore[union-attr]
        self.size = 0

    def data_received(self, chunk: bytes) -> None:
        self.size += len(chunk)

    def post(self) -> None:
        self.write(str(self.size))


def test_handler_may_raise_its_limit_in_an_async_prepare(serve: Serve) -> None:
    client = serve(web.Application([("/", Streamed)]), max_body_size=10).connect()
    client.send(post(b"b" * 5000).replace(b"/", b"/?limit=5000", 1))
    assert client.response().body == b"5000"
    client.send(post(b"b" * 5001).replace(b"/", b"/?limit=5000", 1))
    assert client.receive_all() == BAD_REQUEST
    serve.logs.expect(MALFORMED + "Content-Length too long")


def test_limit_that_is_set_in_the_middle_of_a_body_holds_for_the_rest(serve: Serve) -> None:
    app = Messages(on_data=lambda m, chunk: m.conn.set_max_body_size(3))
    client = serve(app, chunk_size=2).connect()
    client.send(chunked(b"01234") + b"0\r\n\r\n")
    assert client.receive_all() == BAD_REQUEST
    serve.logs.expect(MALFORMED + "chunked body too large")


def test_default_limit_is_max_buffer_size(serve: Serve) -> None:
    client = serve(Messages(), max_buffer_size=1000).connect()
    client.send(post(b"b" * 1000))
    assert client.response().status == 200
    client.send(post(b"", length=1001))
    assert client.receive_all() == BAD_REQUEST
    serve.logs.expect(MALFORMED + "Content-Length too long")


# -- decompression -------------------------------------------------------------

GZIP = "Content-Encoding: gzip"


@pytest.mark.parametrize("feed", [Client.send, Client.send_slowly])
def test_gzip_body_is_decompressed(serve: Serve, feed: Any) -> None:
    app = Messages(on_finish=lambda m: m.respond(m.body))
    client = serve(app, decompress_request=True).connect()
    plain = b"hello world " * 5
    feed(client, post(gzip.compress(plain), GZIP) + post(b"plain"))
    assert client.response().body == plain
    assert client.response().body == b"plain"
    assert "Content-Encoding" not in app.messages[0].headers
    assert app.messages[0].headers["X-Consumed-Content-Encoding"] == "gzip"


def test_gzip_body_has_the_limit_that_the_application_sets(serve: Serve) -> None:
    app = Messages(on_headers=lambda m: m.conn.set_max_body_size(1000))
    client = serve(app, decompress_request=True, max_body_size=100).connect()
    client.send(post(gzip.compress(b"b" * 1000), GZIP))
    assert client.response().body.endswith(b"b" * 1000)
    client.send(post(gzip.compress(b"b" * 1001), GZIP))
    assert client.receive_all() == BAD_REQUEST
    serve.logs.expect(MALFORMED + "decompressed body too large")


def test_gzip_body_is_left_alone_unless_asked_for(serve: Serve) -> None:
    client = serve(Messages(on_finish=lambda m: m.respond(m.body))).connect()
    client.send(post(gzip.compress(b"hello"), GZIP))
    assert gzip.decompress(client.response().body) == b"hello"


@pytest.mark.skipif(
    tornado.version_info < (6, 6), reason="Tornado's decoder blames the application before 6.6"
)
@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"not gzip", "invalid gzip data: .*"),
        (gzip.compress(b"b" * 100_000, mtime=0), "decompressed body too large"),
        (gzip.compress(b"hello", mtime=0)[:-3], "invalid gzip data: .*"),
    ],
    ids=["not gzip", "too large", "cut short"],
)
def test_bad_gzip_body_is_refused(serve: Serve, body: bytes, reason: str) -> None:
    app = Messages(on_finish=lambda m: m.respond(m.body))
    client = serve(app, decompress_request=True, max_body_size=50_000).connect()
    client.send(post(body, GZIP) + GET)
    assert client.receive_all() == BAD_REQUEST
    serve.logs.expect(f"re:{MALFORMED}{reason}")
    assert len(app.messages) == 1


def test_decompressed_body_comes_in_pieces_of_chunk_size(serve: Serve) -> None:
    sizes: list[int] = []
    app = Messages(
        on_data=lambda m, chunk: sizes.append(len(chunk)),
        on_finish=lambda m: m.respond(b"%d" % len(m.body)),
    )
    client = serve(app, decompress_request=True, chunk_size=1000).connect()
    client.send(post(gzip.compress(b"b" * 100_000), GZIP))
    assert client.response().body == b"100000"
    assert max(sizes) <= 1000


# -- timeouts ------------------------------------------------------------------


def test_idle_connection_is_closed(serve: Serve) -> None:
    server = serve(Messages(), idle_connection_timeout=0.1)
    new, used = server.connect(), server.connect()
    used.get()
    new.expect_close()
    used.expect_close()
    eventually(lambda: not server.connections)


def test_keepalive_timeout_is_for_connections_that_were_used(serve: Serve) -> None:
    server = serve(Messages(), keepalive_timeout=0.1)
    new, used = server.connect(), server.connect()
    used.get()
    used.expect_close()
    assert new.get().status == 200


def test_connection_that_is_used_again_in_time_stays_open(serve: Serve) -> None:
    server = serve(Messages(), keepalive_timeout=0.6)
    client = server.connect()
    deadline = time.monotonic() + 0.8
    while time.monotonic() < deadline:
        assert client.get().status == 200
        threading.Event().wait(0.05)


@pytest.mark.parametrize("sent", [b"G", b"GET / HTTP/1.1\r\nHost: a", GET[:-2]])
def test_slow_header_section_is_answered_with_408(serve: Serve, sent: bytes) -> None:
    app = Messages()
    client = serve(app, header_timeout=0.1).connect()
    client.send(sent)
    client.expect(b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
    client.expect_close()
    serve.logs.expect("INFO tornado.general: Timeout reading header from 127.0.0.1")
    assert app.messages == []


def test_dripping_does_not_extend_the_header_timeout(serve: Serve) -> None:
    client = serve(Messages(), header_timeout=0.2).connect()
    client.send(GET[:-4])
    stop = threading.Event()

    def drip() -> None:
        while not stop.wait(0.01):
            try:
                client.send(b"X")
            except OSError:
                return

    dripper = threading.Thread(target=drip)
    dripper.start()
    try:
        assert client.response().status == 408
    finally:
        stop.set()
        dripper.join()
    serve.logs.expect("INFO tornado.general: Timeout reading header from 127.0.0.1")


def test_slow_header_section_of_a_later_request_is_answered_with_408(serve: Serve) -> None:
    client = serve(Messages(), header_timeout=0.1).connect()
    client.send(GET + GET[:-2])
    assert client.response().status == 200
    assert client.response().status == 408
    client.expect_close()
    serve.logs.expect("INFO tornado.general: Timeout reading header from 127.0.0.1")


def test_header_timeout_does_not_apply_to_a_body_or_a_handler(serve: Serve) -> None:
    go = asyncio.Event()

    class Slow(web.RequestHandler):
        async def post(self) -> None:
            await go.wait()

    server = serve(web.Application([("/", Slow)]), header_timeout=0.05, keepalive_timeout=0.05)
    client = server.connect()
    client.send(post(b"h", length=2))
    deadline = time.monotonic() + 0.3
    eventually(lambda: time.monotonic() > deadline)
    client.send(b"i")
    deadline = time.monotonic() + 0.3
    eventually(lambda: time.monotonic() > deadline)
    server.run(go.set)
    assert client.response().status == 200


@pytest.mark.parametrize("how", ["server", "request"])
def test_slow_body_is_cut_off(serve: Serve, how: str) -> None:
    def set_timeout(message: Message) -> None:
        if how == "request":
            message.conn.set_body_timeout(0.1)

    app = Messages(on_headers=set_timeout)
    options = {"body_timeout": 0.1} if how == "server" else {}
    client = serve(app, keepalive_timeout=0.1, **options).connect()
    client.send(post(b"hell", length=5))
    assert client.receive_all() == b""
    serve.logs.expect("INFO tornado.general: Timeout reading body from 127.0.0.1")
    assert app.messages[0].closed


def test_body_timeout_is_for_the_whole_body(serve: Serve) -> None:
    app = Messages()
    client = serve(app, body_timeout=0.2, keepalive_timeout=0.1).connect()
    client.send(post(b"", length=100_000))
    stop = threading.Event()

    def drip() -> None:
        while not stop.wait(0.01):
            try:
                client.send(b"b")
            except OSError:
                return

    dripper = threading.Thread(target=drip)
    dripper.start()
    try:
        assert client.receive_all() == b""
    finally:
        stop.set()
        dripper.join()
    serve.logs.expect("INFO tornado.general: Timeout reading body from 127.0.0.1")


def test_body_that_stalls_is_cut_off(serve: Serve) -> None:
    client = serve(Messages(), stall_timeout=0.1).connect()
    client.send(post(b"hell", length=5))
    assert client.receive_all() == b""
    serve.logs.expect("INFO tornado.general: Timeout reading body from 127.0.0.1")


def test_body_that_goes_on_is_not_cut_off(serve: Serve) -> None:
    client = serve(Messages(), stall_timeout=0.6).connect()
    client.send(post(b"", length=20))
    for _ in range(20):
        client.send(b"b")
        threading.Event().wait(0.04)
    assert client.response().body == b"POST / HTTP/1.1 a " + b"b" * 20


def test_body_that_the_application_holds_back_is_not_cut_off(serve: Serve) -> None:
    go = asyncio.Event()

    async def wait(message: Message, chunk: bytes) -> None:
        await go.wait()

    server = serve(Messages(on_data=wait), stall_timeout=0.1, body_timeout=None)
    client = server.connect()
    client.send(post(b"hell", length=5))
    deadline = time.monotonic() + 0.5
    eventually(lambda: time.monotonic() > deadline)
    server.run(go.set)
    client.send(b"o")
    assert client.response().body == b"hello"


def test_client_that_reads_nothing_is_cut_off(serve: Serve) -> None:
    app = Messages(on_finish=lambda m: m.respond(b"r" * (4 << 20)))
    server = serve(app, stall_timeout=0.1, kernel_buffer=32768)
    client = server.connect(kernel_buffer=32768)
    client.send(GET)
    serve.logs.expect("INFO tornado.general: Timeout writing to 127.0.0.1")
    eventually(lambda: not server.connections)


@pytest.mark.parametrize("how", ["keep-alive", "close", "linger"])
@pytest.mark.parametrize("layer", ["plain", "tls"])
def test_client_that_reads_slowly_gets_it_all(
    serve: Serve, tls: TLSFiles, layer: str, how: str
) -> None:
    """Longer than any timeout in all, but never without progress for one."""
    body = b"r" * (1 << 19)
    over_tls = {"ssl_options": tls.server_context(), "client_tls": tls.client_context()}
    server = serve(
        Messages(on_finish=lambda m: m.respond(body)),
        stall_timeout=0.4,
        keepalive_timeout=0.2,
        kernel_buffer=32768,
        **(over_tls if layer == "tls" else {}),
    )
    server.http.timeouts.closing = 0.1
    server.http.timeouts.linger = 0.1
    client = server.connect(kernel_buffer=32768)
    field = b"" if how == "keep-alive" else b"Connection: close\r\n"
    client.send(GET[:-2] + field + b"\r\n" + (b"more" if how == "linger" else b""))
    assert b"200 OK" in client.receive_until(b"\r\n\r\n")
    for _ in range(len(body) // 32768):
        assert client.receive(32768) == b"r" * 32768
        threading.Event().wait(0.03)
    client.expect_close()


def test_lingering_connection_is_closed_in_the_end(serve: Serve) -> None:
    """The client neither closes nor stops sending."""
    server = serve(Messages(on_headers=lambda m: m.respond(b"no", 413)))
    server.http.timeouts.linger = 0.1
    client = server.connect()
    client.send(post(b"", length=1 << 30))
    assert client.response().status == 413
    client.expect_close()

    def send_on() -> None:
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            client.send(b"b" * (1 << 20))

    with pytest.raises(ConnectionError):
        send_on()
    eventually(lambda: not server.connections)
