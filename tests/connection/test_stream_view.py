"""Every public attribute of Tornado's connection and stream, on ours.

The lists come from Tornado's classes, so that a release with a new attribute fails
here: each is in one of the tables, as what works or as what says why it does not.
"""

from __future__ import annotations

import asyncio
import inspect
import queue
import socket
from collections.abc import Callable
from typing import Any

import pytest
from tornado.http1connection import HTTP1Connection
from tornado.iostream import (
    BaseIOStream,
    IOStream,
    SSLIOStream,
    StreamBufferFullError,
    StreamClosedError,
)

from helpers.server_thread import Client, Message, Messages, Serve, ServerThread
from helpers.tls_files import TLSFiles
from helpers.waiting import DEADLINE_S, eventually

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def public_names(*objects: Any) -> set[str]:
    """Return the public attributes of classes and instances."""
    names: set[str] = set()
    for object_ in objects:
        names |= {name for name in dir(object_) if not name.startswith("_")}
        names |= set(getattr(object_, "__dict__", ()))
    return {name for name in names if not name.startswith("_")}


def with_stream(look: Callable[[IOStream], set[str]]) -> set[str]:
    """Return `look` of a stream of Tornado's, which needs a running loop."""

    async def main() -> set[str]:
        one, other = socket.socketpair()
        with other:
            stream = IOStream(one)
            try:
                return look(stream)
            finally:
                stream.close()

    return asyncio.run(main())


def stream_names() -> set[str]:
    return with_stream(lambda stream: public_names(BaseIOStream, IOStream, SSLIOStream, stream))


def connection_names() -> set[str]:
    return with_stream(
        lambda stream: public_names(HTTP1Connection, HTTP1Connection(stream, is_client=False))
    )


# Each called with what is being looked at; returns True if it works as in Tornado.
WORKING_METHODS: dict[str, Callable[[Any], object]] = {
    "closed": lambda stream: stream.closed() is False,
    "reading": lambda stream: stream.reading() is False,
    "writing": lambda stream: stream.writing() is False,
    "fileno": lambda stream: stream.fileno().fileno() > 0,
    "get_fd_error": lambda stream: stream.get_fd_error().errno == 0,
    "write": lambda stream: stream.write(b"").done(),
    "set_nodelay": lambda stream: stream.set_nodelay(True) is None,
    "set_close_callback": lambda stream: stream.set_close_callback(None) is None,
    "close": lambda stream: stream.close() is None,
}
READS = {"read_bytes", "read_into", "read_until", "read_until_close", "read_until_regex"}
# With a part of what they say.
REFUSED_METHODS = {
    "connect": "connected already",
    "start_tls": "TLS|start_tls",
    "close_fd": "call close",
    "read_from_fd": "transport",
    "write_to_fd": "transport",
}
TLS_METHODS = {"wait_for_handshake"}
# What can be set, to what; None: it says why not.
ATTRIBUTES: dict[str, Any] = {
    "io_loop": None,
    "socket": None,
    "error": None,
    "read_chunk_size": None,
    "max_buffer_size": 1000,
    "max_write_buffer_size": 1000,
}
CONNECTION_METHODS = {
    "close",
    "detach",
    "finish",
    "read_response",
    "set_body_timeout",
    "set_close_callback",
    "set_max_body_size",
    "write",
    "write_headers",
}
CONNECTION_ATTRIBUTES = {"context", "is_client", "no_keep_alive", "params", "stream"}


class Waiting:
    """A connection whose request waits for its answer, and its client."""

    def __init__(self, serve: Serve, request: bytes = GET, **options: Any) -> None:
        messages: queue.Queue[Message] = queue.Queue()
        self.logs = serve.logs
        self.server: ServerThread = serve(Messages(on_finish=messages.put), **options)
        self.client: Client = self.server.connect()
        self.client.send(request)
        self.message = messages.get(timeout=DEADLINE_S)
        self.conn: Any = self.message.conn
        self.server.turn()

    def run(self, function: Callable[[], Any]) -> Any:
        return self.server.run(function)


@pytest.fixture
def waiting(serve: Serve) -> Waiting:
    return Waiting(serve)


