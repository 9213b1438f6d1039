"""A client of the chat without a browser: posts, and listens in three ways.

Follows the page's rules: a post is repeated under the same id until it is
acknowledged, an update must continue the cursor, and whatever ends a connection
leads to the next one. Speaks HTTP by itself, so that each thing that can happen
to a connection is seen here and not mended by a library.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from tornado.httputil import HTTPHeaders
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

__all__ = ["WAYS", "ChatClient", "ChatError", "Response"]

WAYS = ("websocket", "sse", "poll")
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
# What a restart, a kill or a worker that is not yet back looks like from here;
# IncompleteReadError is an EOFError.
BROKEN = (OSError, EOFError)


class ChatError(Exception):
    """The server answered, and not as it should."""


class Response(NamedTuple):
    status: int
    headers: HTTPHeaders
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class ChatClient:
    """One person in one room. `messages` is what they have been shown, in order."""

    url: str
    room: str = "lobby"
    cookie: str = ""
    xsrf: str = ""
    id: str = ""
    name: str = ""
    cursor: str = ""
    version: str = ""
    messages: list[dict[str, Any]] = field(default_factory=list)
    state: dict[str, Any] = field(default_factory=dict)
    pids: list[int] = field(default_factory=list)
    idle: list[Streams] = field(default_factory=list)

    # -- HTTP -----------------------------------------------------------------

    async def fetch(self, path: str, body: Any = None, **headers: str) -> Response:
        """Make one request, on a kept connection if there is one.

        As in a browser, it is made again when a kept connection turns out to
        have been closed before the first byte of an answer.
        """
        kept = bool(self.idle)
        streams = self.idle.pop() if kept else await self._open()
        try:
            status, fields = await self._ask(streams, path, body, headers)
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            await hang_up(streams[1])
            if not kept or getattr(error, "partial", None):
                raise
            return await self.fetch(path, body, **headers)
        except BaseException:
            await hang_up(streams[1])
            raise
        try:
            content = b"".join([piece async for piece in pieces(streams[0], fields)])
        except BaseException:
            await hang_up(streams[1])
            raise
        if fields.get("Connection", "").lower() == "close":
            await hang_up(streams[1])
        else:
            self.idle.append(streams)
        return Response(status, fields, content)

    async def _open(self) -> Streams:
        address = urlsplit(self.url)
        async with asyncio.timeout(30):
            return await asyncio.open_connection(address.hostname, address.port, limit=2**20)

    async def _ask(
        self, streams: Streams, path: str, body: Any, headers: dict[str, str]
    ) -> tuple[int, HTTPHeaders]:
        reader, writer = streams
        content = b"" if body is None else json.dumps(body).encode()
        lines = [f"{'GET' if body is None else 'POST'} {path} HTTP/1.1"]
        lines += [f"Host: {urlsplit(self.url).netloc}", f"Cookie: {self.cookie}"]
        if body is not None:
            lines += [f"X-Xsrftoken: {self.xsrf}", f"Content-Length: {len(content)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode() + content)
        await writer.drain()
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin1")
        start_line, _, rest = head.partition("\r\n")
        return int(start_line.split()[1]), HTTPHeaders.parse(rest.removesuffix("\r\n"))

    async def ask(self, path: str, body: Any = None) -> Any:
        """Request until there is a good answer, whatever happens to the workers."""
        deadline = time.monotonic() + 60
        while True:
            problem: object
            try:
                response = await self.fetch(path, body)
            except BROKEN as error:
                problem = error
            else:
                if response.status < 400:
                    return response.json()
                if response.status not in (502, 503, 504):
                    raise ChatError(f"{path}: {response.status} {response.body!r}")
                problem = response
            if time.monotonic() > deadline:
                raise ChatError(f"{path}: no answer: {problem!r}")
            await asyncio.sleep(0.05)

    async def close(self) -> None:
        while self.idle:
            await hang_up(self.idle.pop()[1])

    # -- chat -----------------------------------------------------------------

    async def join(self) -> None:
        """Get cookies, and the place from which to listen."""
        response = await self.fetch("/api/me")
        jar = SimpleCookie()
        for header in response.headers.get_list("Set-Cookie"):
            jar.load(header)
        self.cookie = "; ".join(f"{name}={morsel.value}" for name, morsel in jar.items())
        self.xsrf = jar["_xsrf"].value
        self.id, self.name = response.json()["id"], response.json()["name"]
        history = await self.ask(f"/api/rooms/{self.room}/history")
        self.messages = history["messages"]
        self.cursor = history["cursor"]

    async def post(self, text: str, client_id: str) -> dict[str, Any]:
        body = {"text": text, "client_id": client_id}
        message: dict[str, Any] = await self.ask(f"/api/rooms/{self.room}/messages", body)
        return message

    async def listen(self, way: str) -> None:
        """Listen until cancelled, connecting as often as it takes."""
        try:
            while True:
                try:
                    await getattr(self, way)()
                except BROKEN:
                    await asyncio.sleep(0.05)
        finally:
            await self.close()

    def accept(self, update: dict[str, Any]) -> None:
        if update["after"] != self.cursor:
            raise ChatError(f"expected what is after {self.cursor}; got {update}")
        self.messages += update["messages"]
        self.cursor = update["cursor"]
        self.version = update.get("version", self.version)
        self.state = update.get("state", self.state)

    def greet(self, pid: int) -> None:
        if pid not in self.pids[-1:]:
            self.pids.append(pid)

    def path(self, way: str) -> str:
        return f"/api/rooms/{self.room}/{way}?after={self.cursor}&version={self.version}"

    def check(self, status: int) -> None:
        if status in (502, 503, 504):
            raise ConnectionResetError(f"answered {status}")
        if status >= 400:
            raise ChatError(f"answered {status}")

    async def poll(self) -> None:
        response = await self.fetch(self.path("poll"))
        self.check(response.status)
        self.greet(int(response.headers["X-Worker"]))
        self.accept(response.json())

    async def sse(self) -> None:
        streams = await self._open()
        try:
            status, headers = await self._ask(streams, self.path("events"), None, {})
            self.check(status)
            buffer = b""
            async for piece in pieces(streams[0], headers):
                *events, buffer = (buffer + piece).split(b"\n\n")
                for event in events:
                    fields = dict(line.split(": ", 1) for line in event.decode().split("\n"))
                    data = json.loads(fields["data"])
                    if fields.get("event") == "hello":
                        self.greet(data["pid"])
                    else:
                        assert fields["id"] == data["cursor"]
                        self.accept(data)
        finally:
            await hang_up(streams[1])

    async def websocket(self) -> None:
        url = self.url.replace("http", "ws", 1) + self.path("socket")
        headers = {"Cookie": self.cookie}
        try:
            async with connect(url, additional_headers=headers, compression=None) as socket:
                async for frame in socket:
                    data = json.loads(frame)
                    if "after" in data:
                        self.accept(data)
                    else:
                        self.greet(data["pid"])
        except InvalidStatus as error:
            self.check(error.response.status_code)
            raise
        except (ConnectionClosed, InvalidHandshake, TimeoutError) as error:
            raise ConnectionResetError(repr(error)) from error


async def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def pieces(reader: asyncio.StreamReader, headers: HTTPHeaders) -> AsyncIterator[bytes]:
    """Yield a response's body as it arrives. A body that is cut short raises."""
    if headers.get("Transfer-Encoding") == "chunked":
        while length := int(await reader.readuntil(b"\r\n"), 16):
            yield (await reader.readexactly(length + 2))[:-2]
        await reader.readuntil(b"\r\n")
    elif length := int(headers.get("Content-Length", "0")):
        yield await reader.readexactly(length)
