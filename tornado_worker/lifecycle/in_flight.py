"""The work that a server is in the middle of, counted and in words, for the log.

May look at a server's exchanges and streams and at WSGI's threads; changes nothing
and does not know why it is asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import NamedTuple

from tornado.websocket import WebSocketHandler

from tornado_worker.server.server import HTTPServer
from tornado_worker.wsgi import container as wsgi

__all__ = ["Counts", "count", "describe"]


class Counts(NamedTuple):
    """`views` are WSGI's, in threads; those of requests whose client is gone count too."""

    requests: int
    websockets: int
    streams: int
    views: int

    def __str__(self) -> str:
        return _join(
            [
                _number(self.requests, "request"),
                _number(self.websockets, "WebSocket"),
                _number(self.streams, "detached connection"),
                _number(self.views, "WSGI view"),
            ]
        )


def count(server: HTTPServer) -> Counts:
    """Return how much of each kind there is."""
    streams = server.detached_streams()
    websockets = sum(isinstance(stream.owner, WebSocketHandler) for stream in streams)
    return Counts(
        len(server.exchanges()), websockets, len(streams) - websockets, len(wsgi.running())
    )


def describe(server: HTTPServer, *others: str) -> str:
    """Say how much of each kind there is, with the longest by name; then `others`."""
    counts = count(server)
    now = asyncio.get_running_loop().time()
    requests = [
        (exchange.start_line.method, exchange.start_line.path, now - exchange.started)
        for exchange in server.exchanges()
    ]
    return _join(
        [
            _number(counts.requests, "request") + _longest(requests),
            _number(counts.websockets, "WebSocket"),
            _number(counts.streams, "detached connection"),
            _number(counts.views, "WSGI view") + _longest(wsgi.running()),
            *others,
        ]
    )


def _number(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number > 1 else ''}" if number else ""


def _longest(views: Iterable[tuple[str | None, str, float]]) -> str:
    view = max(views, key=lambda view: view[2], default=None)
    if view is None:
        return ""
    method, target, age = view
    return f" (the longest: {method} {target[:100]!r}, {age:.1f} s)"


def _join(parts: list[str]) -> str:
    return ", ".join(filter(None, parts)) or "nothing"
