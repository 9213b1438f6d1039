"""Which streams count against `http2_max_concurrent_streams`, while handlers run on."""

from __future__ import annotations

import asyncio

from tornado.web import Application, RequestHandler

from helpers.http2_client import Http2Client
from helpers.http2_frames import Code
from helpers.server_thread import Serve, ServerThread
from tornado_worker.http2.floods import RESETS_MAX

LIMIT = 3


class Late(RequestHandler):
    """Sends its whole response, and finishes when it is let go."""

    async def get(self) -> None:
        self.set_header("Content-Length", "4")
        self.write("late")
        await self.flush()
        await self.settings["go"].wait()


def serve_late(serve: Serve, start: bool = True) -> tuple[ServerThread, Http2Client, asyncio.Event]:
    go = asyncio.Event()
    server = serve(
        Application([("/", Late)], go=go),
        http_protocols="h2",
        http2_cleartext="prior-knowledge",
        http2_max_concurrent_streams=LIMIT,
    )
    client = Http2Client(server.connect().sock)
    if start:
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


def test_client_that_does_not_know_the_limit_yet_may_begin_hundreds(serve: Serve) -> None:
    """More than the streams that it may have reset: those in flight must not be lost with them."""
    server, client, go = serve_late(serve, start=False)
    client.send(client.preface())  # and no acknowledgement of SETTINGS, which are on their way
    count = RESETS_MAX + 100
    streams = [client.streams[client.request("/")] for _ in range(count)]

    def refused() -> int:
        return sum(stream.reset == Code.REFUSED_STREAM for stream in streams)

    client.wait_for(lambda: refused() >= count - 2 * LIMIT, "the refusals")
    server.run(go.set)
    for stream_id in (1, 3, 5):
        assert client.response(stream_id).body == b"late"
    assert client.get("/").body == b"late"
