"""No connection leaves anything to the cyclic garbage collector, however it ends.

The collector is off in these tests; at the end it is asked what it would have freed,
and nothing of that may be a connection, an exchange, a stream, or what reads for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tornado import web, websocket

from helpers.server_thread import Client, Messages, Serve, ServerThread
from helpers.tls_files import TLSFiles
from helpers.waiting import eventually
from tornado_worker import WSGIContainer

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
UPGRADE = (
    b"GET /socket HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
)
CLOSE_FRAME = b"\x88\x82\0\0\0\0\x03\xe8"


class Hello(web.RequestHandler):
    def get(self) -> None:
        self.write("hello")

    post = get


class Fail(web.RequestHandler):
    async def get(self, how: str) -> None:
        if how == "late":
            self.write("half")
            await self.flush()
        raise ZeroDivisionError("boom")


class Wait(web.RequestHandler):
    """Answers when its client has gone."""

    def initialize(self) -> None:
        self.gone = asyncio.Event()

    async def get(self) -> None:
        await self.gone.wait()

    def on_connection_close(self) -> None:
        self.gone.set()


class Stream(web.RequestHandler):
    async def get(self) -> None:
        while True:
            self.write(b"x" * 10_000)
            try:
                await self.flush()
            except Exception:
                return


@web.stream_request_body
class Upload(web.RequestHandler):
    async def data_received(self, chunk: bytes) -> None:
        await asyncio.sleep(0)

    def post(self) -> None:
        self.write("done")


class Cut(web.RequestHandler):
    async def get(self, how: str) -> None:
        self.write("half")
        await self.flush()
        connection: Any = self.request.connection
        stream = connection.stream
        stream.set_close_callback(lambda: self)
        if how == "connection":
            connection.close()
        else:
            stream.max_write_buffer_size = 100_000
            stream.close(exc_info=ValueError("cut"))


class Tunnel(web.RequestHandler):
    SUPPORTED_METHODS = ("CONNECT", "GET")  # type: ignore[assignment]

    async def connect(self) -> None:
        connection: Any = self.request.connection
        view = connection.stream
        stream = connection.detach()
        assert view == stream
        stream.set_close_callback(self.on_gone)
        await stream.write(b"HTTP/1.1 200 OK\r\n\r\n")
        with contextlib.suppress(Exception):
            while True:
                await stream.write(await stream.read_bytes(100, partial=True))

    def on_gone(self) -> None:
        pass


class Socket(websocket.WebSocketHandler):
    def on_message(self, message: Any) -> None:
        if message == "close":
            self.close(1000, "bye")
        else:
            self.write_message(message)


class Connects(web.Application):
    """Routes CONNECT too, whose target has no path."""

    def find_handler(self, request: Any, **kwargs: Any) -> Any:
        if request.method == "CONNECT":
            return self.get_handler_delegate(request, Tunnel)
        return super().find_handler(request, **kwargs)


def view(environ: dict[str, Any], start_response: Any) -> Any:
    environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Type", "text/plain")])
    if environ["PATH_INFO"].endswith("fail"):
        raise ZeroDivisionError("boom")
    return iter([b"hello", b"world"])


# What a client does. Where it returns, the connection is left to be closed by the test.


def one_request(client: Client) -> None:
    assert client.get().status == 200


def several_requests(client: Client) -> None:
    for _ in range(3):
        assert client.get().status == 200


def last_request(client: Client) -> None:
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    client.receive_all()


def old_request(client: Client) -> None:
    client.send(b"GET / HTTP/1.0\r\n\r\n")
    client.receive_all()


def pipelined(client: Client) -> None:
    client.send(GET * 20)
    for _ in range(20):
        assert client.response().status == 200


def pipelined_large(client: Client) -> None:
    request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 30000\r\n\r\n" + b"x" * 30_000
    client.send_and_receive(request * 5)
    for _ in range(5):
        assert client.response().status == 200


def chunked(client: Client) -> None:
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    client.send(b"1\r\nx\r\n" * 100 + b"0\r\n\r\n")
    assert client.response().status == 200


def only_connects(client: Client) -> None:
    pass


def half_a_head(client: Client) -> None:
    client.send(b"GET / HTTP/1.1\r\nHo")


def refused_head(client: Client) -> None:
    client.send(b"GET / HTTP/1.1\r\nbad\r\n\r\n")
    client.receive_all()


def large_head(client: Client) -> None:
    client.send(b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000 + b"\r\n\r\n")
    client.receive_all()


def reset(client: Client) -> None:
    client.send(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
    client._server.turn()
    client.reset()


def leaves(client: Client) -> None:
    client.send(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
    client._server.turn()


def half_closes(client: Client) -> None:
    client.send(GET)
    client.shutdown()
    client.receive_all()


def half_closes_early(client: Client) -> None:
    client.send(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
    client.shutdown()
    client.receive_all()


def gets(path: str) -> Callable[[Client], None]:
    def get(client: Client) -> None:
        client.send(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
        client.receive_all()

    return get


def reads_half(client: Client) -> None:
    client.send(b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n")
    client.receive(50_000)


def uploads(client: Client) -> None:
    client.send(b"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 500000\r\n\r\n")
    client.send(b"x" * 500_000)
    assert client.response().body == b"done"


def aborts_upload(client: Client) -> None:
    client.send(b"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 500000\r\n\r\n")
    client.send(b"x" * 200_000)
    client._server.turn()


def too_long_upload(client: Client) -> None:
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 500000000\r\n\r\n")
    client.receive_all()


def posts_to_view(client: Client) -> None:
    client.send(b"POST /wsgi HTTP/1.1\r\nHost: a\r\nContent-Length: 300000\r\n\r\n")
    client.send(b"x" * 300_000)
    assert client.response().body == b"helloworld"


def aborts_post_to_view(client: Client) -> None:
    client.send(b"POST /wsgi HTTP/1.1\r\nHost: a\r\nContent-Length: 300000\r\n\r\nx")
    client._server.turn()


def websocket_closed_by_client(client: Client) -> None:
    client.send(UPGRADE)
    client.receive_until(b"\r\n\r\n")
    client.send(b"\x81\x82\0\0\0\0hi" * 50)
    client.receive(4 * 50)
    client.send(CLOSE_FRAME)
    client.receive_all()


def websocket_closed_by_server(client: Client) -> None:
    client.send(UPGRADE)
    client.receive_until(b"\r\n\r\n")
    client.send(b"\x81\x85\0\0\0\0close")
    client.receive(2)
    client.send(CLOSE_FRAME)
    client.receive_all()


def websocket_lost(client: Client) -> None:
    client.send(UPGRADE)
    client.receive_until(b"\r\n\r\n")
    client.send(b"\x81\x82\0\0\0\0hi" * 50)


def websocket_reset(client: Client) -> None:
    websocket_lost(client)
    client.reset()


def tunnel(client: Client) -> None:
    client.send(b"CONNECT b:1 HTTP/1.1\r\nHost: b:1\r\n\r\n")
    client.receive_until(b"\r\n\r\n")
    client.send(b"hello")
    assert client.receive(5) == b"hello"


WAYS: dict[str, Callable[[Client], None]] = {
    function.__name__: function
    for function in (
        one_request,
        several_requests,
        last_request,
        old_request,
        pipelined,
        pipelined_large,
        chunked,
        only_connects,
        half_a_head,
        refused_head,
        large_head,
        reset,
        leaves,
        half_closes,
        half_closes_early,
        reads_half,
        uploads,
        aborts_upload,
        too_long_upload,
        posts_to_view,
        aborts_post_to_view,
        websocket_closed_by_client,
        websocket_closed_by_server,
        websocket_lost,
        websocket_reset,
        tunnel,
    )
} | {
    "fails": gets("/fail/early"),
    "fails_late": gets("/fail/late"),
    "not_found": gets("/none"),
    "cut_connection": gets("/cut/connection"),
    "cut_stream": gets("/cut/stream"),
    "view": gets("/wsgi/view"),
    "view_fails": gets("/wsgi/fail"),
}
# What is logged of them, any number of times.
_UNCAUGHT = "re:ERROR tornado.application: Uncaught exception GET %s .*"
_REFUSED = "INFO tornado.general: Malformed HTTP message from 127.0.0.1: "
_AFTER_HEAD = "ERROR tornado.general: Cannot send error response after headers written"
_SEND_FAILED = "WARNING asyncio: socket.send() raised exception."
_WEBSOCKET_LOST = (
    _UNCAUGHT % "/socket",
    # Handlers that do not await what write_message returns.
    "re:ERROR asyncio: Task exception was never retrieved.*write_message.*WebSocketClosedError.*",
)
LOGGED: dict[str, tuple[str, ...]] = {
    "refused_head": (_REFUSED + "no colon in header line 'bad'",),
    "large_head": (_REFUSED + "request header field is too large",),
    "too_long_upload": (_REFUSED + "Content-Length too long",),
    "websocket_lost": _WEBSOCKET_LOST,
    "websocket_reset": _WEBSOCKET_LOST,
    "fails": (_UNCAUGHT % "/fail/early",),
    "fails_late": (_UNCAUGHT % "/fail/late", _AFTER_HEAD),
    "view_fails": (
        "ERROR tornado.application: Error handling request GET /wsgi/fail "
        "[ZeroDivisionError: boom]",
    ),
}
# TLS has no half-closed connections.
NOT_OVER_TLS = {"half_closes", "half_closes_early"}
OURS = ("tornado_worker",)
TRANSPORTS = ("asyncio.selector_events", "asyncio.sslproto", "uvloop.loop")


def is_on_a_cycle(one: Any, garbage: set[int]) -> bool:
    """Tell whether `one` keeps itself alive, and does not just hang on somebody else's cycle."""
    seen = {id(one)}
    todo = [one]
    while todo:
        for other in gc.get_referents(todo.pop()):
            if other is one:
                return True
            if id(other) in garbage and id(other) not in seen:
                seen.add(id(other))
                todo.append(other)
    return False


