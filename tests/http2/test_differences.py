"""What handlers meet over HTTP/2 that is not as over HTTP/1: docs/http2.md has the list."""

from __future__ import annotations

import asyncio
from typing import Any

from tornado.httputil import HTTPHeaders, ResponseStartLine
from tornado.web import Application, RequestHandler

from helpers.http2_client import Http2Client
from helpers.http2_frames import Code
from helpers.server_thread import Serve

HTTP2 = {"http_protocols": "h2", "http2_cleartext": "prior-knowledge"}


class Hello(RequestHandler):
    def get(self) -> None:
        self.set_header("Connection", "close")
        self.write("hello")


class WritesRaw(RequestHandler):
    """Writes past the response."""

    async def get(self) -> None:
        connection: Any = self.request.connection
        try:
            await connection.stream.write(b"HTTP/1.1 200 OK\r\n\r\n")
        except RuntimeError as e:
            self.write(str(e))


class DetachesEarly(RequestHandler):
    def get(self) -> None:
        self.detach()


class DetachesLate(RequestHandler):
    async def get(self) -> None:
        connection: Any = self.request.connection
        await connection.write_headers(ResponseStartLine("", 200, "OK"), HTTPHeaders())
        stream = self.detach()
        await stream.write(b"bytes of its own")
        stream.close()


class Closes(RequestHandler):
    async def get(self) -> None:
        self.write("x")
        await self.flush()
        connection: Any = self.request.connection
        stream = connection.stream
        closed = asyncio.Event()
        stream.set_close_callback(closed.set)
        assert not stream.closed()
        stream.close()
        await closed.wait()
        self.application.settings["closed"].append(stream.closed())


class Switches(RequestHandler):
    def get(self) -> None:
        self.set_status(101)
        self.finish()


APP = [
    ("/", Hello),
    ("/raw", WritesRaw),
    ("/early", DetachesEarly),
    ("/late", DetachesLate),
    ("/close", Closes),
    ("/switch", Switches),
]


def start(serve: Serve, app: Application | None = None) -> Http2Client:
    client = Http2Client(serve(app or Application(APP), **HTTP2).connect().sock)
    client.start()
    return client


def test_connection_close_of_a_handler_ends_nothing(serve: Serve) -> None:
    client = start(serve)
    for _ in range(2):
        response = client.get("/")
        assert (response.body, response.values(b"connection")) == (b"hello", [])
    client.sync()
    assert not client.goaways


def test_writing_past_the_response_is_an_error_that_says_what_to_do(serve: Serve) -> None:
    response = start(serve).get("/raw")
    assert response.body == b"write: HTTP/2 has frames; call request.connection.write() instead"


def test_detaching_before_the_head_is_an_error_and_answered(serve: Serve) -> None:
    # Tornado's handler takes itself for finished, and would leave the client without an answer.
    client = start(serve)
    assert client.get("/early").status == 500
    serve.logs.expect(
        r"re:ERROR tornado\.application: Uncaught exception .*call write_headers\(\) before\]"
    )
    assert client.get("/").status == 200


def test_stream_is_detached_behind_the_head(serve: Serve) -> None:
    client = start(serve)
    response = client.get("/late")
    assert (response.status, response.body) == (200, b"bytes of its own")
    assert client.get("/").status == 200


def test_stream_that_is_closed_is_reset_and_no_other(serve: Serve) -> None:
    app = Application(APP, closed=[])
    client = start(serve, app)
    client.expect_stream_error(client.request("/close"), Code.CANCEL)
    assert client.get("/").status == 200
    assert app.settings["closed"] == [True]


def test_status_101_is_for_websockets_only(serve: Serve) -> None:
    client = start(serve)
    assert client.get("/switch").status == 500
    serve.logs.expect(
        r"re:ERROR tornado\.application: .*status 101 does not exist in HTTP/2\]",
        "re:ERROR tornado.general: Cannot send error response after headers written",
    )
    assert client.get("/").status == 200
