"""A connection that is detached in the moment in which it ends."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from tornado import httputil

from helpers.server_thread import Message, Messages, Serve
from helpers.tls_files import TLSFiles
from helpers.waiting import eventually

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
OK = httputil.ResponseStartLine("", 200, "OK")


@pytest.mark.parametrize("tls_too", [False, True])
def test_loss_that_the_connection_is_told_of_reaches_the_stream(
    serve: Serve, tls: TLSFiles, tls_too: bool
) -> None:
    """TLS decides a turn before the loss is told which protocol will hear of it."""
    app = Messages(on_finish=lambda message: None)
    options: dict[str, Any] = {}
    if tls_too:
        options = {"ssl_options": tls.server_context(), "client_tls": tls.client_context()}
    server = serve(app, **options)
    client = server.connect()
    client.send(GET)
    eventually(lambda: app.messages and app.messages[0].finished, "the request has come")
    conn = app.messages[0].conn
    connection = conn._conn

    def lose() -> Any:
        stream = conn.detach()
        connection.connection_lost(ConnectionResetError("reset"))
        return stream

    stream = server.run(lose)
    assert stream.closed()
    assert isinstance(stream.error, ConnectionResetError)
    assert not server.streams
    client.close()


def test_stream_of_a_connection_that_closes_can_be_closed_too(serve: Serve, tls: TLSFiles) -> None:
    """asyncio's transports over TLS are of no use after a second close()."""

    def close_twice(message: Message) -> None:
        message.conn.write_headers(OK, httputil.HTTPHeaders({"Content-Length": "4"}), b"half")
        message.conn.stream.close()
        stream = message.conn.detach()
        stream.close()
        assert not stream.writing()

    options = {"ssl_options": tls.server_context(), "client_tls": tls.client_context()}
    server = serve(Messages(on_finish=close_twice), **options)
    client = server.connect()
    client.send(GET)
    assert client.receive_all().endswith(b"half")
    eventually(lambda: not server.connections and not server.streams, "all are gone")


@pytest.mark.parametrize("begun", [False, True])
def test_detaching_when_told_of_the_end_costs_the_others_nothing(serve: Serve, begun: bool) -> None:
    def wait(message: Message) -> None:
        message.conn.set_close_callback(lambda: message.conn.detach().close())
        if begun:
            message.conn.write_headers(OK, httputil.HTTPHeaders(), b"half")

    app = Messages(on_finish=wait)
    server = serve(app)
    clients = [server.connect() for _ in range(3)]
    for client in clients:
        client.send(GET)
    eventually(lambda: sum(message.finished for message in app.messages) == 3, "all have come")
    assert sum(server.run(server.http.cut_all)) == 3
    for client in clients:
        client.receive_all()
    eventually(lambda: not server.connections and not server.streams, "all are gone")


def test_closing_all_connections_does_not_wait_for_one_that_is_detached(serve: Serve) -> None:
    app = Messages(on_finish=lambda message: None)
    server = serve(app)
    client = server.connect()
    client.send(GET)
    eventually(lambda: app.messages and app.messages[0].finished, "the request has come")

    async def close_and_detach() -> None:
        closing = asyncio.ensure_future(server.http.close_all_connections())
        await asyncio.sleep(0)
        app.messages[0].conn.detach().close()
        await closing

    server.run(close_and_detach)
    eventually(lambda: not server.connections and not server.streams, "all are gone")
    client.close()


def test_writes_before_detach_that_never_leave_are_not_logged(serve: Serve) -> None:
    def flood(message: Message) -> None:
        message.conn.write_headers(OK, httputil.HTTPHeaders(), b"")
        for _ in range(20):
            message.conn.write(b"x" * 1_000_000)
        message.conn.detach()

    server = serve(Messages(on_finish=flood), kernel_buffer=32 * 1024)
    client = server.connect(kernel_buffer=32 * 1024)
    client.send(b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n")
    client.receive(100)
    with contextlib.suppress(ConnectionError):
        client.reset()
    eventually(lambda: not server.streams, "the stream is gone")
