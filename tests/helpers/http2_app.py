"""What the HTTP/2 tests ask the server for: small Tornado handlers.

Steered by requests alone (`/release/KEY` lets go what `/wait/KEY` holds), so that the same
tests can ask another server that has an application of the same paths.
"""

from __future__ import annotations

import asyncio
import collections
import hashlib
import json
from typing import Any

from tornado.iostream import StreamClosedError
from tornado.web import Application, RequestHandler, stream_request_body
from tornado.websocket import WebSocketHandler

__all__ = ["application"]

_CHUNK = bytes(range(256)) * 256  # 64 KB


class _Handler(RequestHandler):
    def initialize(self) -> None:
        self.released: dict[str, asyncio.Event] = self.application.settings["released"]
        self.gone: dict[str, asyncio.Event] = self.application.settings["gone"]

    async def until_released(self, key: str) -> None:
        """Return when `/release/KEY` is asked for, or the client is gone."""
        released, gone = self.released[key], self.gone[key]
        waiters = [asyncio.ensure_future(event.wait()) for event in (released, gone)]
        await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
        for waiter in waiters:
            waiter.cancel()

    def on_connection_close(self) -> None:
        super().on_connection_close()
        # It may come before Tornado has set path_args.
        self.gone[self.request.path.rpartition("/")[2]].set()


class Echo(_Handler):
    """Answers with the request as it was understood."""

    SUPPORTED_METHODS = (*RequestHandler.SUPPORTED_METHODS, "PROPFIND")

    def echo(self) -> None:
        request = self.request
        if request.method == "HEAD":
            self.set_header("Content-Length", "1000")
            return
        self.write(
            {
                "method": request.method,
                "target": request.uri,
                "version": request.version,
                "host": request.host,
                "fields": [[n.lower(), v] for n, v in request.headers.get_all()],
                "body": request.body.decode("latin-1"),
            }
        )

    get = head = post = put = delete = options = propfind = echo  # type: ignore[assignment]


class Wait(_Handler):
    """Answers when it is released; notes when its client leaves before."""

    async def get(self, key: str) -> None:
        await self.until_released(key)
        self.write("released")


class Release(_Handler):
    def get(self, key: str) -> None:
        self.released[key].set()
        self.write("done")


class Gone(_Handler):
    """Answers when the client of `/wait/KEY`, `/upload/KEY` or `/socket/KEY` has left."""

    async def get(self, key: str) -> None:
        await self.gone[key].wait()
        self.write("gone")


class Download(_Handler):
    """Sends as many bytes as it is asked for, with back-pressure."""

    async def get(self, size: str) -> None:
        left = int(size)
        self.set_header("Content-Length", size)
        while left:
            self.write(_CHUNK[:left])
            left -= min(left, len(_CHUNK))
            try:
                await self.flush()
            except StreamClosedError:
                return


@stream_request_body
class Upload(_Handler):
    """Counts what it is sent; with a key, takes nothing before it is released."""

    def prepare(self) -> None:
        self.size = 0
        self.digest = hashlib.sha256()

    async def data_received(self, chunk: bytes) -> None:
        self.size += len(chunk)
        self.digest.update(chunk)
        if self.path_args:
            await self.until_released(self.path_args[0])

    def post(self, key: str = "") -> None:
        self.write(json.dumps({"size": self.size, "sha256": self.digest.hexdigest()}))


@stream_request_body
class Early(_Handler):
    """Answers as soon as it knows the head."""

    def prepare(self) -> None:
        self.set_status(403)
        self.finish("early")

    def data_received(self, chunk: bytes) -> None:
        pass


class Fields(_Handler):
    """Sends fields that HTTP/2 does not have, some in upper case and one twice."""

    def get(self) -> None:
        for name in ("Connection", "Keep-Alive", "Proxy-Connection", "Upgrade"):
            self.set_header(name, "close" if name == "Connection" else "h1")
        self.set_header("Transfer-Encoding", "chunked")
        self.set_header("X-UPPER", "Case")
        self.add_header("Set-Cookie", "a=1")
        self.add_header("Set-Cookie", "b=2")
        self.write("fields")


class Status(_Handler):
    def get(self, status: str) -> None:
        self.set_status(int(status))
        if status not in ("204", "304"):
            self.write("status")


class Socket(WebSocketHandler):
    """Echoes messages; notes when it is closed."""

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        return "chat" if "chat" in subprotocols else None

    def check_origin(self, origin: str) -> bool:
        return True

    async def on_message(self, message: str | bytes) -> None:
        if message == "close":
            self.close(4001, "asked")
        else:
            await self.write_message(message, binary=isinstance(message, bytes))

    def on_close(self) -> None:
        self.application.settings["gone"][self.path_args[0]].set()


def application(**settings: Any) -> Application:
    return Application(
        [
            (r"/echo", Echo),
            (r"\*", Echo),
            (r"/wait/(\w+)", Wait),
            (r"/release/(\w+)", Release),
            (r"/gone/(\w+)", Gone),
            (r"/download/(\d+)", Download),
            (r"/upload", Upload),
            (r"/upload/(\w+)", Upload),
            (r"/early", Early),
            (r"/fields", Fields),
            (r"/status/(\d+)", Status),
            (r"/socket/(\w+)", Socket),
        ],
        released=collections.defaultdict(asyncio.Event),
        gone=collections.defaultdict(asyncio.Event),
        **settings,
    )
