"""A client that is told requests as HTTP/1 has them, and makes each a stream of HTTP/2.

So a test that is not about framing runs over both protocols (the marker `both_protocols`), as
it stands. What only HTTP/1 has, a test cannot ask for here: it fails at once.
"""

from __future__ import annotations

import collections
import socket
from typing import Any

from tornado import httputil

from helpers.http2_client import Http2Client
from helpers.server_thread import Client, Response

__all__ = ["PROTOCOL_OPTIONS", "StreamClient"]


class StreamClient(Client):
    """Requests in their order; the answers are read in that order as well."""

    def __init__(self, server: Any, sock: socket.socket) -> None:
        super().__init__(server, sock)
        self.http2 = Http2Client(sock)
        self.http2.start()
        self._unsent = b""
        self._uploading = 0
        self._body_left = 0
        self._chunked = False
        self._unanswered: collections.deque[int] = collections.deque()

    def send(self, data: bytes | memoryview) -> None:
        self._unsent += bytes(data)
        while self._send_part():
            pass

    def send_slowly(self, data: bytes) -> None:
        for i in range(len(data)):
            self.send(data[i : i + 1])
            self._server.turn()

    def _send_part(self) -> bool:
        """Send a head, or what there is of a body; return False when more must come first."""
        if self._body_left:
            part = self._unsent[: self._body_left]
            self._unsent = self._unsent[len(part) :]
            self._body_left -= len(part)
            if part:
                end = not self._body_left and not self._chunked
                self.http2.upload(self._uploading, part, end=end)
            return bool(part)
        if self._chunked:
            return self._begin_chunk()
        head, end_of_head, rest = self._unsent.partition(b"\r\n\r\n")
        if end_of_head:
            self._unsent = rest
            self._begin(head)
        return bool(end_of_head)

    def _begin_chunk(self) -> bool:
        """A chunk's bytes become DATA, the last chunk the end of the stream."""
        size, end_of_line, rest = self._unsent.removeprefix(b"\r\n").partition(b"\r\n")
        if not end_of_line:
            return False
        self._unsent = rest
        self._body_left = int(size, 16)
        if not self._body_left:
            self._chunked = False
            self.http2.send_data(self._uploading, end=True)
        return True

    def _begin(self, head: bytes) -> None:
        line, *lines = head.split(b"\r\n")
        method, target, version = line.split(b" ")
        if version != b"HTTP/1.1":
            raise TypeError(f"a request that HTTP/2 does not have: {line!r}")
        pseudo = {b":method": method, b":scheme": b"http", b":path": target}
        fields = []
        for field in lines:
            name, _, value = field.partition(b":")
            name, value = name.lower(), value.strip()
            if name == b"host":
                pseudo[b":authority"] = value
            elif field.lower() == b"transfer-encoding: chunked":
                self._chunked = True
            elif name in (b"connection", b"transfer-encoding", b"upgrade"):
                raise TypeError(f"a field that HTTP/2 does not have: {field!r}")
            else:
                fields.append((name, value))
        self._body_left = int(dict(fields).get(b"content-length", b"0"))
        has_body = self._chunked or self._body_left > 0
        self._uploading = self.http2.send_request([*pseudo.items(), *fields], end=not has_body)
        self._unanswered.append(self._uploading)

    def response(self, method: str = "GET") -> Response:
        status, fields, body, _ = self.http2.response(self._unanswered.popleft())
        headers = httputil.HTTPHeaders()
        for name, value in fields:
            if not name.startswith(b":"):
                headers.add(name.decode("ascii"), value.decode("latin-1"))
        return Response(b"", status, headers, body)

    def expect_nothing(self) -> None:
        """No stream has got, or gets now, anything of a response."""
        self._server.turn()
        self.http2.sync()
        for stream_id in self._unanswered:
            stream = self.http2.streams[stream_id]
            assert stream.fields is None
            assert not stream.closed

    def _recv(self) -> bytes:
        raise TypeError("bytes as HTTP/1 has them do not exist in HTTP/2: see `response`")


#: Arguments of `ServerThread` by protocol.
PROTOCOL_OPTIONS: dict[str, dict[str, Any]] = {
    "h1": {},
    "h2": {
        "http_protocols": "h2",
        "http2_cleartext": "prior-knowledge",
        "client_class": StreamClient,
    },
}
