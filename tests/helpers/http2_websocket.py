"""A WebSocket in a stream of `Http2Client` (RFC 8441), as blocking as that is.

Its frames are masked as a client's are; what it sends heeds the windows, what it receives is
kept in order. What must follow is for the tests to say.
"""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple

from helpers.http2_client import Http2Client
from helpers.http2_fields import Field

__all__ = ["Message", "Opcode", "WebSocket", "close_payload", "websocket_fields"]

_MASK = b"\x37\xfa\x21\x3d"


class Opcode(enum.IntEnum):
    CONTINUATION = 0x0
    TEXT = 0x1
    BINARY = 0x2
    CLOSE = 0x8
    PING = 0x9
    PONG = 0xA


class Message(NamedTuple):
    opcode: int
    payload: bytes
    compressed: bool = False


def websocket_fields(path: str, *fields: Field) -> list[Field]:
    """Return the fields that ask for a WebSocket."""
    return [
        (b":method", b"CONNECT"),
        (b":protocol", b"websocket"),
        (b":scheme", b"http"),
        (b":path", path.encode()),
        (b":authority", b"test.example"),
        (b"sec-websocket-version", b"13"),
        *fields,
    ]


def close_payload(code: int, reason: str = "") -> bytes:
    return struct.pack(">H", code) + reason.encode()


def _masked(payload: bytes) -> bytes:
    """Return the payload with the mask on it; by integers, because messages are long."""
    size = len(payload)
    mask = (_MASK * (size // 4 + 1))[:size]
    number = int.from_bytes(payload, "big") ^ int.from_bytes(mask, "big")
    return number.to_bytes(size, "big")


def frame(opcode: int, payload: bytes, *, fin: bool = True, compressed: bool = False) -> bytes:
    """Return a frame as a client sends it (RFC 6455 section 5.2)."""
    size = len(payload)
    first = (0x80 if fin else 0) | (0x40 if compressed else 0) | opcode
    if size < 126:
        head = bytes([first, 0x80 | size])
    elif size < 65536:
        head = struct.pack(">BBH", first, 0x80 | 126, size)
    else:
        head = struct.pack(">BBQ", first, 0x80 | 127, size)
    return head + _MASK + _masked(payload)


class WebSocket:
    """One WebSocket; `stream_id` is its stream's, whose state is in `stream`."""

    def __init__(self, client: Http2Client, path: str, *fields: Field) -> None:
        """Open it; the answer must be that of a WebSocket."""
        self.client = client
        self.stream_id = client.send_request(websocket_fields(path, *fields), end=False)
        self.stream = client.streams[self.stream_id]
        client.wait_for(lambda: self.stream.fields or self.stream.closed, "an answer to CONNECT")
        assert self.stream.fields is not None
        assert self.stream.fields[0] == (b":status", b"200"), self.stream.fields
        assert not self.stream.closed
        self._taken = 0

    def values(self, name: bytes) -> list[bytes]:
        """Return the values of a field of the answer."""
        return [value for key, value in self.stream.fields or () if key == name]

    def send(
        self,
        opcode: int,
        payload: bytes = b"",
        *,
        fin: bool = True,
        compressed: bool = False,
        end: bool = False,
    ) -> None:
        """Send a frame as the windows allow; `end` puts END_STREAM on its last byte."""
        data = frame(opcode, payload, fin=fin, compressed=compressed)
        self.client.upload(self.stream_id, data, end=end)

    def receive(self) -> Message:
        """Return the next message, which is in one frame and not masked."""
        first, size = self._take(2)
        assert first & 0x80, "a message in fragments"
        assert size < 128, "masked by a server"
        if size == 126:
            (size,) = struct.unpack(">H", self._take(2))
        elif size == 127:
            (size,) = struct.unpack(">Q", self._take(8))
        return Message(first & 0xF, self._take(size), bool(first & 0x40))

    def _take(self, size: int) -> bytes:
        end = self._taken + size
        self.client.wait_for(
            lambda: len(self.stream.data) >= end or self.stream.closed, "a WebSocket's frame"
        )
        assert len(self.stream.data) >= end, f"the stream ended: reset {self.stream.reset}"
        data = bytes(self.stream.data[self._taken : end])
        self._taken = end
        return data

    @property
    def unread(self) -> int:
        """How many bytes have come that `receive` has not returned."""
        return len(self.stream.data) - self._taken

    def wait_ended(self) -> None:
        """Wait for the end of the server's side, which is no reset, then or later."""
        self.client.wait_for(lambda: self.stream.closed, "the end of the stream")
        assert self.stream.ended, f"reset: {self.stream.reset}"
        assert self.unread == 0
        self.client.sync()
        assert self.stream.reset is None
