"""Echo small WebSocket messages on several connections for some seconds.

Each connection sends its next message when the last one has come back. Frames
are prepared once and answers are counted, not parsed, so that the client is
never the slower side. `python -m benchmarks.clients.websocket h1|h2 PORT CONNECTIONS
SECONDS` prints messages, seconds and latencies, as JSON. With h2 each connection has
one stream with a WebSocket in it (RFC 8441).
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
import time
from typing import cast

from benchmarks.clients import http2
from benchmarks.clients.client_loop import new_client_loop

__all__ = ["EchoConnection", "HTTP2EchoConnection", "run"]

MESSAGE = b"a small message, 32 bytes long.."


def _client_frame(message: bytes) -> bytes:
    """Return a text frame with that message, masked as a client must (RFC 6455, 5.3)."""
    key = os.urandom(4)
    masked = bytes(byte ^ key[index % 4] for index, byte in enumerate(message))
    return bytes((0x81, 0x80 | len(message))) + key + masked


class EchoConnection(asyncio.Protocol):
    def __init__(self, port: int, latencies: list[float], ready: asyncio.Future[None]) -> None:
        self.port = port
        self.latencies = latencies
        self.ready = ready
        self.frame = _client_frame(MESSAGE)
        self.expected = bytes((0x81, len(MESSAGE))) + MESSAGE
        self.buffer = b""
        self.open = False
        self.stopping = False
        self.sent_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.WriteTransport, transport)
        key = base64.b64encode(os.urandom(16)).decode()
        self.transport.write(
            f"GET /echo HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
            "Sec-WebSocket-Version: 13\r\n\r\n".encode()
        )

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if not self.open:
            head, end, self.buffer = self.buffer.partition(b"\r\n\r\n")
            if not end:
                self.buffer = head
                return
            if not head.startswith(b"HTTP/1.1 101"):
                raise ValueError(f"expected status 101; got {head[:200]!r}")
            self.open = True
            self.ready.set_result(None)
            return
        self.on_bytes()

    def on_bytes(self) -> None:
        if len(self.buffer) < len(self.expected):
            return
        if self.buffer != self.expected:
            raise ValueError(f"expected an echo; got {self.buffer[:80]!r}")
        self.buffer = b""
        self.latencies.append(time.monotonic() - self.sent_at)
        if not self.stopping:
            self.send()

    def send(self) -> None:
        self.sent_at = time.monotonic()
        self.transport.write(self.frame)


class HTTP2EchoConnection(EchoConnection):
    def __init__(self, port: int, latencies: list[float], ready: asyncio.Future[None]) -> None:
        super().__init__(port, latencies, ready)
        self.received = bytearray()
        self.data_frame = http2.frame(http2.DATA, 0, 1, self.frame)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.WriteTransport, transport)
        fields = {
            ":method": "CONNECT",
            ":protocol": "websocket",
            ":scheme": "http",
            ":path": "/echo",
            ":authority": f"127.0.0.1:{self.port}",
            "sec-websocket-version": "13",
        }
        self.transport.write(http2.START + http2.request(1, fields, end=False))

    def data_received(self, data: bytes) -> None:
        self.received += data
        for kind, flags, _, payload in http2.read_frames(self.received):
            if kind == http2.DATA:
                self.buffer += payload
                self.on_bytes()
            elif kind == http2.SETTINGS and not flags & http2.ACK:
                self.transport.write(http2.frame(http2.SETTINGS, http2.ACK, 0))
            elif kind == http2.HEADERS and payload.startswith(http2.STATUS_200):
                self.ready.set_result(None)
            elif kind in (http2.HEADERS, http2.RST_STREAM, http2.GOAWAY):
                raise ValueError(f"expected a WebSocket; got kind {kind}: {payload[:80]!r}")

    def send(self) -> None:
        self.sent_at = time.monotonic()
        self.transport.write(self.data_frame)


async def run(protocol: str, port: int, connections: int, seconds: float) -> dict[str, float]:
    """Open the connections, echo for `seconds`, and return what was counted."""
    loop = asyncio.get_running_loop()
    latencies: list[float] = []
    connection_class = {"h1": EchoConnection, "h2": HTTP2EchoConnection}[protocol]
    opened = []
    for _ in range(connections):
        ready = loop.create_future()
        _, connection = await loop.create_connection(
            lambda ready=ready: connection_class(port, latencies, ready),  # type: ignore[misc]
            "127.0.0.1",
            port,
        )
        await ready
        opened.append(connection)
    began = time.monotonic()
    for connection in opened:
        connection.send()
    await asyncio.sleep(seconds)
    for connection in opened:
        connection.stopping = True
    await asyncio.sleep(0.1)
    elapsed = time.monotonic() - began - 0.1
    for connection in opened:
        connection.transport.close()
    latencies.sort()
    return {
        "messages": len(latencies),
        "seconds": elapsed,
        "p50_ms": latencies[len(latencies) // 2] * 1e3,
        "p99_ms": latencies[len(latencies) * 99 // 100] * 1e3,
    }


def main(protocol: str, port: int, connections: int, seconds: float) -> None:
    with asyncio.Runner(loop_factory=new_client_loop) as runner:
        print(json.dumps(runner.run(run(protocol, port, connections, seconds))))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
