"""Clients for tests of what lives long: short requests in a loop, polls, WebSockets.

Plain asyncio streams on purpose: a client library would retry behind the test's
back. Each client counts what it saw; the tests say what that should have been.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
import time
from collections import Counter
from typing import Self

__all__ = ["Reply", "Results", "WebSocket", "keep_requesting", "request"]

TIMEOUT_S = 60.0
# A server that drains leaves a connection open for a second after a response, for the
# request that may be on its way; less, here, by what clocks of loops are coarse.
GRACE_S = 0.9


class Reply:
    """One response: `status`, `head` (bytes), `body`, `keep_alive`."""

    def __init__(self, head: bytes, body: bytes) -> None:
        self.head = head
        self.body = body
        self.status = int(head.split(b" ", 2)[1])
        self.keep_alive = b"\r\nconnection: close\r\n" not in head.lower()


class Results:
    """What clients saw, all together."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.slowest = 0.0
        self.failures: list[str] = []

    def took(self, seconds: float) -> None:
        self.slowest = max(self.slowest, seconds)

    def fail(self, what: str) -> None:
        self.counts["failed"] += 1
        self.failures.append(what)


async def read_reply(reader: asyncio.StreamReader) -> Reply:
    """Read one response with a Content-Length. IncompleteReadError.partial: what came of it."""
    head = await reader.readuntil(b"\r\n\r\n")
    lower = head.lower()
    length = 0
    if b"\r\ncontent-length: " in lower:
        length = int(lower.split(b"\r\ncontent-length: ")[1].split(b"\r\n")[0])
    return Reply(head, await reader.readexactly(length))


def _request_bytes(target: str) -> bytes:
    return f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


async def request(port: int, target: str = "/", timeout: float = TIMEOUT_S) -> Reply:
    """Make one request on a new connection."""
    async with asyncio.timeout(timeout):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(_request_bytes(target))
            return await read_reply(reader)
        finally:
            writer.close()


async def keep_requesting(
    port: int,
    target: str,
    results: Results,
    stop: asyncio.Event,
    *,
    name: str,
    pause: float = 0.0,
    keep_alive: bool = True,
    accept: tuple[int, ...] = (200,),
) -> None:
    """Request `target` again and again until `stop`, on connections kept as long as they live.

    Counts under `name` what was answered, and under "`name` retried" what RFC 9110
    section 9.2.2 lets any client repeat: a reused connection closed before any
    byte of the answer. The server had promised more if it was used less than `GRACE_S`
    before: that is a failure, like everything else that goes wrong.
    """
    reader: asyncio.StreamReader | None = None
    writer: asyncio.StreamWriter | None = None
    began = 0.0
    try:
        while not stop.is_set():
            # The response to the request before, from which the server counts, is later
            # than that request: on a starved machine, how much nobody here can tell.
            used, began = began, time.monotonic()
            reused = writer is not None
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    if reader is None or writer is None:
                        reader, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.write(_request_bytes(target))
                    reply = await read_reply(reader)
            except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
                if writer is not None:
                    writer.close()
                reader = writer = None
                nothing_came = not getattr(error, "partial", b"") and not isinstance(
                    error, TimeoutError
                )
                if reused and nothing_came and time.monotonic() - used >= GRACE_S:
                    results.counts[f"{name} retried"] += 1
                else:
                    results.fail(f"{name}: {error!r} after {time.monotonic() - began:.2f} s")
                continue
            results.took(time.monotonic() - began)
            if reply.status not in accept:
                results.fail(f"{name}: {reply.head!r}")
            results.counts[name] += 1
            if not (reply.keep_alive and keep_alive):
                writer.close()
                reader = writer = None
            if pause:
                await asyncio.sleep(pause)
    finally:
        if writer is not None:
            writer.close()


class WebSocket:
    """The least of a WebSocket client: opens, echoes, and answers pings and the close frame."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        #: Payloads of the messages received.
        self.messages: list[bytes] = []
        self.pings = 0

    @classmethod
    async def connect(cls, port: int, target: str = "/ws") -> Self:
        async with asyncio.timeout(TIMEOUT_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(
                f"GET {target} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
                "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
            )
            head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 101 "):
            writer.close()
            raise AssertionError(f"expected 101; got {head!r}")
        return cls(reader, writer)

    def send(self, opcode: int, payload: bytes) -> None:
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
        self._writer.write(bytes([0x80 | opcode, 0x80 | len(payload)]) + mask + masked)

    async def closed(self, *, answer: bool = True) -> int | None:
        """Read until the end; return the close frame's code, or None if there was none."""
        code = None
        try:
            while True:
                first, length = await self._reader.readexactly(2)
                if length == 126:
                    (length,) = struct.unpack(">H", await self._reader.readexactly(2))
                payload = await self._reader.readexactly(length)
                opcode = first & 0x0F
                if opcode == 8:
                    code = struct.unpack(">H", payload[:2])[0] if payload else 1005
                    if answer:
                        self.send(8, payload[:2])
                elif opcode == 9:
                    self.pings += 1
                    self.send(10, payload)
                elif opcode in (1, 2):
                    self.messages.append(payload)
        except (OSError, asyncio.IncompleteReadError):
            return code
        finally:
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()
