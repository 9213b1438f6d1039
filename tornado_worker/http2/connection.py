"""HTTP/2 on a connection: its beginning, its drain and its ends, for its server.

It never deals with signals, WSGI or listening sockets. What is sent is `FrameSender`'s, what is
about the connection as a whole `FrameReceiver`'s, what is about one stream
`StreamsConnection`'s, and what a frame means to an exchange `HTTP2Stream`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from tornado.log import gen_log

from tornado_worker.connection.exchange import RequestConnection
from tornado_worker.connection.flow import PieceReader
from tornado_worker.connection.isolation import IsolatedLoop
from tornado_worker.connection.phase import Phase
from tornado_worker.connection.transport import hang_up
from tornado_worker.http2 import frames
from tornado_worker.http2.errors import ConnectionFault, ErrorCode
from tornado_worker.http2.frames import MAX_STREAM_ID
from tornado_worker.http2.head import Head
from tornado_worker.http2.interfaces import HTTP2Server
from tornado_worker.http2.streams import StreamsConnection
from tornado_worker.logs.guard import guarded

__all__ = ["HTTP2Connection", "Upgraded"]

# How long an idle connection remembers what its client repeats, and how its streams have
# ended (seconds): 0.7 KB, and up to 10.
_REMEMBERED_S = 1.0


class Upgraded(NamedTuple):
    """A request of HTTP/1 that goes on as the first stream (RFC 7540 section 3.2)."""

    settings: list[tuple[int, int]]
    head: Head
    body: bytes


class HTTP2Connection(StreamsConnection):
    """One connection and its streams; a `connection.served.ServedConnection`."""

    __slots__ = ("_draining_since",)

    def __init__(self, server: HTTP2Server, loop: IsolatedLoop, addresses: tuple[Any, Any]) -> None:
        super().__init__(server, loop, addresses)
        self._draining_since = 0.0

    # Beginning

    def take_over(
        self, transport: Any, context: Any, data: bytes, upgraded: Upgraded | None = None
    ) -> None:
        """Go on with a connection of which `data` was read, and not used."""
        self.transport = transport
        self.context = context
        self._inbox.attach(transport)
        self._reads_pieces = not transport.can_write_eof()
        transport.set_protocol(PieceReader(self) if self._reads_pieces else self)
        self._send_preface()
        if self.draining:
            self._announce_drain()
        if upgraded is not None:
            self.apply_settings(dict(upgraded.settings))
            # curl before 8 gives up when more than 32 KB come with the 101: the rest of the
            # window follows when the client's preface does.
            self._withheld = self.send_window - frames.DEFAULT_MAX_FRAME_SIZE
            self.send_window -= self._withheld
            self._last_id = 1
            stream = self._begin_stream(1, upgraded.head, False)
            stream.receive(upgraded.body, 0, True)
            self._begin_streams()
        if data:
            self.data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        transport = self.transport
        super().connection_lost(exc)
        self._end_streams(exc)
        self.server.on_close(self)
        hang_up(transport)

    def _end_streams(self, error: Exception | None) -> None:
        self._begun.clear()
        self._fed.clear()
        for stream in list(self.streams.values()):
            stream.on_reset(error)

    # Ends

    def _end_with(self, fault: ConnectionFault) -> None:
        """Tell the client what it did wrong, and close (RFC 9113 section 5.4.1)."""
        guarded(gen_log.info, "HTTP/2 error of %s: %s", self.context, fault)
        self._say_goodbye(fault.code, fault.reason)
        # Over TLS too: asyncio gives up a connection, with what was written, if more comes
        # while it says goodbye.
        self.linger()
        self._end_streams(None)

    def _say_goodbye(self, code: ErrorCode, reason: str = "") -> None:
        self.last_allowed_id = self._last_id
        self.emit(frames.goaway_frame(self._last_id, code, reason.encode("ascii", "replace")))
        self.flush()

    def _end_idle(self) -> None:
        if self.last_allowed_id == MAX_STREAM_ID:
            self._say_goodbye(ErrorCode.NO_ERROR)
        self.flush()
        self._end_read()

    def _end_read(self) -> None:
        """End when the client has read what was sent.

        It sends WINDOW_UPDATE while it reads. Closing with that unread would make the kernel
        reset the connection, and give up what still waits: see `linger`.
        """
        if self.transport is None:
            return
        if self.transport.can_write_eof():
            self.linger()
        else:
            self.close_written()  # TLS reads on until the client ends its side too

    # For the server

    def exchanges(self) -> list[RequestConnection]:
        return [stream.exchange for stream in self.streams.values() if stream.exchange is not None]

    def sweep(self, now: float) -> Callable[[], None] | None:
        ending = super().sweep(now)
        timeouts = self.server.timeouts
        if self.phase is Phase.LINGER and now - self.since > timeouts.closing:
            # Clients leave at a GOAWAY; one that does not must not hold up a drain.
            return self._end_at_last
        if ending is not None or self.phase.is_ending:
            return ending
        if self.draining and self.last_allowed_id == MAX_STREAM_ID:
            if now - self._draining_since >= timeouts.drain_grace:
                return self._end_drain_grace
        elif self.phase.awaits_request:
            limit = timeouts.header if self.phase is Phase.NEW else timeouts.idle
            if now - self.since >= limit:
                return self._end_idle
            if self._head is not None and now - self.since >= _REMEMBERED_S:
                self._forget_details()
        if self._waits_since is not None and now - self._waits_since > timeouts.header:
            return self._end_slow_frame
        if self._watched:
            for stream in self._watched:
                if not stream.waits_for_peer or stream.overdue(now, timeouts):
                    return self._end_overdue_streams
        return None

    def _end_slow_frame(self) -> None:
        self._end_with(
            ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "a frame takes too long to arrive")
        )

    def _end_overdue_streams(self) -> None:
        now = self.loop.time()
        for stream in list(self._watched):
            if not stream.waits_for_peer:
                self._watched.pop(stream, None)
            elif stream.overdue(now, self.server.timeouts):
                if not stream.end_sent:
                    what = "writing to" if stream.queued else "reading body from"
                    guarded(gen_log.info, f"Timeout {what} %s", self.context)
                stream.reset(ErrorCode.CANCEL)

    def begin_drain(self) -> None:
        """Begin no stream after those on their way (RFC 9113 section 6.8)."""
        if self.draining or self.phase.is_ending:
            return
        self.draining = True
        self._draining_since = self.loop.time()
        if self.transport is not None:
            self._announce_drain()
        # Otherwise the preface comes first: SETTINGS are to be the first frame.

    def _announce_drain(self) -> None:
        if self.last_allowed_id == MAX_STREAM_ID:
            self.emit(frames.goaway_frame(MAX_STREAM_ID, ErrorCode.NO_ERROR))

    def _end_drain_grace(self) -> None:
        """What was on its way has come: the streams so far are the last."""
        self._say_goodbye(ErrorCode.NO_ERROR)
        self._end_if_unused()

    def cut(self) -> tuple[int, int]:
        refused = cut = 0
        for stream in list(self.streams.values()):
            exchange = stream.exchange
            if exchange is not None and not exchange.status:
                stream.fail(exchange, 503)
                refused += 1
            elif (
                exchange is not None
                or stream.queued  # the rest of a response that was finished
                or (stream.tunnel is not None and not stream.end_sent)
            ):
                cut += 1
        if self.transport is None or self.phase.is_ending:
            return refused, cut  # maybe since the last refusal
        self._say_goodbye(ErrorCode.NO_ERROR)
        self._end_streams(None)
        if self.transport is not None:
            if self.transport.get_write_buffer_size() and cut:
                self.abort()
            else:
                self._end_read()
        return refused, cut
