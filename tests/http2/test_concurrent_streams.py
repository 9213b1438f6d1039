"""Which streams count against `http2_max_concurrent_streams`, while handlers run on."""

from __future__ import annotations

import asyncio

from tornado.web import Application, RequestHandler

from helpers.http2_client import Http2Client
from helpers.http2_frames import Code
from helpers.server_thread import Serve, ServerThread

LIMIT = 3


class Late(RequestHandler):
    """Sends its whole response, and finishes when it is let go."""

    async def get(self) -> None:
        self.set_header("Content-Length", "4")
        self.write("late")
        await self.flush()
        await self.settings["go"].wait()


def serve_late(serve: Serve) -> tuple[ServerThread, Http2Client, asyncio.Event]:
    go = asyncio.Event()
    server = serve(
        Application([("/", Late)], go=go),
        http_protocols="h2",
        http2_cleartext="prior-knowledge",
        http2_max_concurrent_streams=LIMIT,
    )
    client = Http2Client(server.connect().sock)
    client.start()
    return server, client, go


def test_stream_that_has_ended_does_not_count_while_its_handler_runs(serve: Serve) -> None:
    """RFC 9113 section 5.1.2: the client cannot know that the handler has not finished."""
    server, client, go = serve_late(serve)
    for _ in range(LIMIT):
        assert client.get("/").body == b"late"
    assert client.get("/").body == b"late"
    server.run(go.set)


def test_handlers_that_run_on_are_bounded(serve: Serve) -> None:
    server, client, go = serve_late(serve)
    for _ in range(2 * LIMIT):
        assert client.get("/").body == b"late"
    client.expect_stream_error(client.request("/"), Code.REFUSED_STREAM)
    server.run(go.set)
    server.turn()
    assert client.get("/").body == b"late"
