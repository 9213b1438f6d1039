"""Hold thousands of connections: idle ones, or polls that wait for a message.

A process of its own, told what to do by lines of JSON on standard input, one
answer per line on standard output; between commands its loop stands still.
Lean on purpose: it must receive faster than any server sends.
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
        self.holder.on_answer()
        if self.answered is not None and not self.answered.done():
            self.answered.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.holder.lost += 1


class Holder:
    """The connections of one client process to one server."""

    def __init__(self, port: int) -> None:
        self.port = port
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
            *(self._open_in_turn(todo, _request(path), wait) for _ in range(OPENING_AT_ONCE))
        )
        return {"open": len(self.connections), "lost": self.lost, "s": time.monotonic() - began}

    async def _open_in_turn(self, todo: Iterator[int], request: bytes, wait: bool) -> None:
        loop = asyncio.get_running_loop()
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
            _, connection = await loop.create_connection(lambda: Connection(self), sock=sock)
            self.connections.append(connection)
            if wait:
                connection.answered = loop.create_future()
            connection.transport.write(request)
            if connection.answered is not None:
                await connection.answered
                connection.answered = None

    async def send(self, path: str) -> dict[str, Any]:
        """Request `path` again on every connection, and do not wait."""
        request = _request(path)
        for number, connection in enumerate(self.connections):
            connection.transport.write(request)
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
        self.expected = len(self.connections)
        self.all_answered = loop.create_future()
        body = message.encode()
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        began = time.monotonic()
        connection.transport.write(head.encode() + body)
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


def _request(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def main(port: int) -> None:
    """Obey the commands that arrive on standard input until it ends."""
    raise_open_file_limit()
    loop = new_client_loop()
    asyncio.set_event_loop(loop)
    holder = Holder(port)
    for line in sys.stdin:
        command = json.loads(line)
        method = getattr(holder, command.pop("do"))
        print(json.dumps(loop.run_until_complete(method(**command))), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
