"""As much HTTP/2 (RFC 9113) as the clients here need, and fast: nothing is checked but answers.

Field blocks are literals without Huffman's code, and of those received only the first byte is
looked at: `:status: 200` is one byte of HPACK. Windows are as large as Chromium's.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

__all__ = [
    "ACK",
    "CONNECTION_WINDOW",
    "DATA",
    "END_STREAM",
    "GOAWAY",
    "HEADERS",
    "HEAD_SIZE",
    "PING",
    "RST_STREAM",
    "SETTINGS",
    "START",
    "STATUS_200",
    "STREAM_WINDOW",
    "WINDOW_UPDATE",
    "Frame",
    "data_head",
    "frame",
    "read_frames",
    "request",
    "window_update",
]

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM = ACK = 1
END_HEADERS = 4
HEAD_SIZE = 9
STATUS_200 = b"\x88"

STREAM_WINDOW = 6 << 20
CONNECTION_WINDOW = 15 << 20

# Kind, flags, stream and payload.
Frame = tuple[int, int, int, bytes]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload


def data_head(size: int, flags: int, stream: int) -> bytes:
    """Return what stands before `size` bytes of a body."""
    return struct.pack(">IBI", size << 8 | DATA, flags, stream)


def window_update(stream: int, size: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, size.to_bytes(4, "big"))


# The preface, SETTINGS_INITIAL_WINDOW_SIZE, and the connection's window.
START = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    + frame(SETTINGS, 0, 0, struct.pack(">HI", 4, STREAM_WINDOW))
    + window_update(0, CONNECTION_WINDOW - 65_535)
)


def request(stream: int, fields: dict[str, str], *, end: bool = True) -> bytes:
    """Return HEADERS with `fields`, pseudo-fields first; values are below 127 bytes."""
    block = b"".join(
        bytes((0, len(name))) + name.encode() + bytes((len(value),)) + value.encode()
        for name, value in fields.items()
    )
    return frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), stream, block)


def read_frames(buffer: bytearray) -> Iterator[Frame]:
    """Take whole frames off the front of `buffer`."""
    at = 0
    try:
        while len(buffer) - at >= HEAD_SIZE:
            length_and_kind, flags, stream = struct.unpack_from(">IBI", buffer, at)
            end = at + HEAD_SIZE + (length_and_kind >> 8)
            if end > len(buffer):
                break
            payload = bytes(buffer[at + HEAD_SIZE : end])
            at = end
            yield length_and_kind & 0xFF, flags, stream, payload
    finally:
        del buffer[:at]
