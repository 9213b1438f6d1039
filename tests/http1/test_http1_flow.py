"""Back-pressure: who is slow holds the other up, and the server holds next to nothing.

Each test counts the bytes that one side got rid of while the other does nothing;
the kernel's buffers are made small so that the count is about ours. The
process's memory is measured in test_growth.py.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tornado import httputil, web

from helpers.server_thread import Client, Message, Messages, Serve, ServerThread, uvloop
from helpers.tls_files import TLSFiles
from helpers.waiting import DEADLINE_S, eventually
from tornado_worker.connection.flow import PIECE_MAX

KERNEL = 32 * 1024
# What one direction may hold: kernel buffers on both sides, what one read
# brings (256 KB), 64 KB held and, over TLS, its own buffers (512 KB).
HELD_MAX = 1024 * 1024
TOTAL = 4 * 1024 * 1024
OK = httputil.ResponseStartLine("", 200, "OK")


@pytest.fixture(params=["plain", "tls"])
def options(request: pytest.FixtureRequest, tls: TLSFiles) -> dict[str, Any]:
    if request.param == "plain":
        return {"kernel_buffer": KERNEL}
    return {
        "kernel_buffer": KERNEL,
        "ssl_options": tls.server_context(),
        "client_tls": tls.client_context(),
    }


def post(length: int) -> bytes:
    return f"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n".encode()


# -- uploads -------------------------------------------------------------------


@web.stream_request_body
class Upload(web.RequestHandler):
    """Takes nothing but the first chunk until it is released."""

    def initialize(self, release: asyncio.Event, sizes: list[int]) -> None:
        self.release = release
        self.sizes = sizes

    async def data_received(self, chunk: bytes) -> None:
        self.sizes.append(len(chunk))
        await self.release.wait()

    def post(self) -> None:
        self.write(str(sum(self.sizes)))


def test_slow_consumer_of_an_upload_stops_the_client(serve: Serve, options: dict[str, Any]) -> None:
    release = asyncio.Event()
    sizes: list[int] = []
    server = serve(
        web.Application([("/", Upload, {"release": release, "sizes": sizes})]), **options
    )
    client = server.connect(kernel_buffer=KERNEL)
    client.send(post(TOTAL))
    sent = client.send_until_stalled(b"u" * 65536)
    assert len(sizes) == 1
    assert sent < HELD_MAX

    server.run(release.set)
    client.send_and_receive(b"u" * (TOTAL - sent))
    assert client.response().body == str(TOTAL).encode()


class Sizes(Message):
    """Notes the pieces of its body and answers with their sum."""

    def __init__(self, conn: Any) -> None:
        super().__init__(conn)
        self.sizes: list[int] = []

    def data_received(self, chunk: bytes) -> None:
        self.sizes.append(len(chunk))

    def finish(self) -> None:
        self.respond(str(sum(self.sizes)).encode())


class EverySize(httputil.HTTPServerConnectionDelegate):
    def __init__(self) -> None:
        self.messages: list[Sizes] = []

    def start_request(self, server_conn: object, conn: Any) -> Sizes:
        self.messages.append(Sizes(conn))
        return self.messages[-1]


CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNK = b"%x\r\n%b\r\n" % (100_000, b"c" * 100_000)


@pytest.mark.parametrize("over", ["plain", "tls"])
@pytest.mark.parametrize(
    "upload", [post(TOTAL) + b"u" * TOTAL, CHUNKED + CHUNK * 40 + b"0\r\n\r\n"], ids=len
)
def test_long_bodies_arrive_in_pieces_and_requests_behind_them_are_served(
    serve: Serve, tls: TLSFiles, upload: bytes, over: str
) -> None:
    app = EverySize()
    options = {"ssl_options": tls.server_context(), "client_tls": tls.client_context()}
    server = serve(app, **(options if over == "tls" else {}))
    client = server.connect()
    small = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    client.send_and_receive((upload + small) * 2)
    for _ in range(2):
        assert int(client.response().body) in (TOTAL, 4_000_000)
        assert client.response().body == b"0"
    client.send(small)
    assert client.response().body == b"0"
    # The read that brings more is what makes the others bring less; over TLS some
    # of what follows has been read by then.
    long = [message.sizes for message in app.messages if sum(message.sizes)]
    assert all(sum(size > PIECE_MAX for size in sizes) <= 3 for sizes in long)


class Others(Message):
    """Takes a body of one byte over and over, and answers with what else was in it."""

    others = b""

    def data_received(self, chunk: bytes) -> None:
        self.others += chunk.strip(self.headers["X-Byte"].encode())[:100]

    def finish(self) -> None:
        self.respond(self.others)


class EveryOther(httputil.HTTPServerConnectionDelegate):
    def start_request(self, server_conn: object, conn: Any) -> Others:
        return Others(conn)


@pytest.mark.both_protocols
def test_servers_in_two_threads_read_what_their_own_clients_send(serve: Serve) -> None:
    def upload(byte: bytes, server: ServerThread) -> bytes:
        with server.connect() as client:
            client.send(post(16 * TOTAL)[:-2] + b"X-Byte: " + byte + b"\r\n\r\n")
            for _ in range(16):
                client.send(byte * TOTAL)
            return client.response().body

    servers = [serve(EveryOther()) for _ in range(2)]
    with ThreadPoolExecutor() as executor:
        assert list(executor.map(upload, (b"x", b"y"), servers)) == [b"", b""]


@pytest.mark.both_protocols
def test_client_that_leaves_in_the_middle_of_a_long_body_is_noticed(serve: Serve) -> None:
    app = Messages()
    server = serve(app)
    client = server.connect()
    client.send(post(TOTAL) + b"u" * (TOTAL - 1))
    eventually(lambda: len(app.messages[0].body) == TOTAL - 1)
    client.close()
    eventually(lambda: app.messages[0].closed)


def test_body_nobody_asked_for_yet_stops_the_client(serve: Serve, options: dict[str, Any]) -> None:
    wanted = asyncio.Event()

    async def wait(message: Message) -> None:
        await wanted.wait()

    server = serve(
        Messages(on_headers=wait, on_finish=lambda m: m.respond(str(len(m.body)).encode())),
        **options,
    )
    client = server.connect(kernel_buffer=KERNEL)
    client.send(post(TOTAL))
    sent = client.send_until_stalled(b"u" * 65536)
    assert sent < HELD_MAX

    server.run(wanted.set)
    client.send_and_receive(b"u" * (TOTAL - sent))
    assert client.response().body == str(TOTAL).encode()


@pytest.mark.both_protocols
def test_consumer_is_given_pieces_no_larger_than_chunk_size(serve: Serve) -> None:
    sizes: list[int] = []
    app = Messages(on_data=lambda m, chunk: sizes.append(len(chunk)))
    client = serve(app, chunk_size=1000).connect()
    client.send(post(100_000) + b"u" * 100_000)
    assert client.response().body == b"u" * 100_000
    assert sum(sizes) == 100_000
    assert max(sizes) == 1000


# -- pipelining ----------------------------------------------------------------


def test_client_that_pipelines_while_the_application_waits_is_stopped(
    serve: Serve, options: dict[str, Any]
) -> None:
    release = asyncio.Event()

    class Waiting(web.RequestHandler):
        async def get(self) -> None:
            await release.wait()
            self.write("x")

    server = serve(web.Application([("/", Waiting)]), **options)
    client = server.connect(kernel_buffer=KERNEL)
    request = b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 1000 + b"\r\n\r\n"
    sent = client.send_until_stalled(request)
    assert sent < HELD_MAX

    server.run(release.set)
    if sent % len(request):
        client.send_and_receive(request[sent % len(request) :])
    for _ in range(-(-sent // len(request))):
        assert client.response().body == b"x"


def test_client_that_resets_while_it_is_not_read_is_noticed(
    serve: Serve, options: dict[str, Any]
) -> None:
    left = asyncio.Event()

    class Waiting(web.RequestHandler):
        async def get(self) -> None:
            await left.wait()

        def on_connection_close(self) -> None:
            left.set()

    server = serve(web.Application([("/", Waiting)]), **options)
    client = server.connect(kernel_buffer=KERNEL)
    client.send_until_stalled(b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 1000 + b"\r\n\r\n")
    client.reset()
    eventually(left.is_set, "on_connection_close")


BODY = b"r" * 50_000


@pytest.mark.parametrize("how", ["at once", "one by one"])
def test_client_that_pipelines_without_reading_is_not_served_further(
    serve: Serve, options: dict[str, Any], how: str
) -> None:
    """Its responses would pile up: no request begins while the last response is stuck."""
    app = Messages(on_finish=lambda m: m.respond(BODY))
    server = serve(app, **options)
    client = server.connect(kernel_buffer=KERNEL)
    request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    count = 300
    if how == "at once":
        client.send(request * count)
        for _ in range(10):
            server.turn()
    else:
        for _ in range(count):
            client.send(request)
            server.turn(2)
    assert len(app.messages) * len(BODY) < HELD_MAX

    for _ in range(count):
        assert client.response().body == BODY
    assert len(app.messages) == count


# -- downloads -----------------------------------------------------------------


class Download(web.RequestHandler):
    def initialize(self, written: list[int], errors: list[Any]) -> None:
        self.written = written
        self.errors = errors

    async def get(self) -> None:
        chunk = b"d" * 65536
        try:
            for _ in range(TOTAL // len(chunk)):
                self.write(chunk)
                self.written.append(len(chunk))
                await self.flush()
        except Exception as e:
            self.errors.append(type(e).__name__)


def downloading(
    serve: Serve, options: dict[str, Any]
) -> tuple[ServerThread, Client, list[int], list[Any]]:
    written: list[int] = []
    errors: list[Any] = []
    app = web.Application([("/", Download, {"written": written, "errors": errors})])
    server = serve(app, **options)
    client = server.connect(kernel_buffer=KERNEL)
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    stalled(server, written)
    return server, client, written, errors


def stalled(server: ServerThread, written: list[int]) -> None:
    """Wait until the application has written nothing more for twenty turns."""
    eventually(lambda: written)
    before = -1
    while len(written) != before:
        before = len(written)
        server.turn(20)


def test_flush_waits_for_a_client_that_does_not_read(serve: Serve, options: dict[str, Any]) -> None:
    _, client, written, _ = downloading(serve, options)
    assert sum(written) < HELD_MAX
    response = client.response()
    assert len(response.body) == sum(written) == TOTAL


def test_flush_fails_when_the_client_that_does_not_read_leaves(
    serve: Serve, options: dict[str, Any]
) -> None:
    server, client, written, errors = downloading(serve, options)
    client.reset()
    eventually(lambda: errors)
    assert errors == ["StreamClosedError"]
    assert sum(written) < HELD_MAX
    eventually(lambda: not server.connections)


def test_flush_fails_at_once_when_the_client_has_left(serve: Serve) -> None:
    """Not only when the loop gets to say so: a handler that never waits would go on for long."""
    left = threading.Event()
    written: list[int] = []
    errors: list[str] = []

    class Stream(web.RequestHandler):
        async def get(self) -> None:
            await self.flush()
            await asyncio.sleep(0.01)  # uvloop before 0.22 sends when the loop turns
            left.wait(DEADLINE_S)  # now it does not turn, and cannot see it
            try:
                for i in range(1000):
                    self.write(b"d" * 1000)
                    await self.flush()
                    written.append(i)
            except Exception as e:
                errors.append(type(e).__name__)

    client = serve(web.Application([("/", Stream)])).connect()
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    client.receive_until(b"\r\n\r\n")
    client.reset()
    left.set()
    eventually(lambda: errors)
    assert errors == ["StreamClosedError"]
    # That old uvloop sends nothing before it has 64 KB.
    at_once = serve.loop == "asyncio" or not uvloop.__version__.startswith("0.21.")
    assert len(written) < (5 if at_once else 100)


def test_writes_that_nobody_awaits_are_all_delivered(serve: Serve, options: dict[str, Any]) -> None:
    def answer(message: Message) -> None:
        message.conn.write_headers(OK, httputil.HTTPHeaders())
        for i in range(64):
            message.conn.write(bytes([i]) * 65536)
        message.conn.finish()

    client = serve(Messages(on_finish=answer), **options).connect(kernel_buffer=KERNEL)
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert client.response().body == b"".join(bytes([i]) * 65536 for i in range(64))
    client.expect_close()


def test_response_to_one_slow_client_does_not_hold_another(serve: Serve) -> None:
    server, client, _, _ = downloading(serve, {"kernel_buffer": KERNEL})
    other = server.connect()
    assert other.get("/none").status == 404
    client.reset()


def test_both_directions_of_an_echo_are_bounded(serve: Serve, options: dict[str, Any]) -> None:
    """An echo whose client sends and never reads: the full response stops the request."""

    def begin(message: Message) -> None:
        message.conn.write_headers(OK, httputil.HTTPHeaders())

    server = serve(
        Messages(
            on_headers=begin,
            on_data=lambda m, chunk: m.conn.write(chunk),
            on_finish=lambda m: m.conn.finish(),
        ),
        **options,
    )
    client = server.connect(kernel_buffer=KERNEL)
    client.send(post(TOTAL))
    sent = client.send_until_stalled(b"e" * 65536)
    assert sent < 2 * HELD_MAX
    client.send_and_receive(b"e" * (TOTAL - sent))
    assert len(client.response().body) == TOTAL
