"""Draining: no request that was made is lost, and nobody waits for a client that does nothing."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import pytest
from tornado import httputil, web

from helpers.server_thread import Message, Messages, Serve, ServerThread
from helpers.tls_files import TLSFiles
from helpers.waiting import DEADLINE_S, eventually
from tornado_worker.connection.timeouts import Timeouts
from tornado_worker.server import server

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
UNAVAILABLE = (
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n"
    b"Retry-After: 1\r\n\r\n"
)
OK = httputil.ResponseStartLine("", 200, "OK")


@pytest.fixture
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every connection had been idle for long."""
    monkeypatch.setattr(server, "Timeouts", functools.partial(Timeouts, drain_grace=0.0))


@pytest.fixture
def long_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no time passed."""
    monkeypatch.setattr(server, "Timeouts", functools.partial(Timeouts, drain_grace=60.0))


def begin_drain(made: ServerThread) -> Any:
    """Begin, and return a future of the end."""
    made.run(made.http.begin_drain)
    return made.start(made.http.drained())


def answer_when_told(go: asyncio.Event) -> Messages:
    """Return an application that answers "done" after `go`, having begun if the path says so."""

    def finish(message: Message) -> None:
        if message.start_line.path == "/begun":
            message.conn.write_headers(OK, httputil.HTTPHeaders(), b"begun")

        async def answer() -> None:
            await go.wait()
            if message.start_line.path == "/begun":
                message.conn.finish()
            else:
                message.respond(b"done")

        message.task = asyncio.ensure_future(answer())  # type: ignore[attr-defined]

    return Messages(on_finish=finish)


# -- idle ----------------------------------------------------------------------


def test_server_without_connections_is_drained_at_once(serve: Serve) -> None:
    made = serve(Messages())
    begin_drain(made).result(DEADLINE_S)
    made.run(made.http.begin_drain)
    made.run(made.http.drained)
    with pytest.raises(ConnectionRefusedError):
        made.connect()


@pytest.mark.usefixtures("no_grace")
def test_idle_connections_are_closed_at_once(serve: Serve) -> None:
    made = serve(Messages())
    new, used = made.connect(), made.connect()
    used.get()
    drained = begin_drain(made)
    new.expect_close()
    used.expect_close()
    drained.result(DEADLINE_S)


@pytest.mark.usefixtures("long_grace")
def test_connection_used_a_moment_ago_may_send_another_request(serve: Serve) -> None:
    """It may have been on its way when draining began."""
    made = serve(Messages())
    new, used = made.connect(), made.connect()
    used.get()
    drained = begin_drain(made)
    for client in (new, used):
        client.expect_nothing()
        response = client.get()
        assert (response.status, response.headers["Connection"]) == (200, "close")
        client.expect_close()
    drained.result(DEADLINE_S)


def test_connection_used_a_moment_ago_is_closed_after_the_rest_of_its_second(
    serve: Serve,
) -> None:
    made = serve(Messages())
    new, used = made.connect(), made.connect()
    used.get()
    drained = begin_drain(made)
    new.expect_close()
    used.expect_close()
    drained.result(DEADLINE_S)


@pytest.mark.usefixtures("no_grace")
def test_connection_accepted_before_and_made_after_is_drained_too(serve: Serve) -> None:
    """The listener's queue is served to its end, however late."""
    made = serve(Messages())

    async def accept_and_drain() -> None:
        made.http._acceptor._accept_batch(next(iter(made.http._acceptor._listeners)), 64)
        made.http.begin_drain()

    import socket

    sock = socket.create_connection(made.address, timeout=DEADLINE_S)
    made.run(accept_and_drain)
    assert sock.recv(1) == b""
    sock.close()


# -- in flight -----------------------------------------------------------------


