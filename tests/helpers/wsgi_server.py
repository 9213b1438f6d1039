"""A WSGIContainer on our server or Tornado's stock one, each on asyncio and uvloop.

The `serve_wsgi` fixture wraps the application in `wsgiref.validate.validator`,
so that every test checks PEP 3333 as well, and fails when a thread, a
connection or an unexpected log line is left. Speaks sockets only.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from wsgiref.validate import validator

import pytest
from tornado.httpserver import HTTPServer as TornadoHTTPServer
from tornado.routing import RuleRouter

from helpers.server_thread import Client, Logs, ServerThread
from helpers.stream_client import PROTOCOL_OPTIONS
from helpers.waiting import eventually
from tornado_worker import HTTPServer, WSGIContainer

uvloop: Any
try:
    import uvloop
except ImportError:
    uvloop = None

__all__ = ["Client", "ServeWSGI", "WSGIServer", "request", "serve_wsgi"]

App = Callable[..., Iterable[bytes]]


class StockHTTPServer(TornadoHTTPServer):
    """Tornado's own server: a subclass, which `HTTPServer.configure` does not replace."""


class WSGIServer(ServerThread):
    """A server thread for `app`; `container` is what serves it."""

    def __init__(self, app: Any, *, stock: bool, container: WSGIContainer, **options: Any) -> None:
        self.container = container
        self._server_class = StockHTTPServer if stock else HTTPServer
        super().__init__(app, **options)

    async def _main(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self.http = self._server_class(self._app, **self._options)
        sockets = self._sockets()
        self.address = sockets[0].getsockname()
        self.http.add_sockets(sockets)
        self._started.set()
        await self._stop.wait()
        self.http.stop()
        self.http._establish_tasks = ()

    def tasks(self) -> set[Any]:
        return {t for t in super().tasks() if t.get_coro().__qualname__ != "WSGIServer._main"}

    def close(self) -> None:
        if not hasattr(self.http, "_establish_tasks"):
            self.http._establish_tasks = self.http._streams = ()  # the stock server's are not known
        try:
            super().close()
            eventually(lambda: not self.container.running(), "no view runs")
        finally:
            self.container.close()


class ServeWSGI:
    """Starts servers for one test; `stock` tells whose."""

    def __init__(self, stock: bool, loop: str, logs: Logs, defaults: dict[str, Any]) -> None:
        self.stock = stock
        self.loop = loop
        self.logs = logs
        self.defaults = defaults
        self.servers: list[WSGIServer] = []

    def __call__(
        self,
        app: App,
        *,
        validate: bool = True,
        route: Callable[[WSGIContainer], Any] | None = None,
        server: dict[str, Any] | None = None,
        **options: Any,
    ) -> WSGIServer:
        """Serve `app` in a container with `options`.

        `validate=False` is for what the validator forbids or hides. `route`
        makes the server's application of the container.
        """
        container = WSGIContainer(validator(app) if validate else app, **options)
        thread = WSGIServer(
            route(container) if route else container,
            stock=self.stock,
            container=container,
            loop=self.loop,
            **{**self.defaults, **(server or {})},
        )
        self.servers.append(thread)
        return thread

    def routes(self, apps: dict[str, App], **options: Any) -> WSGIServer:
        """Serve several applications, by path, each in a container with `options`."""
        containers = {path: WSGIContainer(validator(app), **options) for path, app in apps.items()}
        thread = WSGIServer(
            RuleRouter(list(containers.items())),
            stock=self.stock,
            container=next(iter(containers.values())),
            loop=self.loop,
            **self.defaults,
        )
        self.servers.append(thread)
        return thread


# For the hook in conftest.py: whether the server is Tornado's, its loop, the protocol.
COMBINATIONS = [
    pytest.param((stock, loop, "h1"), id=f"{'stock' if stock else 'ours'}-{loop}")
    for stock in (False, True)
    for loop in (["asyncio"] if uvloop is None else ["asyncio", "uvloop"])
]
HTTP2_COMBINATION = pytest.param((False, "asyncio", "h2"), id="ours-asyncio-h2")


@pytest.fixture
def serve_wsgi(request: pytest.FixtureRequest) -> Iterator[ServeWSGI]:
    stock, loop, protocol = request.param
    before = set(threading.enumerate())
    logs = Logs()
    with logs.captured():
        serve = ServeWSGI(stock, loop, logs, PROTOCOL_OPTIONS[protocol])
        try:
            yield serve
        finally:
            for server in serve.servers:
                server.close()
            logs.expect()
            eventually(lambda: set(threading.enumerate()) <= before, "no thread is left")


def request(
    target: str = "/", method: str = "GET", body: bytes | None = None, **fields: str
) -> bytes:
    """Return a request; `fields` are header fields, with `_` for `-`."""
    lines = [f"{method} {target} HTTP/1.1", "Host: test"]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")
