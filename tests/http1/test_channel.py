"""The response side of an HTTP/1 connection, and the ways in which an exchange is over early."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tornado import httputil
from tornado.iostream import StreamClosedError

from helpers.server_thread import Message, Messages, Serve
from helpers.waiting import eventually

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
GET_1_0 = b"GET / HTTP/1.0\r\n\r\n"
OK = httputil.ResponseStartLine("", 200, "OK")
OLD_STYLE = b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi"


def test_response_that_an_application_makes_itself_ends_the_connection(serve: Serve) -> None:
    def answer(message: Message) -> None:
        message.conn.write(OLD_STYLE)
        message.conn.finish()

    app = Messages(on_finish=answer)
    client = serve(app).connect()
    client.send(GET)
    assert client.receive_all() == OLD_STYLE
    assert (app.messages[0].conn.status, app.messages[0].conn.body_sent) == (200, len(OLD_STYLE))


@pytest.mark.parametrize("begun", [False, True])
def test_cancelled_exchange_is_answered_or_cut(serve: Serve, begun: bool) -> None:
    """As when a future that the delegate returned is cancelled."""

    def cancel(message: Message) -> None:
        if begun:
            message.conn.write_headers(OK, httputil.HTTPHeaders({"Content-Length": "5"}), b"ab")
        task: Any = asyncio.current_task()
        assert task is message.conn
        assert task.cancel()

    client = serve(Messages(on_finish=cancel)).connect()
    client.send(GET)
    data = client.receive_all()
    assert data.startswith(b"HTTP/1.1 200 " if begun else b"HTTP/1.1 503 ")


def test_body_that_the_end_would_end_is_handed_over_whole(serve: Serve) -> None:
    """The stream's owner says where it ends, so its orderly end is one."""

    def detach(message: Message) -> None:
        message.conn.write_headers(OK, httputil.HTTPHeaders(), b"half")
        stream = message.conn.detach()
        stream.write(b", whole")
        stream.close()

    client = serve(Messages(on_finish=detach)).connect()
    client.send(GET_1_0)
    assert client.receive_all().endswith(b"\r\n\r\nhalf, whole")


def test_earlier_exchange_cannot_close_or_take_over_a_later_one(serve: Serve) -> None:
    first: list[Message] = []

    def answer(message: Message) -> None:
        if not first:
            first.append(message)
        else:
            first[0].conn.close()
            with pytest.raises(StreamClosedError):
                first[0].conn.detach()
        message.respond(b"answered")

    client = serve(Messages(on_finish=answer)).connect()
    for _ in range(2):
        client.send(GET)
        assert client.response().body == b"answered"


def test_end_of_a_server_closes_what_nobody_waits_for(serve: Serve) -> None:
    server = serve(Messages())
    client = server.connect()
    client.send(GET)
    assert client.response().status == 200
    assert server.run(server.http.cut_all) == (0, 0)
    client.expect_close()
    eventually(lambda: not server.connections, "the connection is gone")