def test_tables_name_all_that_a_stream_has() -> None:
    known = {*WORKING_METHODS, *READS, *REFUSED_METHODS, *TLS_METHODS, *ATTRIBUTES}
    assert stream_names() == known


def test_tables_name_all_that_a_connection_has() -> None:
    assert connection_names() == CONNECTION_METHODS | CONNECTION_ATTRIBUTES


@pytest.mark.parametrize("name", WORKING_METHODS)
def test_method_works(waiting: Waiting, name: str) -> None:
    assert waiting.run(lambda: WORKING_METHODS[name](waiting.conn.stream))


@pytest.mark.parametrize("name", WORKING_METHODS)
def test_method_works_when_the_connection_is_gone(waiting: Waiting, name: str) -> None:
    stream = waiting.conn.stream
    waiting.client.close()
    eventually(stream.closed)
    if name == "write":
        with pytest.raises(StreamClosedError):
            waiting.run(lambda: stream.write(b"x"))
    elif name == "fileno":
        assert waiting.run(stream.fileno) is None
    else:
        waiting.run(
            getattr(stream, name) if name[:3] != "set" else lambda: getattr(stream, name)(None)
        )


@pytest.mark.parametrize("name", sorted(READS | REFUSED_METHODS.keys()))
def test_method_that_is_refused_says_why(waiting: Waiting, name: str) -> None:
    with pytest.raises(RuntimeError, match=REFUSED_METHODS.get(name, "detach")):
        getattr(waiting.conn.stream, name)()


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_attribute_can_be_read_and_set_or_says_why_not(waiting: Waiting, name: str) -> None:
    value = ATTRIBUTES[name]
    before = waiting.run(lambda: getattr(waiting.conn.stream, name))
    if value is None:
        with pytest.raises(AttributeError, match=f"{name} cannot be set: "):
            waiting.run(lambda: setattr(waiting.conn.stream, name, before))
        return
    waiting.run(lambda: setattr(waiting.conn.stream, name, value))
    assert waiting.run(lambda: getattr(waiting.conn.stream, name)) == value
    stream = waiting.run(waiting.conn.detach)
    assert getattr(stream, name) == value


def test_attribute_that_no_stream_has_cannot_be_set(waiting: Waiting) -> None:
    with pytest.raises(AttributeError):
        waiting.conn.stream.anything = 1


def test_detached_stream_has_all_of_it(waiting: Waiting) -> None:
    stream = waiting.run(waiting.conn.detach)
    for name in stream_names() - TLS_METHODS:
        assert hasattr(stream, name), name
    for name in ("read_from_fd", "write_to_fd", "connect"):
        with pytest.raises(RuntimeError):
            getattr(stream, name)(b"")
    with pytest.raises(AttributeError, match="read_chunk_size cannot be set: "):
        stream.read_chunk_size = 1
    assert stream.read_chunk_size == 65536


def test_view_follows_the_detached_stream(waiting: Waiting) -> None:
    """In Tornado it is the same object."""
    view = waiting.conn.stream
    stream = waiting.run(waiting.conn.detach)
    assert view == stream
    assert waiting.conn.stream is None
    view.max_write_buffer_size = 5
    assert stream.max_write_buffer_size == 5
    waiting.client.send(b"hello")
    assert waiting.run(lambda: view.read_bytes(5)) == b"hello"
    waiting.run(view.close)
    assert stream.closed()


def test_views_of_a_connection_are_equal(waiting: Waiting) -> None:
    assert waiting.conn.stream == waiting.conn.stream
    assert len({waiting.conn.stream, waiting.conn.stream}) == 1
    assert waiting.conn.stream != object()


@pytest.mark.parametrize("over_tls", [False, True])
def test_handshake_is_over(serve: Serve, tls: TLSFiles, over_tls: bool) -> None:
    options: dict[str, Any] = {}
    if over_tls:
        options = {"ssl_options": tls.server_context(), "client_tls": tls.client_context()}
    waiting = Waiting(serve, **options)
    stream = waiting.conn.stream
    assert hasattr(stream, "wait_for_handshake") is over_tls
    if over_tls:
        assert waiting.run(lambda: stream.wait_for_handshake()) == stream
        assert stream.socket.version().startswith("TLS")
        detached = waiting.run(waiting.conn.detach)
        assert waiting.run(lambda: detached.wait_for_handshake()) is detached


