"""Counts the traffic of a detached stream: a WebSocket's messages, a tunnel's bytes.

Reads frame headers (RFC 6455 section 5.2) where they pass by, because Tornado has
no public place that knows a WebSocket's traffic and how it ended. Changes nothing
and keeps no payload.
"""

from __future__ import annotations

import re
from typing import Any

from tornado_worker.connection.exchange import RequestConnection
from tornado_worker.connection.stream import TransportStream
from tornado_worker.connection.transport import forget_frames

__all__ = ["ByteCounter", "FrameCounter", "ObservedStream"]

_STATUS_LINE = re.compile(rb"HTTP/1\.\d (\d{3})")

# When the connection is lost, so many of the bytes that the application has not taken are
# counted all the same: enough for a last message and a close frame, and few enough that
# thousands of tiny frames do not hold up the loop.
_UNTAKEN_MAX = 16 * 1024
# Bytes that were taken are counted in groups of so many reads, or bytes.
_GROUP_READS = 64
_GROUP_MAX = 4096

_CLOSE = 8
# Of a control frame (section 5.5).
_PAYLOAD_MAX = 125
# Section 7.4.1: the code that stands for a close frame without one.
_NO_STATUS = 1005


class FrameCounter:
    """Sums up the frames that one end of a WebSocket sends.

    `payload`: bytes of text and binary messages as they travel, compressed if they
    are. `close_code`: that of the close frame, None without one.
    """

    __slots__ = ("_pending", "_skip", "close_code", "payload")

    def __init__(self) -> None:
        self.payload = 0
        self.close_code: int | None = None
        self._pending = b""
        # Payload bytes still to come of a frame whose header was read.
        self._skip = 0

    def feed(self, data: bytes) -> None:
        """Look at the next bytes, in pieces of any size."""
        skip = self._skip
        if skip >= len(data):
            self._skip = skip - len(data)
            return
        if skip:
            data = data[skip:]
        if self._pending:
            data = self._pending + data
        size = len(data)
        start = 0
        while start + 2 <= size:
            length = data[start + 1] & 0x7F
            body = start + 2
            if length == 126:
                body += 2
            elif length == 127:
                body += 8
            masked = data[start + 1] & 0x80
            if body + (4 if masked else 0) > size:
                break
            if length > _PAYLOAD_MAX:
                length = int.from_bytes(data[start + 2 : body], "big")
            mask = b"\0\0"
            if masked:
                mask = data[body : body + 2]
                body += 4
            opcode = data[start] & 0x0F
            if opcode == _CLOSE:
                if body + min(length, 2) > size:
                    break
                if length >= 2:
                    self.close_code = (data[body] ^ mask[0]) << 8 | data[body + 1] ^ mask[1]
                else:
                    self.close_code = _NO_STATUS
            elif opcode < _CLOSE:
                self.payload += length
            start = body + length
        self._skip = max(0, start - size)
        self._pending = data[start:]


class ByteCounter:
    """Counts the bytes that go one way through a tunnel."""

    close_code = None

    def __init__(self) -> None:
        self.payload = 0
        self.status = 0

    def feed(self, data: bytes) -> None:
        if not self.payload and (match := _STATUS_LINE.match(data)):
            self.status = int(match[1])
        self.payload += len(data)


class ObservedStream(TransportStream):
    """A stream that counts its traffic, for a line when it closes.

    Input is counted as the application takes it: then the work for a flood of
    tiny frames is bounded for each turn of the loop as the application's own is.
    """

    exchange: RequestConnection | None = None
    incoming: FrameCounter | ByteCounter
    outgoing: FrameCounter | ByteCounter

    def observe(self, exchange: RequestConnection) -> None:
        headers = exchange.response_headers
        counter: type[FrameCounter | ByteCounter] = ByteCounter
        if headers is not None and headers.get("Upgrade", "").lower() == "websocket":
            counter = FrameCounter
        self.incoming, self.outgoing = counter(), counter()
        self._taken: list[bytes] = []
        self.exchange = exchange

    def _consume(self, loc: int) -> bytes:
        data = super()._consume(loc)
        if self.exchange is not None:
            self._taken.append(data)
            if loc > _GROUP_MAX or len(self._taken) >= _GROUP_READS:
                self._count_taken()
        return data

    # `_consume` is not called for a read into the application's own buffer.

    def read_into(self, buf: bytearray, partial: bool = False) -> Any:
        if self.exchange is not None:
            self._taken.append(bytes(self._read_buffer[: len(buf)]))
            self._count_taken()
        return super().read_into(buf, partial)

    def _fill_user_buffer(self, data: bytes) -> bytes:
        rest = super()._fill_user_buffer(data)
        if self.exchange is not None:
            self._taken.append(data[: len(data) - len(rest)])
            self._count_taken()
        return rest

    def _count_taken(self) -> None:
        taken, self._taken = self._taken, []
        self.incoming.feed(b"".join(taken))

    def connection_lost(self, exc: Exception | None) -> None:
        forget_frames(exc)
        self.close(exc_info=exc or False)  # completes what reads it can
        if self.exchange is not None:
            self._taken.append(bytes(self._read_buffer[:_UNTAKEN_MAX]))
            self._count_taken()
        super().connection_lost(exc)
        self.exchange = None

    def write(self, data: bytes | memoryview) -> Any:
        future = super().write(data)
        if self.exchange is not None:
            self.outgoing.feed(bytes(data))
        return future
