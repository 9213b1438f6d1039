"""sockjs-tornado's streaming transports, for clients of HTTP/1.0 as nginx is by default.

It sets `request.connection.no_keep_alive` for each of these.
"""

from __future__ import annotations

from typing import Any

import pytest
from tornado import web

from helpers.server_thread import Serve, ServerThread

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*pkg_resources:DeprecationWarning"),
]


@pytest.fixture
def server(serve: Serve) -> ServerThread:
    sockjs: Any = pytest.importorskip("sockjs.tornado")

    class Echo(sockjs.SockJSConnection):  # type: ignore[misc]
        def on_message(self, message: str) -> None:
            self.send(message)

    return serve(web.Application(sockjs.SockJSRouter(Echo, "/echo").urls))


TRANSPORTS = {
    "xhr_streaming": ("POST", b"o\n", b'a["hello"]\n'),
    "eventsource": ("GET", b"data: o\r\n\r\n", b'data: a["hello"]\r\n\r\n'),
    "htmlfile?c=callback": ("GET", b'p("o");', b'p("a[\\"hello\\"]");'),
}


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_streaming_transport(server: ServerThread, transport: str, version: str) -> None:
    method, opened, message = TRANSPORTS[transport]
    session = f"/echo/000/{transport[:5]}-{version[-1]}"
    client = server.connect()
    client.send(
        f"{method} {session}/{transport} HTTP/{version}\r\n"
        "Host: a\r\nContent-Length: 0\r\n\r\n".encode()
    )
    assert client.receive_until(b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")
    client.receive_until(opened)
    sender = server.connect()
    body = b'["hello"]'
    sender.send(
        f"POST {session}/xhr_send HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\n"
        f"Content-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    assert sender.response().status == 204
    client.receive_until(message)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_polling_transport(server: ServerThread, version: str) -> None:
    client = server.connect()
    client.send(
        f"POST /echo/000/poll/xhr HTTP/{version}\r\nHost: a\r\nContent-Length: 0\r\n\r\n".encode()
    )
    assert client.response().body == b"o\n"
