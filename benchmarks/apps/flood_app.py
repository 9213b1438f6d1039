"""Handlers that give nobody else a turn, as long as their clients are fast enough."""

from __future__ import annotations

from tornado.web import Application, RequestHandler
from tornado.websocket import WebSocketHandler

from benchmarks.apps.tornado_app import About, Hello

__all__ = ["app"]


class Write(RequestHandler):
    """Write tiny pieces for ever."""

    async def get(self) -> None:
        while True:
            self.write(b"x" * 100)
            await self.flush()


class Drop(WebSocketHandler):
    """Take messages, and do nothing with them."""

    def on_message(self, message: str | bytes) -> None:
        pass


class Tunnel(RequestHandler):
    """Write tiny pieces for ever to a detached connection."""

    async def get(self) -> None:
        assert self.request.connection is not None
        stream = self.request.connection.detach()  # type: ignore[attr-defined]
        while True:
            await stream.write(b"x" * 100)


app = Application(
    [("/", Hello), ("/about", About), ("/write", Write), ("/drop", Drop), ("/tunnel", Tunnel)]
)