@contextlib.contextmanager
def uncollected() -> Iterator[list[str]]:
    """Put what only the collector frees at the end, of our types and transports, into the list."""
    found: list[str] = []
    gc.collect()
    gc.disable()
    gc.garbage.clear()
    try:
        yield found
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        garbage = {id(one) for one in gc.garbage}
        for one in gc.garbage:
            module = type(one).__module__
            if module.startswith(OURS + TRANSPORTS) and is_on_a_cycle(one, garbage):
                found.append(f"{module}.{type(one).__qualname__}")
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
        gc.collect()


@pytest.fixture(params=["plain", "tls"])
def options(request: pytest.FixtureRequest, tls: TLSFiles) -> dict[str, Any]:
    if request.param == "plain":
        return {}
    return {"ssl_options": tls.server_context(), "client_tls": tls.client_context()}


@pytest.fixture
def container() -> Iterator[WSGIContainer]:
    container = WSGIContainer(view)
    yield container
    container.close()


@pytest.fixture
def server(serve: Serve, options: dict[str, Any], container: WSGIContainer) -> ServerThread:
    app = Connects(
        [
            ("/", Hello),
            ("/fail/(.*)", Fail),
            ("/wait", Wait),
            ("/stream", Stream),
            ("/upload", Upload),
            ("/cut/(.*)", Cut),
            ("/socket", Socket),
            ("/wsgi.*", container),
        ]
    )
    return serve(app, max_body_size=1_000_000, **options)


