"""Hold thousands of connections: idle ones, or polls that wait for a message.

A process of its own, told what to do by lines of JSON on standard input, one
answer per line on standard output; between commands its loop stands still.
Lean on purpose: it must receive faster than any server sends. `python -m
benchmarks.clients.hold PORT STREAMS` speaks HTTP/2 with so many requests on each
connection, or HTTP/1.1 with STREAMS 0.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any, cast

from benchmarks.clients import http2
from benchmarks.clients.client_loop import new_client_loop
from benchmarks.measure import raise_open_file_limit

__all__ = ["Holder", "main"]

CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)

# One address has 28,000 ports, all of which may be in use or just left.
CONNECTIONS_PER_ADDRESS = 4000
OPENING_AT_ONCE = 20
# Of Linux's <linux/in.h>; Python has no name for it before 3.12.
IP_BIND_ADDRESS_NO_PORT = 24


class Connection(asyncio.Protocol):
    """One client connection; counts its answered requests with its holder."""

    def __init__(self, holder: Holder) -> None:
        self.holder = holder
        self.buffer = b""
        self.answered: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.WriteTransport, transport)

    def request(self, path: str) -> None:
        self.transport.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())

    def post(self, path: str, body: bytes) -> None:
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        self.transport.write(head.encode() + body)

    def data_received(self, data: bytes) -> None:
        data = self.buffer + data
        head_end = data.find(b"\r\n\r\n")
        if head_end < 0:
            self.buffer = data
            return
        length = CONTENT_LENGTH.search(data, 0, head_end)
        if length is None or not data.startswith(b"HTTP/1.1 200"):
            raise ValueError(f"expected a 200 with a Content-Length; got {data[:200]!r}")
        if len(data) < head_end + 4 + int(length.group(1)):
            self.buffer = data
            return
        self.buffer = b""
        self.on_answer()

    def on_answer(self) -> None:
        self.holder.on_answer()
        if self.answered is not None and not self.answered.done():
            self.answered.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.holder.lost += 1


class HTTP2Connection(Connection):
    """One that makes each request `holder.streams` times, on as many streams."""

    def __init__(self, holder: Holder) -> None:
        super().__init__(holder)
        self.received = bytearray()
        self.next_stream = 1
        self.unanswered = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.write(http2.START)

    def request(self, path: str) -> None:
        fields = {":method": "GET", ":scheme": "http", ":path": path, ":authority": "localhost"}
        streams = range(self.next_stream, self.next_stream + 2 * self.holder.streams, 2)
        self.next_stream = streams.stop
        self.unanswered += len(streams)
        self.transport.write(b"".join(http2.request(stream, fields) for stream in streams))

    def data_received(self, data: bytes) -> None:
        self.received += data
        for kind, flags, _, payload in http2.read_frames(self.received):
            if kind == http2.SETTINGS and not flags & http2.ACK:
                self.transport.write(http2.frame(http2.SETTINGS, http2.ACK, 0))
            elif kind in (http2.RST_STREAM, http2.GOAWAY):
                raise ValueError(f"expected answers; got a frame of kind {kind}: {payload!r}")
            elif kind == http2.HEADERS and not payload.startswith(http2.STATUS_200):
                raise ValueError(f"expected a 200; got the field block {payload!r}")
            elif kind in (http2.HEADERS, http2.DATA) and flags & http2.END_STREAM:
                self.on_answer()

    def on_answer(self) -> None:
        self.holder.on_answer()
        self.unanswered -= 1
        if not self.unanswered and self.answered is not None and not self.answered.done():
            self.answered.set_result(None)


class Holder:
    """The connections of one client process to one server; without `streams` those of HTTP/1."""

    def __init__(self, port: int, streams: int = 0) -> None:
        self.port = port
        self.streams = streams
        self.connections: list[Connection] = []
        self.lost = 0
        self.answers: list[float] = []
        self.expected = 0
        self.all_answered: asyncio.Future[None] | None = None

    def on_answer(self) -> None:
        self.answers.append(time.monotonic())
        if len(self.answers) == self.expected and self.all_answered is not None:
            self.all_answered.set_result(None)

    async def open(self, count: int, path: str, wait: bool) -> dict[str, Any]:
        """Open `count` more connections and request `path` on each.

        With `wait`, each waits for its answer before the next one is opened in
        its place. Without, requests are left unanswered: the caller asks the
        server when all have arrived.
        """
        began = time.monotonic()
        self.answers.clear()
        self.expected = 0
        todo = iter(range(len(self.connections), len(self.connections) + count))
        await asyncio.gather(
            *(self._open_in_turn(todo, path, wait) for _ in range(OPENING_AT_ONCE))
        )
        return {"open": len(self.connections), "lost": self.lost, "s": time.monotonic() - began}

    async def _open_in_turn(self, todo: Iterator[int], path: str, wait: bool) -> None:
        loop = asyncio.get_running_loop()
        connection_class = HTTP2Connection if self.streams else Connection
        for number in todo:
            sock = socket.socket()
            sock.setblocking(False)
            if sys.platform == "linux":
                address = f"127.0.1.{number // CONNECTIONS_PER_ADDRESS + 1}"
                # The port is chosen by connect(), which knows the server's: one that
                # was just left for another server is free.
                sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
                sock.bind((address, 0))
            await loop.sock_connect(sock, ("127.0.0.1", self.port))
            _, connection = await loop.create_connection(lambda: connection_class(self), sock=sock)
            self.connections.append(connection)
            if wait:
                connection.answered = loop.create_future()
            connection.request(path)
            if connection.answered is not None:
                await connection.answered
                connection.answered = None

    async def send(self, path: str) -> dict[str, Any]:
        """Request `path` again on every connection, and do not wait."""
        for number, connection in enumerate(self.connections):
            connection.request(path)
            if number % 100 == 99:
                await asyncio.sleep(0)
        return {"sent": len(self.connections)}

    async def broadcast(self, path: str, message: str) -> dict[str, Any]:
        """Post `message` on a connection of its own; time the answers to all the rest."""
        loop = asyncio.get_running_loop()
        publisher = Holder(self.port)
        _, connection = await loop.create_connection(
            lambda: Connection(publisher), "127.0.0.1", self.port
        )
        self.answers.clear()
        self.expected = len(self.connections) * (self.streams or 1)
        self.all_answered = loop.create_future()
        began = time.monotonic()
        connection.post(path, message.encode())
        await asyncio.wait_for(self.all_answered, 120)
        connection.transport.close()
        times = sorted(answer - began for answer in self.answers)
        return {"first_s": times[0], "median_s": times[len(times) // 2], "last_s": times[-1]}

    async def close(self) -> dict[str, Any]:
        """Close all connections and wait until they are."""
        closing, self.connections = self.connections, []
        self.lost = 0
        for connection in closing:
            connection.transport.abort()
        while self.lost < len(closing):
            await asyncio.sleep(0.01)
        self.lost = 0
        return {"closed": len(closing)}


def main(port: int, streams: int) -> None:
    """Obey the commands that arrive on standard input until it ends."""
    raise_open_file_limit()
    loop = new_client_loop()
    asyncio.set_event_loop(loop)
    holder = Holder(port, streams)
    for line in sys.stdin:
        command = json.loads(line)
        method = getattr(holder, command.pop("do"))
        print(json.dumps(loop.run_until_complete(method(**command))), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