@pytest.mark.usefixtures("no_grace")
def test_request_in_flight_is_answered_with_connection_close(serve: Serve) -> None:
    go = asyncio.Event()
    made = serve(answer_when_told(go))
    client = made.connect()
    client.send(GET)
    made.turn()
    drained = begin_drain(made)
    client.expect_nothing()
    assert not drained.done()
    made.run(go.set)
    client.expect(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\ndone")
    client.expect_close()
    drained.result(DEADLINE_S)


@pytest.mark.usefixtures("no_grace")
def test_response_that_has_begun_is_finished(serve: Serve) -> None:
    go = asyncio.Event()
    made = serve(answer_when_told(go))
    client = made.connect()
    client.send(b"GET /begun HTTP/1.1\r\nHost: a\r\n\r\n")
    client.receive_until(b"begun\r\n")
    drained = begin_drain(made)
    client.expect_nothing()
    made.run(go.set)
    client.expect(b"0\r\n\r\n")
    client.expect_close()
    drained.result(DEADLINE_S)


@pytest.mark.usefixtures("no_grace")
def test_only_the_first_of_pipelined_requests_is_answered(serve: Serve) -> None:
    """Its response says close; the client sends the others again, elsewhere."""
    go = asyncio.Event()
    app = answer_when_told(go)
    made = serve(app)
    client = made.connect()
    client.send(GET * 10)
    made.turn()
    drained = begin_drain(made)
    made.run(go.set)
    client.expect(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\ndone")
    client.expect_close()
    client.close()
    drained.result(DEADLINE_S)
    assert len(app.messages) == 1


@pytest.mark.usefixtures("no_grace")
def test_request_that_is_still_arriving_is_served(serve: Serve) -> None:
    made = serve(Messages())
    head, body = made.connect(), made.connect()
    head.send(GET[:-2])
    body.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhell")
    made.turn()
    drained = begin_drain(made)
    head.expect_nothing()
    body.expect_nothing()
    head.send(GET[-2:])
    body.send(b"o")
    for client in (head, body):
        response = client.response()
        assert (response.status, response.headers["Connection"]) == (200, "close")
        client.expect_close()
    drained.result(DEADLINE_S)


@pytest.mark.usefixtures("no_grace")
def test_client_that_reads_slowly_gets_its_response(serve: Serve) -> None:
    body = b"r" * (2 << 20)
    made = serve(Messages(on_finish=lambda m: m.respond(body)), kernel_buffer=32768)
    client = made.connect(kernel_buffer=32768)
    client.send(GET)
    made.turn()
    drained = begin_drain(made)
    made.turn()
    assert not drained.done()
    assert client.response().body == body
    client.expect_close()
    drained.result(DEADLINE_S)


@pytest.mark.usefixtures("no_grace")
def test_client_that_leaves_is_not_waited_for(serve: Serve) -> None:
    made = serve(Messages(on_finish=lambda m: None))
    client = made.connect()
    client.send(GET)
    made.turn()
    drained = begin_drain(made)
    client.close()
    drained.result(DEADLINE_S)


# -- detached ------------------------------------------------------------------


@pytest.mark.usefixtures("no_grace")
def test_detached_stream_is_waited_for(serve: Serve) -> None:
    streams: list[Any] = []

    class Detach(web.RequestHandler):
        async def get(self) -> None:
            stream = self.detach()
            streams.append(stream)
            await stream.write(b"yours")

    made = serve(web.Application([("/", Detach)]))
    client = made.connect()
    client.send(GET)
    client.expect(b"yours")
    drained = begin_drain(made)
    client.expect_nothing()
    assert not drained.done()
    made.run(streams[0].close)
    client.expect_close()
    drained.result(DEADLINE_S)


# -- TLS -----------------------------------------------------------------------


def test_handshake_that_stalls_is_not_waited_for(serve: Serve, tls: TLSFiles) -> None:
    made = serve(Messages(), ssl_options=tls.server_context(), client_tls=tls.client_context())
    client = made.connect(tls=False)
    client.send(b"\x16\x03\x01")
    made.turn()
    drained = begin_drain(made)
    drained.result(DEADLINE_S)


@pytest.mark.usefixtures("no_grace")
def test_tls_connections_are_drained(serve: Serve, tls: TLSFiles) -> None:
    go = asyncio.Event()
    made = serve(
        answer_when_told(go), ssl_options=tls.server_context(), client_tls=tls.client_context()
    )
    idle, busy = made.connect(), made.connect()
    busy.send(GET)
    made.turn()
    drained = begin_drain(made)
    idle.expect_close()
    made.run(go.set)
    assert busy.response().headers["Connection"] == "close"
    busy.expect_close()
    drained.result(DEADLINE_S)


@pytest.mark.usefixtures("no_grace")
def test_empty_line_behind_a_body_leaves_a_connection_idle(serve: Serve) -> None:
    made = serve(Messages())
    client = made.connect()
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab")
    assert client.response().status == 200
    client.send(b"\r\n")
    made.turn()
    client.send(GET)
    assert client.response().status == 200
    client.send(b"\r\n")
    made.turn()
    begin_drain(made).result(DEADLINE_S)
    client.expect_close()


# -- the end -------------------------------------------------------------------


@pytest.mark.usefixtures("no_grace")
def test_cut_all_answers_503_to_what_has_no_answer_and_cuts_the_rest(serve: Serve) -> None:
    go = asyncio.Event()
    app = answer_when_told(go)
    streams: list[Any] = []

    class Detach(httputil.HTTPServerConnectionDelegate):
        def start_request(self, server_conn: object, conn: Any) -> httputil.HTTPMessageDelegate:
            return app.start_request(server_conn, conn)

    made = serve(Detach())
    waiting, uploading, begun, head = (made.connect() for _ in range(4))
    waiting.send(GET)
    uploading.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhell")
    begun.send(b"GET /begun HTTP/1.1\r\nHost: a\r\n\r\n")
    begun.receive_until(b"begun\r\n")
    head.send(GET[:-2])
    made.turn()
    drained = begin_drain(made)
    assert made.run(made.http.cut_all) == (3, 1)
    for client in (waiting, uploading, head):
        assert client.receive_all() == UNAVAILABLE
    assert begun.receive_all() == b""
    for client in (waiting, uploading, head):
        client.close()
    drained.result(DEADLINE_S)
    assert app.messages[1].closed
    # The application goes on, to no effect.
    made.run(go.set)
    eventually(lambda: not made.tasks())
    assert streams == []


@pytest.mark.usefixtures("no_grace")
def test_cut_all_closes_detached_streams_and_handshakes(serve: Serve, tls: TLSFiles) -> None:
    closed = []

    class Detach(web.RequestHandler):
        async def get(self) -> None:
            stream = self.detach()
            stream.set_close_callback(lambda: closed.append(True))
            await stream.write(b"yours")

    made = serve(
        web.Application([("/", Detach)]),
        ssl_options=tls.server_context(),
        client_tls=tls.client_context(),
    )
    client = made.connect()
    client.send(GET)
    client.expect(b"yours")
    stalled = made.connect(tls=False)
    stalled.send(b"\x16\x03\x01")
    made.turn()
    drained = begin_drain(made)
    assert made.run(made.http.cut_all) == (0, 1)
    assert client.receive_all() == b""
    assert stalled.receive_all() == b""
    drained.result(DEADLINE_S)
    eventually(lambda: closed == [True])


def test_cut_all_without_connections_does_nothing(serve: Serve) -> None:
    made = serve(Messages())
    assert made.run(made.http.cut_all) == (0, 0)
