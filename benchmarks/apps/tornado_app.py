"""The Tornado application, served by both Tornado workers.

Every handler is what a user would write: nothing in it is tuned for one worker.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from tornado.web import Application, RequestHandler, StaticFileHandler, stream_request_body
from tornado.websocket import WebSocketHandler

from benchmarks.apps.content import (
    CHUNK,
    HELLO,
    RECORDS,
    STATIC_DIRECTORY,
    STREAM_BYTES,
    describe_process,
)

__all__ = ["app", "handlers"]

waiters: set[asyncio.Future[str]] = set()


class Hello(RequestHandler):
    def get(self) -> None:
        self.write(HELLO)


class About(RequestHandler):
    async def get(self) -> None:
        self.write(describe_process())


class Json(RequestHandler):
    def get(self) -> None:
        self.write(RECORDS)


class Post(RequestHandler):
    def post(self) -> None:
        self.write(str(len(self.request.body)))


@stream_request_body
class Upload(RequestHandler):
    received = 0

    def data_received(self, chunk: bytes) -> None:
        self.received += len(chunk)

    def post(self) -> None:
        self.write(str(self.received))


class Download(RequestHandler):
    async def get(self) -> None:
        self.set_header("Content-Type", "application/octet-stream")
        self.set_header("Content-Length", STREAM_BYTES)
        left = STREAM_BYTES
        while left:
            chunk = CHUNK[:left]
            self.write(chunk)
            await self.flush()
            left -= len(chunk)


class Poll(RequestHandler):
    """Wait until somebody publishes."""

    waiter: asyncio.Future[str]

    async def get(self) -> None:
        self.waiter = asyncio.get_running_loop().create_future()
        waiters.add(self.waiter)
        try:
            message = await self.waiter
        finally:
            waiters.discard(self.waiter)
        self.write(message)

    def on_connection_close(self) -> None:
        self.waiter.cancel()


class Publish(RequestHandler):
    """Answer every waiting poll with the body, and say how many there were."""

    def post(self) -> None:
        message = self.request.body.decode()
        woken = list(waiters)
        for waiter in woken:
            if not waiter.done():
                waiter.set_result(message)
        self.write(str(len(woken)))


class Waiting(RequestHandler):
    def get(self) -> None:
        self.write(json.dumps(len(waiters)))


class Echo(WebSocketHandler):
    async def on_message(self, message: str | bytes) -> None:
        await self.write_message(message, binary=isinstance(message, bytes))


handlers: list[Any] = [
    (r"/", Hello),
    (r"/about", About),
    (r"/json", Json),
    (r"/post", Post),
    (r"/upload", Upload),
    (r"/download", Download),
    (r"/poll", Poll),
    (r"/publish", Publish),
    (r"/waiting", Waiting),
    (r"/echo", Echo),
    (r"/static/(.*)", StaticFileHandler, {"path": str(STATIC_DIRECTORY)}),
]

app = Application(handlers)
