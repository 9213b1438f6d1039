"""A detached connection: every method of an IOStream, over plain and TLS connections.

The server detaches and hands the stream to the test, which reads and writes on
it with `server.run` and looks at the other end of the same connection.
"""

from __future__ import annotations

import asyncio
import queue
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
from tornado import httputil, web, websocket
from tornado.iostream import IOStream, StreamBufferFullError, StreamClosedError

from helpers.detached import GET, KERNEL, Detached
from helpers.server_thread import Messages, Serve
from helpers.tls_files import TLSFiles
from helpers.waiting import DEADLINE_S, eventually
from tornado_worker.connection import stream as stream_module
from tornado_worker.connection.stream import TransportStream

HELD_MAX = 1024 * 1024


@pytest.fixture(params=["plain", "tls"])
def options(request: pytest.FixtureRequest, tls: TLSFiles) -> dict[str, Any]:
    if request.param == "plain":
        return {}
    return {"ssl_options": tls.server_context(), "client_tls": tls.client_context()}


@pytest.fixture(autouse=True)
def quick_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "_FLUSH_CHECK_S", 0.05)


@pytest.fixture
def detached(serve: Serve, options: dict[str, Any]) -> Detached:
    return Detached(serve, options)


@pytest.fixture
def narrow(serve: Serve, options: dict[str, Any]) -> Detached:
    """With small kernel buffers, so that what is held is ours."""
    return Detached(serve, {**options, "kernel_buffer": KERNEL})


# -- reading -------------------------------------------------------------------


def test_it_is_an_iostream(detached: Detached) -> None:
    assert isinstance(detached.stream, IOStream)
    assert not detached.stream.closed()
    assert not detached.stream.reading()
    assert not detached.stream.writing()


def test_read_bytes(detached: Detached) -> None:
    detached.client.send(b"hello world")
    assert detached.run("read_bytes", 5) == b"hello"
    assert detached.run("read_bytes", 6) == b" world"
    assert detached.run("read_bytes", 0) == b""


def test_read_bytes_waits_for_all_of_them(detached: Detached) -> None:
    future = detached.start("read_bytes", 10)
    detached.client.send_slowly(b"012345678")
    assert detached.stream.reading()
    assert not future.done()
    detached.client.send(b"9abc")
    assert future.result(DEADLINE_S) == b"0123456789"
    assert detached.run("read_bytes", 3) == b"abc"


def test_read_bytes_partial(detached: Detached) -> None:
    future = detached.start("read_bytes", 100, partial=True)
    detached.client.send(b"some")
    assert future.result(DEADLINE_S) == b"some"
    detached.client.send(b"0123456789")
    assert detached.run("read_bytes", 4, partial=True) == b"0123"
    assert detached.run("read_bytes", 100, partial=True) == b"456789"


def test_read_until(detached: Detached) -> None:
    detached.client.send(b"one\r\ntwo\r\nthr")
    assert detached.run("read_until", b"\r\n") == b"one\r\n"
    assert detached.run("read_until", b"\r\n") == b"two\r\n"
    future = detached.start("read_until", b"\r\n")
    detached.client.send_slowly(b"ee\r")
    assert not future.done()
    detached.client.send(b"\n")
    assert future.result(DEADLINE_S) == b"three\r\n"


def test_read_until_regex(detached: Detached) -> None:
    detached.client.send(b"abc12;de")
    assert detached.run("read_until_regex", rb"[0-9]+;") == b"abc12;"
    future = detached.start("read_until_regex", rb"[0-9]+;")
    detached.client.send_slowly(b"f345;rest")
    assert future.result(DEADLINE_S) == b"def345;"
    assert detached.run("read_bytes", 4) == b"rest"


