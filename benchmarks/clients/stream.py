"""Upload or download the same large body several times, one after the other.

Blocking sockets and large buffers: the client must not be what limits.
`python -m benchmarks.clients.stream h1|h2 upload|download PORT TIMES` prints the
seconds each transfer took, as JSON.
"""

from __future__ import annotations

import json
import re
import socket
import struct
import sys
import time

from benchmarks.apps.content import STREAM_BYTES
from benchmarks.clients import http2

__all__ = ["HTTP2Transfers", "download", "upload"]

BLOCK = memoryview(bytes(1 << 18))


def upload(sock: socket.socket) -> None:
    head = "POST /upload HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n"
    sock.sendall(f"{head}Content-Length: {STREAM_BYTES}\r\n\r\n".encode())
    left = STREAM_BYTES
    while left:
        part = BLOCK[:left]
        sock.sendall(part)
        left -= len(part)
    body = _read_response(sock)
    if int(body) != STREAM_BYTES:
        raise ValueError(f"expected {STREAM_BYTES} bytes to arrive; got {body!r}")


def download(sock: socket.socket) -> None:
    sock.sendall(b"GET /download HTTP/1.1\r\nHost: localhost\r\n\r\n")
    head, rest = _read_head(sock)
    left = _content_length(head) - len(rest)
    buffer = bytearray(1 << 18)
    while left:
        received = sock.recv_into(buffer)
        if not received:
            raise ConnectionError(f"expected {left} more bytes; got the end")
        left -= received


def _read_response(sock: socket.socket) -> bytes:
    head, body = _read_head(sock)
    while len(body) < _content_length(head):
        body += sock.recv(65536)
    return body


def _read_head(sock: socket.socket) -> tuple[bytes, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        received = sock.recv(65536)
        if not received:
            raise ConnectionError("expected a response; got the end")
        data += received
    head, _, rest = data.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise ValueError(f"expected status 200; got {head[:200]!r}")
    return head, rest


def _content_length(head: bytes) -> int:
    match = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
    if match is None:
        raise ValueError("expected a Content-Length")
    return int(match.group(1))


class HTTP2Transfers:
    """Transfers on one connection of HTTP/2, each on the next stream; as fast as windows allow."""

    FRAME = 16_384

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.stream = -1
        self.buffer = bytearray()
        self.connection_window = 65_535
        self.initial_window = 65_535
        self.stream_window = 0
        self.received = 0
        self.ended = False
        self.answer = b""
        sock.sendall(http2.START)

    def upload(self) -> None:
        self._begin("POST", "/upload", end=False)
        left = STREAM_BYTES
        while left:
            size = min(left, self.FRAME, self.connection_window, self.stream_window)
            if size <= 0:
                self._receive()
                continue
            # All that the windows allow, up to a block: a system call for each is too much.
            parts: list[bytes | memoryview] = []
            while size > 0 and len(parts) < 32:
                self.connection_window -= size
                self.stream_window -= size
                left -= size
                flags = 0 if left else http2.END_STREAM
                parts += [http2.data_head(size, flags, self.stream), BLOCK[:size]]
                size = min(left, self.FRAME, self.connection_window, self.stream_window)
            self.sock.sendall(b"".join(parts))
        while not self.ended:
            self._receive()
        if int(self.answer) != STREAM_BYTES:
            raise ValueError(f"expected {STREAM_BYTES} bytes to arrive; got {self.answer!r}")

    def download(self) -> None:
        self._begin("GET", "/download", end=True)
        while not self.ended:
            self._receive()
        if self.received != STREAM_BYTES:
            raise ValueError(f"expected {STREAM_BYTES} bytes; got {self.received}")

    def _begin(self, method: str, path: str, end: bool) -> None:
        self.stream += 2
        self.stream_window = self.initial_window
        self.received = 0
        self.ended = False
        self.answer = b""
        fields = {":method": method, ":scheme": "http", ":path": path, ":authority": "localhost"}
        self.sock.sendall(http2.request(self.stream, fields, end=end))

    def _receive(self) -> None:
        data = self.sock.recv(1 << 18)
        if not data:
            raise ConnectionError("expected more; got the end")
        self.buffer += data
        used = 0
        for kind, flags, stream, payload in http2.read_frames(self.buffer):
            if kind == http2.DATA:
                used += len(payload)
                self.answer = payload
                self.ended = bool(flags & http2.END_STREAM)
            elif kind == http2.WINDOW_UPDATE and not stream:
                self.connection_window += int.from_bytes(payload, "big")
            elif kind == http2.WINDOW_UPDATE and stream == self.stream:
                self.stream_window += int.from_bytes(payload, "big")
            elif kind == http2.SETTINGS and not flags & http2.ACK:
                initial = dict(struct.iter_unpack(">HI", payload)).get(4, self.initial_window)
                self.stream_window += initial - self.initial_window
                self.initial_window = initial
                self.sock.sendall(http2.frame(http2.SETTINGS, http2.ACK, 0))
            elif kind == http2.HEADERS and not payload.startswith(http2.STATUS_200):
                raise ValueError(f"expected status 200; got {payload!r}")
            elif kind in (http2.GOAWAY, http2.RST_STREAM):
                raise ConnectionError(f"expected a response; got kind {kind}: {payload!r}")
        self.received += used
        if used and not self.ended:
            updates = http2.window_update(0, used) + http2.window_update(self.stream, used)
            self.sock.sendall(updates)
        elif used:
            self.sock.sendall(http2.window_update(0, used))


def main(protocol: str, direction: str, port: int, times: int) -> None:
    seconds = []
    with socket.create_connection(("127.0.0.1", port), timeout=60) as sock:
        # A block of frames waits for nothing but the windows.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if protocol == "h2":
            transfers = HTTP2Transfers(sock)
            transfer = {"upload": transfers.upload, "download": transfers.download}[direction]
        else:
            transfer = {
                "upload": lambda: upload(sock),
                "download": lambda: download(sock),
            }[direction]
        for _ in range(times):
            began = time.monotonic()
            transfer()
            seconds.append(time.monotonic() - began)
    print(json.dumps(seconds))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
