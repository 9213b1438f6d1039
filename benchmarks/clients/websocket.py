"""Echo small WebSocket messages on several connections for some seconds.

Each connection sends its next message when the last one has come back. Frames
are prepared once and answers are counted, not parsed, so that the client is
never the slower side. `python -m benchmarks.clients.websocket PORT CONNECTIONS
SECONDS` prints messages, seconds and latencies, as JSON.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
import time
from typing import cast

from benchmarks.clients.client_loop import new_client_loop

__all__ = ["EchoConnection", "run"]

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


async def run(port: int, connections: int, seconds: float) -> dict[str, float]:
    """Open the connections, echo for `seconds`, and return what was counted."""
    loop = asyncio.get_running_loop()
    latencies: list[float] = []
    protocols = []
    for _ in range(connections):
        ready = loop.create_future()
        _, protocol = await loop.create_connection(
            lambda ready=ready: EchoConnection(port, latencies, ready),  # type: ignore[misc]
            "127.0.0.1",
            port,
        )
        await ready
        protocols.append(protocol)
    began = time.monotonic()
    for protocol in protocols:
        protocol.send()
    await asyncio.sleep(seconds)
    for protocol in protocols:
        protocol.stopping = True
    await asyncio.sleep(0.1)
    elapsed = time.monotonic() - began - 0.1
    for protocol in protocols:
        protocol.transport.close()
    latencies.sort()
    return {
        "messages": len(latencies),
        "seconds": elapsed,
        "p50_ms": latencies[len(latencies) // 2] * 1e3,
        "p99_ms": latencies[len(latencies) * 99 // 100] * 1e3,
    }


def main(port: int, connections: int, seconds: float) -> None:
    with asyncio.Runner(loop_factory=new_client_loop) as runner:
        print(json.dumps(runner.run(run(port, connections, seconds))))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