def connect_and(server: ServerThread, way: Callable[[Client], None]) -> None:
    with server.connect() as client:
        way(client)
    eventually(lambda: server.http.connection_count() == 0, "the connection is gone")
    server.turn()


@pytest.mark.parametrize("way", WAYS)
def test_connection_leaves_no_cycle(
    server: ServerThread, serve: Serve, options: dict[str, Any], way: str
) -> None:
    if options and way in NOT_OVER_TLS:
        pytest.skip("TLS has no half-closed connections")
    connect_and(server, WAYS[way])  # what is made once is made
    with uncollected() as found:
        connect_and(server, WAYS[way])
        connect_and(server, WAYS[way])
    # asyncio's warning comes in any way in which the client leaves before the last write.
    serve.logs.expect_only(_SEND_FAILED, *LOGGED.get(way, ()))
    assert sorted(set(found)) == []


def test_timeouts_leave_no_cycle(
    serve: Serve, options: dict[str, Any], container: WSGIContainer
) -> None:
    app = web.Application([("/", Hello), ("/wait", Wait), ("/stream", Stream)])
    server = serve(
        app,
        header_timeout=0.1,
        keepalive_timeout=0.1,
        body_timeout=0.1,
        stall_timeout=0.1,
        **options,
    )

    def waits(data: bytes) -> Callable[[Client], None]:
        def wait(client: Client) -> None:
            client.send(data)
            eventually(lambda: server.http.connection_count() == 0)

        return wait

    ways = [
        waits(b""),
        waits(b"GET / HT"),
        waits(GET),
        waits(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nx"),
        waits(b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n"),
    ]
    for way in ways:
        connect_and(server, way)
    with uncollected() as found:
        for way in ways:
            connect_and(server, way)
    timeouts = ("reading header from", "reading body from", "writing to")
    serve.logs.expect(*(f"INFO tornado.general: Timeout {what} 127.0.0.1" for what in timeouts * 2))
    assert sorted(set(found)) == []


def test_drain_leaves_no_cycle(server: ServerThread, serve: Serve) -> None:
    with uncollected() as found:
        with contextlib.ExitStack() as stack:
            for data in (b"", b"GET / HT", b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n", UPGRADE):
                client = stack.enter_context(server.connect())
                client.send(data)
            eventually(lambda: server.http.connection_count() == 4)
            server.turn()
            server.run(server.http.begin_drain)
            server.run(server.http.cut_all)
            eventually(lambda: server.http.connection_count() == 0)
        server.turn()
    assert sorted(set(found)) == []


def test_failed_handshake_leaves_no_cycle(serve: Serve, tls: TLSFiles) -> None:
    server = serve(web.Application([]), ssl_options=tls.server_context())

    def fail(how: str) -> None:
        with socket.create_connection(server.address) as sock:
            if how == "hello":
                sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
                with contextlib.suppress(ConnectionError):
                    while sock.recv(1000):
                        pass
            elif how == "untrusted":
                context = ssl.create_default_context()
                with contextlib.suppress(ssl.SSLError):
                    context.wrap_socket(sock, server_hostname="localhost")
        eventually(lambda: server.http.connection_count() == 0)
        server.turn()

    logged = {
        # Once a minute, whoever fails.
        "hello": [r"re:WARNING tornado\.general: SSL Error on .*"],
        "leaves": [r"re:INFO tornado\.general: connection from .* failed: .*"] * 3,
        "untrusted": [],
    }
    for how in ("hello", "leaves", "untrusted"):
        fail(how)
        with uncollected() as found:
            fail(how)
            fail(how)
        serve.logs.expect(*logged[how])
        assert sorted(set(found)) == [], how


def test_test_finds_a_cycle(serve: Serve) -> None:
    """The collector sees what the other tests look for."""

    def keep(message: Any) -> None:
        message.conn.anything = message
        message.respond(b"hi")

    app = Messages(on_finish=keep)
    server = serve(app)
    with uncollected() as found:
        connect_and(server, one_request)
        app.messages.clear()
    assert "tornado_worker.connection.exchange.RequestConnection" in found
