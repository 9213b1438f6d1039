"""Upload or download the same large body several times, one after the other.

Blocking sockets and large buffers: the client must not be what limits.
`python -m benchmarks.clients.stream upload|download PORT TIMES` prints the
seconds each transfer took, as JSON.
"""

from __future__ import annotations

import json
import re
import socket
import sys
import time

from benchmarks.apps.content import STREAM_BYTES

__all__ = ["download", "upload"]

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


def main(direction: str, port: int, times: int) -> None:
    transfer = {"upload": upload, "download": download}[direction]
    seconds = []
    with socket.create_connection(("127.0.0.1", port), timeout=60) as sock:
        for _ in range(times):
            began = time.monotonic()
            transfer(sock)
            seconds.append(time.monotonic() - began)
    print(json.dumps(seconds))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