@pytest.mark.parametrize("detach", [False, True])
def test_max_write_buffer_size_limits(serve: Serve, detach: bool) -> None:
    waiting = Waiting(serve, kernel_buffer=32 * 1024)
    waiting.conn.stream.max_write_buffer_size = 100_000
    stream = waiting.run(waiting.conn.detach) if detach else waiting.conn.stream

    def fill() -> int:
        for count in range(1000):
            try:
                stream.write(b"x" * 10_000)
            except StreamBufferFullError:
                return count
        raise AssertionError("never full")

    assert 10 <= waiting.run(fill) < 500
    assert stream.writing()
    waiting.run(stream.close)
    waiting.client.reset()


def test_max_write_buffer_size_limits_responses(serve: Serve) -> None:
    def answer(message: Message) -> None:
        message.conn.stream.max_write_buffer_size = 1000
        message.respond(b"x" * 2000)

    server = serve(Messages(on_finish=answer))
    client = server.connect()
    client.send(GET)
    client.receive_all()
    serve.logs.expect("re:.*StreamBufferFullError.*")


def test_close_callback_of_the_stream_is_called_once(waiting: Waiting) -> None:
    calls: list[str] = []
    waiting.conn.stream.set_close_callback(lambda: calls.append("closed"))
    waiting.client.close()
    eventually(lambda: calls)
    waiting.server.turn()
    assert calls == ["closed"]
    assert waiting.message.closed is False  # its own is the connection's


def test_close_callback_of_the_stream_ends_with_the_response(waiting: Waiting) -> None:
    calls: list[str] = []
    waiting.conn.stream.set_close_callback(lambda: calls.append("closed"))
    waiting.run(lambda: waiting.message.respond(b"hi"))
    assert waiting.client.response().body == b"hi"
    waiting.client.close()
    eventually(lambda: not waiting.server.connections)
    waiting.server.turn()
    assert calls == []


def test_error_tells_how_the_connection_was_lost(waiting: Waiting) -> None:
    stream = waiting.conn.stream
    assert stream.error is None
    waiting.client.reset()
    eventually(stream.closed)
    waiting.server.turn()
    # uvloop tells of some resets as of an end.
    assert stream.error is None or isinstance(stream.error, OSError)


def test_error_is_what_close_was_given(waiting: Waiting) -> None:
    stream = waiting.conn.stream
    error = ValueError("why")
    waiting.run(lambda: stream.close(exc_info=error))
    assert stream.error is error
    assert stream.closed()


# -- HTTP1Connection -----------------------------------------------------------


def test_connection_has_all_of_it(waiting: Waiting) -> None:
    for name in CONNECTION_METHODS:
        assert inspect.ismethod(getattr(waiting.conn, name)), name
    assert waiting.conn.is_client is False
    assert waiting.conn.no_keep_alive is False
    assert waiting.conn.params.max_header_size == 65536
    assert waiting.conn.context.remote_ip == "127.0.0.1"
    with pytest.raises(RuntimeError, match="read_response is for clients"):
        waiting.conn.read_response(None)
    for name, value in (("is_client", True), ("params", None), ("stream", None)):
        with pytest.raises(AttributeError, match=f"{name} cannot be set: "):
            setattr(waiting.conn, name, value)
    waiting.conn.is_client = False


def test_no_keep_alive_ends_the_connection(waiting: Waiting) -> None:
    waiting.conn.no_keep_alive = False
    waiting.conn.no_keep_alive = True
    assert waiting.conn.no_keep_alive is True
    with pytest.raises(AttributeError, match="no_keep_alive cannot be unset"):
        waiting.conn.no_keep_alive = False
    waiting.run(lambda: waiting.message.respond(b"hi"))
    response = waiting.client.response()
    assert response.headers["Connection"] == "close"
    waiting.client.expect_close()


def test_no_keep_alive_after_the_head_ends_the_connection(serve: Serve) -> None:
    waiting = Waiting(serve, b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    waiting.conn.no_keep_alive = True
    waiting.run(lambda: waiting.message.respond(b"hi"))
    assert waiting.client.response().body == b"hi"
    waiting.client.expect_close()
