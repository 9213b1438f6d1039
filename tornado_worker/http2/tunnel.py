"""A detached stream of HTTP/2 as a transport: what a `TransportStream` reads and writes.

WebSockets (RFC 8441) and CONNECT (RFC 9113 section 8.5) run on it. It is a
`connection.stream.DetachedTransport`, and never touches the socket, which is the connection's.
"""

from __future__ import annotations

from typing import Any, Protocol

from tornado_worker.connection.isolation import IsolatedLoop
from tornado_worker.http2.errors import ErrorCode

__all__ = ["StreamTransport", "TunnelStream"]

# Bytes that wait for the peer's window before an application is to wait (asyncio's number).
_UNSENT_MAX = 64 * 1024


class TunnelStream(Protocol):
    """A stream, as its tunnel uses it."""

    loop: IsolatedLoop
    queued: int
    is_over: bool

    @property
    def transport(self) -> Any:
        """The transport of the connection."""

    def send_data(self, data: bytes | memoryview, end: bool) -> bool:
        """Send bytes; return whether more are wanted now."""

    def use_bytes(self, size: int) -> None:
        """Let the peer send `size` bytes more."""

    def reset(self, code: ErrorCode) -> None:
        """End the stream now."""


class StreamTransport:
    """One stream, as bytes both ways."""

    __slots__ = (
        "_closing",
        "_ended",
        "_protocol",
        "_reading_paused",
        "_stream",
        "_unread",
        "_writing_paused",
        "loop",
    )

    def __init__(self, stream: TunnelStream, held: int) -> None:
        """Take `stream` over; `held` of its bytes have been read, and not used."""
        self._stream: TunnelStream | None = stream
        self.loop = stream.loop
        self._protocol: Any = None
        self._closing = False
        self._ended = False
        self._reading_paused = False
        self._writing_paused = False
        # What came while reading was paused.
        self._unread = bytearray()
        if held:
            stream.use_bytes(held)

    # From the stream

    def feed(self, data: bytes, ended: bool) -> None:
        """Take bytes that have come, and maybe the end of the peer's side."""
        self._ended = self._ended or ended
        # Also between `resume_reading` and the turn that hands over what waited.
        if self._reading_paused or self._unread:
            self._unread += data
        elif data and not self._closing:
            self._hand_over(data)
        elif self._stream is not None:
            self._stream.use_bytes(len(data))
        self._tell_end()

    def _hand_over(self, data: bytes) -> None:
        if self._stream is not None:
            self._stream.use_bytes(len(data))
        self.loop.run(self._protocol.data_received, data)

    def _tell_end(self) -> None:
        """Tell of the end of the peer's side when everything before it was handed over.

        Not by `eof_received`: a peer that ends its side with its last message (Chromium
        does, behind a WebSocket's close frame) still waits for the answer.
        """
        if self._ended and not self._unread and not self._closing:
            self._ended = False
            self.loop.run(self._protocol.end_received)

    def on_drained(self) -> None:
        """Nothing waits to be sent, and the connection wants more."""
        if self._writing_paused and not self._closing:
            self._writing_paused = False
            self.loop.run(self._protocol.resume_writing)

    def on_end_sent(self) -> None:
        """Everything has left, as `close` wanted it."""
        self.loop.call_soon(self._lose)

    def _lose(self) -> None:
        self.on_lost(None)

    def on_lost(self, error: Exception | None) -> None:
        """The stream is gone, or the connection with it."""
        self._closing = True
        self._stream = None
        self._unread.clear()
        protocol, self._protocol = self._protocol, None
        if protocol is not None:
            self.loop.run(protocol.connection_lost, error)

    # Of a transport

    @property
    def carrier(self) -> Any:
        """The transport whose socket carries this one; None once it is gone."""
        return None if self._stream is None else self._stream.transport

    def set_protocol(self, protocol: Any) -> None:
        self._protocol = protocol

    def is_closing(self) -> bool:
        return self._closing

    def write(self, data: bytes | memoryview) -> None:
        stream = self._stream
        if self._closing or stream is None:
            return
        if stream.send_data(bytes(data), False):
            return
        if stream.queued > _UNSENT_MAX and not self._writing_paused:
            self._writing_paused = True
            self.loop.run(self._protocol.pause_writing)

    def get_write_buffer_size(self) -> int:
        return 0 if self._stream is None else self._stream.queued

    def pause_reading(self) -> None:
        self._reading_paused = True

    def resume_reading(self) -> None:
        self._reading_paused = False
        if self._unread:
            # Not from here: the protocol is in the middle of a read.
            self.loop.call_soon(self._hand_over_unread)

    def _hand_over_unread(self) -> None:
        if self._unread and not self._reading_paused and not self._closing:
            unread, self._unread = self._unread, bytearray()
            self._hand_over(bytes(unread))
        self._tell_end()

    def close(self) -> None:
        """End our side after what was written, and tell the protocol then."""
        stream = self._stream
        if self._closing or stream is None:
            return
        self._closing = True
        self._unread.clear()
        stream.send_data(b"", True)

    def abort(self) -> None:
        """End now; what waits to be sent is given up."""
        if self._stream is not None and not self._stream.is_over:
            self._closing = True
            self.loop.call_soon(self._stream.reset, ErrorCode.CANCEL)

    def can_write_eof(self) -> bool:
        return True

    def get_extra_info(self, name: str) -> None:
        """Return None: the socket is the connection's, whose other streams need it."""
        return

    def break_cycles(self) -> None:
        """Do nothing: there are none."""
