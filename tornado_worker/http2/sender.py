"""The sending side of an HTTP/2 connection: frames out, in turns, as windows allow.

What is written in one turn of the loop leaves in one piece. Bodies wait in their streams for
the connection's window, their stream's and the transport; the most urgent stream comes first,
and streams of one urgency take turns, frame by frame. May know frames and HPACK; never what
is read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, Protocol

from tornado_worker.connection.flow import WRITE_COST, Connection
from tornado_worker.connection.isolation import IsolatedLoop
from tornado_worker.http2.frames import (
    DATA,
    DEFAULT_MAX_FRAME_SIZE,
    DEFAULT_WINDOW_SIZE,
    FRAME_HEADER,
    data_frame,
    headers_frames,
)
from tornado_worker.http2.hpack import Encoder
from tornado_worker.http2.interfaces import HTTP2Server

__all__ = ["FrameSender", "SendingStream"]

# Frames that wait for the end of the turn are sent at once beyond this (bytes).
_HELD_MAX = 64 * 1024
# Bytes of a frame up to which they are copied at once; longer ones are when they leave.
_JOIN_MAX = 1024


class SendingStream(Protocol):
    """The sending side of one stream, as `FrameSender` knows it."""

    id: int
    #: Bytes that the peer takes now, as far as this stream goes. Settings can make it negative.
    send_window: int
    #: What waits to be sent, and its size (bytes).
    queue: deque[memoryview]
    queued: int
    #: Whether the end of the stream follows what waits.
    end_due: bool
    #: Whether it is among those that can send something.
    is_ready: bool
    urgency: int
    #: Since when the peer is to do something (loop time).
    waiting_since: float

    def on_end_sent(self) -> None:
        """Note that END_STREAM has left."""

    def on_drained(self) -> None:
        """Note that nothing waits, and that the transport wants more."""


class FrameSender(Connection):
    """A connection as its streams send on it."""

    server: HTTP2Server

    __slots__ = (
        "_flush_due",
        "_frame_max",
        "_held",
        "_held_size",
        "_initial_send_window",
        "_ready",
        "_resumed_at",
        "_unreleased",
        "_window_opened_at",
        "encoder",
        "send_window",
    )

    def __init__(self, server: HTTP2Server, loop: IsolatedLoop, addresses: tuple[Any, Any]) -> None:
        super().__init__(server, loop, addresses)
        self.encoder = Encoder()
        #: Bytes of bodies that the peer takes now, on all streams together.
        self.send_window = DEFAULT_WINDOW_SIZE
        self._initial_send_window = DEFAULT_WINDOW_SIZE
        # When the peer last made `send_window` larger, and when the transport last had room.
        self._window_opened_at = self._resumed_at = 0.0
        self._frame_max = DEFAULT_MAX_FRAME_SIZE
        # Frames that leave at the end of the turn.
        self._held: list[bytes | memoryview] = []
        self._held_size = 0
        self._flush_due = False
        # Streams that can send something, by urgency.
        self._ready: dict[int, deque[SendingStream]] = {}
        # Streams of which nothing waits, whose writers wait for the transport.
        self._unreleased: list[SendingStream] = []

    # Frames

    def emit(self, data: bytes | memoryview) -> None:
        """Send whole frames, with the others of this turn of the loop."""
        self._held.append(data)
        self._held_size += len(data)
        if self._held_size >= _HELD_MAX:
            self.flush()
        elif not self._flush_due:
            self._flush_due = True
            self.loop.call_soon(self._flush_held)

    def _flush_held(self) -> None:
        self._flush_due = False
        self.flush()

    def flush(self) -> None:
        """Hand what was emitted to the transport."""
        held = self._held
        if not held:
            return
        data = held[0] if len(held) == 1 else b"".join(held)
        self._held, self._held_size = [], 0
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        transport.write(data)
        share = self.write_share
        self.write_share = left = share - len(data) - WRITE_COST
        if left <= 0 < share:
            self.server.turns.wait(self._begin_turn)

    def send_head(
        self, stream: SendingStream, fields: Iterable[tuple[bytes, bytes]], end: bool
    ) -> None:
        """Send a header section at once: its encoding depends on all those before."""
        block = self.encoder.encode(fields)
        self.emit(headers_frames(stream.id, block, end, self._frame_max))
        if end:
            stream.on_end_sent()

    # Streams: HTTP2Connection's

    def forget(self, stream: Any) -> None:
        """Note that nothing more is sent or read on `stream`."""
        raise NotImplementedError  # pragma: no cover (abstract)

    def note_reset(self, stream: Any) -> None:
        """Note that we have reset `stream`."""
        raise NotImplementedError  # pragma: no cover (abstract)

    def watch(self, stream: SendingStream) -> None:
        """Look at `stream` in each sweep, as long as it waits for the client."""
        raise NotImplementedError  # pragma: no cover (abstract)

    # Bodies

    def send_data(self, stream: SendingStream, data: bytes | memoryview, end: bool) -> bool:
        """Send bytes of a body, or its end, as soon as may be.

        Returns whether more can be written; else `stream.on_drained` tells when.
        """
        size = len(data)
        if not size and not stream.queued:
            if end:
                self._emit_data(stream, b"", end)
        elif (
            stream.queued
            or size > min(stream.send_window, self.send_window, self._frame_max)
            # In the stream it counts against the client's streams, in the transport it would not.
            or self._writing_paused
            # Others have waited longer, or are more urgent.
            or self._ready
        ):
            if size:
                stream.queue.append(memoryview(data))
                stream.queued += size
            stream.end_due = stream.end_due or end
            self.make_ready(stream)
            self._pump()
            self._release_streams()
        else:
            stream.send_window -= size
            self.send_window -= size
            self._emit_data(stream, data, end)
        if stream.queued:
            return False
        if self._can_write():
            return True
        self._unreleased.append(stream)
        return False

    def _can_write(self) -> bool:
        return not self._writing_paused and self.write_share > 0

    def make_ready(self, stream: SendingStream) -> None:
        """Note that `stream` has something to send, as far as its own window goes."""
        if not stream.is_ready and stream.queued and stream.send_window > 0:
            stream.is_ready = True
            queue = self._ready.get(stream.urgency)
            if queue is None:
                queue = self._ready[stream.urgency] = deque()
            queue.append(stream)

    def set_urgency(self, stream: SendingStream, urgency: int) -> None:
        """Give `stream` another place among those that can send something."""
        if urgency != stream.urgency:
            self.make_unready(stream)
            stream.urgency = urgency
            self.make_ready(stream)

    def make_unready(self, stream: SendingStream) -> None:
        """Note that `stream` has nothing to send, or not in its place."""
        if stream.is_ready:
            queue = self._ready[stream.urgency]
            queue.remove(stream)
            if not queue:
                del self._ready[stream.urgency]
            stream.is_ready = False

    def _emit_data(self, stream: SendingStream, data: bytes | memoryview, end: bool) -> None:
        if len(data) < _JOIN_MAX:
            self.emit(data_frame(stream.id, data, end))
        else:
            self._held.append(FRAME_HEADER.pack(len(data) << 8 | DATA, end, stream.id))
            self.emit(data)
        if end:
            stream.on_end_sent()

    def _pump(self) -> None:
        """Send what waits, as far as windows, transport and this turn's share allow."""
        ready = self._ready
        now = self.loop.time() if ready else 0.0
        while ready and self.send_window > 0 and self._can_write():
            urgency = min(ready)
            queue = ready[urgency]
            stream = queue.popleft()
            if not queue:
                del ready[urgency]
            stream.is_ready = False
            size = min(stream.send_window, self.send_window, self._frame_max)
            if size <= 0:
                continue  # the peer's settings have made its window smaller
            data = _take(stream, size)
            stream.send_window -= len(data)
            self.send_window -= len(data)
            stream.waiting_since = now
            self._emit_data(stream, data, stream.end_due and not stream.queued)
            if stream.queued:
                self.make_ready(stream)
            else:
                self._unreleased.append(stream)
        # What waits in here is not the transport's yet, which so cannot say that it has enough.
        if ready:
            self.flush()

    def _go_on(self) -> None:
        """Send what waits, and tell those that wait to write more."""
        if self._can_write():
            self._pump()
        self._release_streams()

    def _release_streams(self) -> None:
        if self._unreleased and self._can_write():
            streams, self._unreleased = self._unreleased, []
            for stream in streams:
                if not stream.queued:
                    stream.on_drained()

    def owed_since(self, stream: SendingStream) -> float | None:
        """Return since when the peer owes `stream` a larger window; None: it does not.

        It does not while `stream` waits for its turn, or for the transport: whether the peer
        reads at all is for `Connection.sweep` to find out.
        """
        if self._writing_paused:
            return None
        if stream.send_window <= 0:
            return max(stream.waiting_since, self._resumed_at)
        if self.send_window <= 0:
            # A peer that opens it now and then keeps no stream waiting, though the most urgent
            # ones have all of it.
            return max(stream.waiting_since, self._resumed_at, self._window_opened_at)
        return None

    def resume_writing(self) -> None:
        super().resume_writing()
        self._resumed_at = self.loop.time()
        self._go_on()

    def _begin_turn(self) -> None:
        super()._begin_turn()
        self._go_on()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unreleased.clear()  # those of `_ready` leave it as they end, next
        self._held.clear()


def _take(stream: SendingStream, size: int) -> memoryview:
    """Take up to `size` bytes from what waits first in `stream`."""
    data = stream.queue[0]
    if len(data) > size:
        stream.queue[0] = data[size:]
        data = data[:size]
    else:
        stream.queue.popleft()
    stream.queued -= len(data)
    return data