@pytest.mark.parametrize("method", ["read_until", "read_until_regex"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_max_bytes_that_are_exceeded_close_the_stream(
    detached: Detached, method: str, when: str
) -> None:
    if when == "before":
        detached.client.send(b"0123456789")
        detached.server.turn()
    future = detached.start(method, b"x", max_bytes=5)
    if when == "after":
        detached.client.send(b"0123456789")
    assert isinstance(future.exception(DEADLINE_S), StreamClosedError)
    detached.logs.expect("re:INFO tornado.general: Unsatisfiable read, closing connection: .*")
    assert detached.client.receive_all() == b""


def test_max_bytes_that_suffice_do_nothing(detached: Detached) -> None:
    detached.client.send(b"0123x6789")
    assert detached.run("read_until", b"x", max_bytes=5) == b"0123x"


def test_read_into(detached: Detached) -> None:
    buffer = bytearray(10)
    detached.client.send(b"0123")
    detached.server.turn()
    future = detached.start("read_into", buffer)
    assert not future.done()
    detached.client.send_slowly(b"4567")
    assert not future.done()
    detached.client.send(b"89abc")
    assert future.result(DEADLINE_S) == 10
    assert buffer == b"0123456789"
    assert detached.run("read_bytes", 3) == b"abc"


def test_read_into_of_what_is_there_already(detached: Detached) -> None:
    detached.client.send(b"0123456789")
    detached.server.turn()
    buffer = bytearray(4)
    assert detached.run("read_into", buffer) == 4
    assert buffer == b"0123"
    assert detached.run("read_bytes", 6) == b"456789"


def test_read_into_partial(detached: Detached) -> None:
    buffer = bytearray(10)
    future = detached.start("read_into", buffer, partial=True)
    detached.client.send(b"0123")
    assert future.result(DEADLINE_S) == 4
    assert buffer[:4] == b"0123"
    detached.client.send(b"x" * 15)
    received = b""
    while len(received) < 15:
        count = detached.run("read_into", buffer, partial=True)
        received += bytes(buffer[:count])
    assert received == b"x" * 15


def test_read_into_a_memoryview(detached: Detached) -> None:
    buffer = bytearray(10)
    future = detached.start("read_into", memoryview(buffer)[2:8])
    detached.client.send(b"012")
    detached.server.turn()
    assert not future.done()
    detached.client.send(b"345")
    assert future.result(DEADLINE_S) == 6
    assert buffer == b"\0\x00012345\0\0"
    detached.client.send(b"rest")
    assert detached.run("read_bytes", 4) == b"rest"


def test_read_into_leaves_the_buffer_to_its_owner(detached: Detached) -> None:
    buffer = bytearray(4)
    future = detached.start("read_into", buffer)
    detached.client.send(b"0123")
    assert future.result(DEADLINE_S) == 4
    buffer += b"4"  # a BufferError if somebody still held a view of it


def test_read_until_close(detached: Detached) -> None:
    future = detached.start("read_until_close")
    detached.client.send(b"hello ")
    detached.server.turn()
    detached.client.send(b"world")
    detached.client.close()
    assert future.result(DEADLINE_S) == b"hello world"
    assert detached.stream.closed()


def test_what_was_read_before_the_end_can_still_be_read(detached: Detached) -> None:
    detached.client.send(b"hello world")
    detached.client.close()
    eventually(detached.stream.closed)
    assert detached.run("read_bytes", 5) == b"hello"
    assert detached.run("read_until", b"rld") == b" world"
    future = detached.start("read_bytes", 1)
    assert isinstance(future.exception(DEADLINE_S), StreamClosedError)


def test_pending_read_fails_when_the_client_leaves(detached: Detached) -> None:
    future = detached.start("read_bytes", 10)
    detached.client.send(b"0123")
    detached.client.close()
    assert isinstance(future.exception(DEADLINE_S), StreamClosedError)


def test_pending_partial_read_gets_the_last_bytes(detached: Detached) -> None:
    future = detached.start("read_until_regex", b".+")
    detached.client.send(b"last")
    detached.client.close()
    assert future.result(DEADLINE_S) == b"last"


def test_second_read_is_an_error_while_one_is_pending(detached: Detached) -> None:
    future = detached.start("read_bytes", 10)
    with pytest.raises(AssertionError, match="Already reading"):
        detached.run("read_bytes", 1)
    detached.client.send(b"0123456789")
    assert future.result(DEADLINE_S) == b"0123456789"


def test_nobody_reading_stops_the_client(narrow: Detached) -> None:
    sent = narrow.client.send_until_stalled(b"u" * 65536)
    assert sent < HELD_MAX
    total = 4 * HELD_MAX
    future = narrow.start("read_bytes", total)
    narrow.client.send_and_receive(b"u" * (total - sent))
    assert future.result(DEADLINE_S) == b"u" * total


def test_read_of_more_than_max_buffer_size_closes_the_stream(
    serve: Serve, options: dict[str, Any]
) -> None:
    detached = Detached(serve, {**options, "max_buffer_size": 100_000})
    future = detached.start("read_until", b"x")
    with pytest.raises(OSError):
        detached.client.send(b"u" * (64 << 20))
    assert isinstance(future.exception(DEADLINE_S), StreamClosedError)
    assert isinstance(future.exception().real_error, StreamBufferFullError)
    detached.logs.expect("ERROR tornado.general: Reached maximum read buffer size")


# -- what was read before ------------------------------------------------------


@pytest.mark.parametrize("how", ["whole", "bytes"])
def test_bytes_behind_the_request_are_the_streams(
    serve: Serve, options: dict[str, Any], how: str
) -> None:
    streams: queue.Queue[TransportStream] = queue.Queue()
    app = Messages(on_finish=lambda m: streams.put(m.conn.detach()))
    server = serve(app, **options)
    client = server.connect()
    data = GET + b"early\r\n" + GET
    if how == "whole":
        client.send(data)
    else:
        client.send_slowly(data)
    stream = streams.get(timeout=DEADLINE_S)
    assert server.run(stream.read_until, b"\r\n") == b"early\r\n"
    assert server.run(stream.read_bytes, len(GET)) == GET
    client.send(b"late")
    assert server.run(stream.read_bytes, 4) == b"late"
    assert len(app.messages) == 1
    server.run(stream.close)


@pytest.mark.parametrize("step", ["on_headers", "on_data", "on_finish"])
def test_detaching_at_any_step_keeps_every_byte(serve: Serve, step: str) -> None:
    """Of a request with a body, what the application has not been given is the stream's."""
    streams: queue.Queue[TransportStream] = queue.Queue()
    app = Messages(**{step: lambda m, *chunk: streams.put(m.conn.detach())})
    server = serve(app)
    client = server.connect()
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbodyrest")
    stream = streams.get(timeout=DEADLINE_S)
    expected = b"bodyrest" if step == "on_headers" else b"rest"
    assert server.run(stream.read_bytes, len(expected)) == expected
    server.run(stream.close)


def test_detaching_a_connection_on_which_much_was_sent_ahead(serve: Serve) -> None:
    streams: queue.Queue[TransportStream] = queue.Queue()
    server = serve(Messages(on_headers=lambda m: streams.put(m.conn.detach())))
    client = server.connect()
    ahead = b"a" * 60_000
    client.send(b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n" + ahead)
    stream = streams.get(timeout=DEADLINE_S)
    assert server.run(stream.read_bytes, len(ahead)) == ahead
    server.run(stream.close)


@pytest.mark.parametrize("step", ["on_data", "on_finish"])
def test_detaching_after_a_pause_keeps_every_byte(serve: Serve, step: str) -> None:
    """Bytes that arrived while the application made the connection wait."""
    streams: queue.Queue[TransportStream] = queue.Queue()
    go = asyncio.Event()

    async def wait(message: Any) -> None:
        await go.wait()

    app = Messages(on_headers=wait, **{step: lambda m, *chunk: streams.put(m.conn.detach())})
    server = serve(app)
    client = server.connect()
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody")
    server.turn()
    client.send(b"rest")
    server.turn()
    server.run(go.set)
    stream = streams.get(timeout=DEADLINE_S)
    assert server.run(stream.read_bytes, 4) == b"rest"
    server.run(stream.close)


def test_detaching_after_the_client_left_gives_a_closed_stream(serve: Serve) -> None:
    app = Messages(on_finish=lambda m: None)
    server = serve(app)
    client = server.connect()
    client.send(GET)
    server.turn()
    client.close()
    eventually(lambda: not server.connections)
    stream = server.run(app.messages[0].conn.detach)
    assert isinstance(stream, IOStream)
    assert stream.closed()
    with pytest.raises(StreamClosedError):
        server.run(stream.write, b"too late")


def test_websocket_whose_client_left_while_it_was_prepared_is_no_error(serve: Serve) -> None:
    events: list[str] = []
    go = asyncio.Event()

    class Socket(websocket.WebSocketHandler):
        async def prepare(self) -> None:
            events.append("prepare")
            await go.wait()

        def on_close(self) -> None:
            events.append("close")

    server = serve(web.Application([("/", Socket)]))
    client = server.connect()
    client.send(
        GET[:-2] + b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    eventually(lambda: events == ["prepare"])
    client.close()
    eventually(lambda: events == ["prepare", "close"])
    server.run(go.set)
    server.turn()
    assert events == ["prepare", "close"]
    serve.logs.expect()


def test_detaching_twice_raises(detached: Detached, serve: Serve) -> None:
    app = Messages(on_finish=lambda m: None)
    server = serve(app)
    client = server.connect()
    client.send(GET)
    server.turn()
    stream = server.run(app.messages[0].conn.detach)
    with pytest.raises(StreamClosedError):
        server.run(app.messages[0].conn.detach)
    server.run(stream.close)
    client.expect_close()


def test_end_of_a_half_closed_client_reaches_the_stream(serve: Serve) -> None:
    """It had been seen, and was being waited out, when the application detached."""
    streams: queue.Queue[TransportStream] = queue.Queue()

    async def detach_at_eof(message: Any) -> None:
        while not message.conn._conn._eof:
            await asyncio.sleep(0)
        streams.put(message.conn.detach())

    def finish(message: Any) -> None:
        asyncio.ensure_future(detach_at_eof(message))  # noqa: RUF006

    server = serve(Messages(on_finish=finish))
    client = server.connect()
    client.send(GET)
    server.turn()
    client.shutdown()
    # The task's next step is always in the queue before the connection's own callback,
    # so it sees the end first.
    eventually(streams.get(timeout=DEADLINE_S).closed)


# -- writing -------------------------------------------------------------------


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_write(detached: Detached, kind: Callable[[bytes], Any]) -> None:
    assert detached.run("write", kind(b"hello ")) is None
    detached.run("write", kind(b""))
    detached.run("write", kind(b"world"))
    detached.client.expect(b"hello world")


def test_memoryview_of_wider_items_is_written_whole(detached: Detached) -> None:
    detached.run("write", memoryview(b"12345678").cast("I"))
    detached.client.expect(b"12345678")


def test_write_waits_for_a_client_that_does_not_read(narrow: Detached) -> None:
    written: list[int] = []

    async def write_all() -> None:
        for _ in range(64):
            written.append(65536)
            await narrow.stream.write(b"w" * 65536)

    future = narrow.server.start(write_all())
    before = -1
    while len(written) != before:
        before = len(written)
        narrow.server.turn(20)
    assert sum(written) < HELD_MAX
    assert narrow.stream.writing()
    assert narrow.client.receive(64 * 65536) == b"w" * 64 * 65536
    future.result(DEADLINE_S)
    eventually(lambda: not narrow.stream.writing())


def test_pending_write_fails_when_the_client_leaves(narrow: Detached) -> None:
    narrow.start("write", b"w" * (4 << 20))  # TLS takes the first, however large
    future = narrow.start("write", b"w" * (4 << 20))
    assert not future.done()
    narrow.client.reset()
    assert isinstance(future.exception(DEADLINE_S), StreamClosedError)


def test_write_after_close_raises(detached: Detached) -> None:
    detached.run("close")
    with pytest.raises(StreamClosedError):
        detached.run("write", b"late")


def test_max_write_buffer_size_is_enforced(serve: Serve) -> None:
    narrow = Detached(serve, {"kernel_buffer": KERNEL})
    narrow.stream.max_write_buffer_size = HELD_MAX

    def write_too_much() -> None:
        narrow.stream.write(b"w" * HELD_MAX)
        with pytest.raises(StreamBufferFullError):
            narrow.stream.write(b"w" * HELD_MAX)

    narrow.server.run(write_too_much)
    assert narrow.client.receive(HELD_MAX) == b"w" * HELD_MAX


def test_both_directions_at_once(detached: Detached) -> None:
    size = 1 << 20

    async def echo() -> None:
        for _ in range(size // 4096):
            await detached.stream.write(await detached.stream.read_bytes(4096))

    future = detached.server.start(echo())
    data = bytes(range(256)) * (size // 256)
    detached.client.send_and_receive(data)
    assert detached.client.receive(size) == data
    future.result(DEADLINE_S)


# -- closing -------------------------------------------------------------------


def test_close(detached: Detached) -> None:
    detached.run("write", b"bye")
    detached.run("close")
    assert detached.stream.closed()
    detached.client.expect(b"bye")
    detached.client.expect_close()
    detached.run("close")
    eventually(lambda: not detached.server.streams)


def write_and_close(detached: Detached, data: bytes) -> None:
    def call() -> None:
        detached.stream.write(data)
        detached.stream.close()

    detached.server.run(call)


def test_bytes_written_before_close_are_delivered(narrow: Detached) -> None:
    data = bytes(range(256)) * 8192
    write_and_close(narrow, data)
    assert narrow.client.receive(len(data)) == data
    narrow.client.expect_close()


def test_slow_reader_gets_what_was_written_before_close(
    narrow: Detached, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than the limit in all, but never without progress for it."""
    monkeypatch.setattr(stream_module, "_FLUSH_TIMEOUT_S", 0.5)
    write_and_close(narrow, b"w" * HELD_MAX)
    for _ in range(32):
        assert narrow.client.receive(32768) == b"w" * 32768
        threading.Event().wait(0.03)
    narrow.client.expect_close()


def test_reader_that_takes_nothing_after_close_is_cut_off(
    narrow: Detached, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "_FLUSH_TIMEOUT_S", 0.3)
    write_and_close(narrow, b"w" * (4 << 20))
    eventually(lambda: not narrow.server.streams)


def test_client_that_does_not_answer_the_end_is_let_go(detached: Detached) -> None:
    """Over TLS it should, and a pooled connection that nobody looks at does not."""
    detached.run("close")
    eventually(lambda: not detached.server.streams)


@pytest.mark.parametrize("who", ["server", "client", "client resets"])
def test_close_callback_is_called_once(detached: Detached, who: str) -> None:
    called: list[bool] = []
    detached.run("set_close_callback", lambda: called.append(detached.stream.closed()))
    detached.server.turn()
    assert called == []
    if who == "server":
        detached.run("close")
    elif who == "client":
        detached.client.close()
    else:
        detached.client.reset()
    eventually(lambda: called)
    eventually(lambda: not detached.server.streams)
    detached.run("close")
    assert called == [True]


def test_close_callback_may_be_replaced_or_removed(detached: Detached) -> None:
    called: list[str] = []
    detached.run("set_close_callback", lambda: called.append("first"))
    detached.run("set_close_callback", lambda: called.append("second"))
    detached.run("set_close_callback", None)
    detached.client.close()
    eventually(lambda: not detached.server.streams)
    detached.server.turn()
    assert called == []


def test_error_of_a_reset_is_kept(serve: Serve) -> None:
    detached = Detached(serve, {})
    future = detached.start("read_bytes", 1)
    detached.client.reset()
    error = future.exception(DEADLINE_S)
    assert isinstance(error, StreamClosedError)
    assert isinstance(error.real_error, ConnectionResetError)
    assert isinstance(detached.stream.error, ConnectionResetError)


def test_close_all_connections_leaves_streams_alone(detached: Detached) -> None:
    """As Tornado's does, which knows nothing of them."""
    detached.server.run(detached.server.http.close_all_connections)
    detached.run("write", b"still here")
    detached.client.expect(b"still here")


# -- the rest ------------------------------------------------------------------


@pytest.mark.parametrize("value", [True, False])
def test_set_nodelay(detached: Detached, value: bool) -> None:
    detached.run("set_nodelay", value)
    sock = detached.stream.socket
    assert bool(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)) is value
    detached.run("close")
    detached.run("set_nodelay", value)


def test_socket_is_that_of_the_connection(detached: Detached) -> None:
    assert detached.stream.socket.getpeername() == detached.client.sock.getsockname()
    assert detached.stream.fileno() is detached.stream.socket


def test_socket_over_tls_knows_the_cipher(serve: Serve, tls: TLSFiles) -> None:
    detached = Detached(
        serve, {"ssl_options": tls.server_context(), "client_tls": tls.client_context()}
    )
    assert detached.stream.socket.version() == "TLSv1.3"
    assert detached.stream.socket.cipher()[0].startswith("TLS_")


def test_what_does_not_apply_is_refused(detached: Detached) -> None:
    with pytest.raises(RuntimeError, match="connected already"):
        detached.run("connect", ("127.0.0.1", 1))
    with pytest.raises(NotImplementedError, match="start_tls"):
        detached.run("start_tls", True)


# -- tunnels -------------------------------------------------------------------


class Tunnel(httputil.HTTPServerConnectionDelegate, httputil.HTTPMessageDelegate):
    """A CONNECT proxy that connects to nothing but an echo in itself."""

    def start_request(self, server_conn: object, request_conn: Any) -> Tunnel:
        self.conn = request_conn
        return self

    def headers_received(self, start_line: Any, headers: httputil.HTTPHeaders) -> None:
        self.start_line = start_line

    def finish(self) -> None:
        assert self.start_line.method == "CONNECT"
        self.task = asyncio.ensure_future(self.echo(self.conn.detach()))

    async def echo(self, stream: IOStream) -> None:
        await stream.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        try:
            while True:
                await stream.write((await stream.read_bytes(65536, partial=True)).upper())
        except StreamClosedError:
            pass


def test_connect_tunnel(serve: Serve, options: dict[str, Any]) -> None:
    client = serve(Tunnel(), **options).connect()
    client.send(b"CONNECT b:443 HTTP/1.1\r\nHost: b:443\r\n\r\nearly")
    client.expect(b"HTTP/1.1 200 Connection established\r\n\r\nEARLY")
    client.send(b"GET / HTTP/1.1\r\n\r\n")
    client.expect(b"GET / HTTP/1.1\r\n\r\n")


def test_upgrade_is_detached_after_its_response(serve: Serve, options: dict[str, Any]) -> None:
    streams: queue.Queue[TransportStream] = queue.Queue()

    def upgrade(message: Any) -> None:
        line = httputil.ResponseStartLine("", 101, "Switching Protocols")
        headers = httputil.HTTPHeaders({"Upgrade": "echo", "Connection": "Upgrade"})
        message.conn.write_headers(line, headers)
        message.conn.finish()
        streams.put(message.conn.detach())

    server = serve(Messages(on_finish=upgrade), **options)
    client = server.connect()
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nearly")
    client.expect(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n"
    )
    stream = streams.get(timeout=DEADLINE_S)
    assert server.run(stream.read_bytes, 5) == b"early"
    server.turn()
    assert not stream.closed()
    server.run(stream.close)
    client.expect_close()
