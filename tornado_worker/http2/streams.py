"""The streams of an HTTP/2 connection: what each frame that is about one does.

Keeps the streams from their heads to their ends, and what is remembered of them. May know
heads, HPACK and streams. How the connection itself ends is `HTTP2Connection`'s, which builds
on it.

Order of events: `FrameReceiver` has a method here called for each frame; requests begin behind
the last frame of a turn, so that one that is cancelled at once costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from tornado.log import gen_log

from tornado_worker.connection.isolation import IsolatedLoop
from tornado_worker.connection.message_error import MessageError
from tornado_worker.connection.phase import Phase
from tornado_worker.http2 import frames
from tornado_worker.http2.ended_streams import EndedStreams
from tornado_worker.http2.errors import ConnectionFault, ErrorCode, StreamFault
from tornado_worker.http2.frames import END_STREAM, MAX_STREAM_ID
from tornado_worker.http2.head import Head, MalformedHead, check_trailers, read_head
from tornado_worker.http2.hpack import Decoder, HeaderListTooLarge
from tornado_worker.http2.interfaces import HTTP2Server
from tornado_worker.http2.receiver import FrameReceiver
from tornado_worker.http2.sender import SendingStream
from tornado_worker.http2.stream import HTTP2Stream
from tornado_worker.logs.guard import guarded

__all__ = ["StreamsConnection"]


class _RefusedHead(NamedTuple):
    """A request that never becomes a stream; a `connection.observer.RefusedBy`."""

    context: Any
    since: float


class StreamsConnection(FrameReceiver):
    """A connection as its streams know it."""

    __slots__ = (
        "_begun",
        "_decoder",
        "_ended",
        "_fed",
        "_head",
        "_head_fields",
        "_peer_leaves",
        "_watched",
        "draining",
        "last_allowed_id",
        "streams",
    )

    def __init__(self, server: HTTP2Server, loop: IsolatedLoop, addresses: tuple[Any, Any]) -> None:
        super().__init__(server, loop, addresses)
        self._decoder = Decoder(max_list_size=server.http2.header_list_max)
        #: Streams by id, until both sides have ended.
        self.streams: dict[int, HTTP2Stream] = {}
        #: The latest stream that the client may begin.
        self.last_allowed_id = MAX_STREAM_ID
        # Streams whose heads have come in this turn.
        self._begun: list[HTTP2Stream] = []
        # Streams whose bodies have come in this turn: the application is called once for all the
        # frames of a read. With the windows that grow, an upload costs half as much CPU so.
        self._fed: list[HTTP2Stream] = []
        self._ended = EndedStreams()
        # The latest head, and the fields it was made of: clients repeat it.
        self._head: Head | None = None
        self._head_fields: object = None
        # Streams that wait for the client.
        self._watched: dict[HTTP2Stream, None] = {}  # an empty set has 150 bytes more
        #: Whether no stream begins after those on their way.
        self.draining = False
        # Whether the client begins no more streams.
        self._peer_leaves = False

    # For HTTP2Connection

    def _end_idle(self) -> None:
        """End the connection, on which no stream is open."""
        raise NotImplementedError  # pragma: no cover (abstract)

    # FrameReceiver

    def open_streams(self) -> Mapping[int, HTTP2Stream]:
        return self.streams

    def _begin_streams(self) -> None:
        while self._begun:
            begun, self._begun = self._begun, []
            for stream in begun:
                if not stream.is_over:
                    stream.begin()
                if self.transport is None:
                    return

    def _deliver_bodies(self) -> None:
        while self._fed:
            fed, self._fed = self._fed, []
            for stream in fed:
                stream.deliver()
                if self.transport is None:
                    return

    # Frames

    def _on_headers(self, flags: int, stream_id: int, block: bytes, size: int) -> None:
        fields: Any
        too_large = False
        try:
            fields = self._decoder.decode(block)
        except HeaderListTooLarge:
            fields, too_large = (), True
        stream = self.streams.get(stream_id)
        if stream is not None:
            self._on_trailers(stream, flags, fields)
            return
        if stream_id <= self._last_id or not stream_id & 1:
            if self._ended.was_reset(stream_id):
                return
            if stream_id in self._ended:
                raise ConnectionFault(
                    ErrorCode.STREAM_CLOSED, f"HEADERS on stream {stream_id}, which has ended"
                )
            raise ConnectionFault(
                ErrorCode.PROTOCOL_ERROR,
                f"wrong stream: expected an odd one above {self._last_id}; got {stream_id}",
            )
        self._last_id = stream_id
        if stream_id == MAX_STREAM_ID:
            self._peer_leaves = True  # there are no ids after it
        if stream_id > self.last_allowed_id or not self._has_room():
            raise StreamFault(stream_id, ErrorCode.REFUSED_STREAM, "too many streams")
        if flags & frames.SELF_DEPENDENT:
            raise StreamFault(
                stream_id, ErrorCode.PROTOCOL_ERROR, "a stream cannot depend on itself"
            )
        try:
            if too_large:
                raise MessageError(431, "header section too large")
            head = self._head if fields is self._head_fields else None
            if head is None:
                head = read_head(fields, self.server.rules)
                self._head, self._head_fields = head, fields
        except MessageError as e:
            self._refuse_head(stream_id, flags, fields, e)
            return
        self._begin_stream(stream_id, head, bool(flags & END_STREAM))

    def _has_room(self) -> bool:
        """Whether one stream more may be open (RFC 9113 section 5.1.2)."""
        limit = self.server.http2.http2_max_concurrent_streams
        if len(self.streams) < limit:
            return True
        # The client does not count those that have ended on both sides, though a handler may
        # have sent all of its response and still run. There must be an end of these, too.
        open_ones = sum(not (s.request_ended and s.end_sent) for s in self.streams.values())
        return open_ones < limit and len(self.streams) < 2 * limit

    def _begin_stream(self, stream_id: int, head: Head, ended: bool) -> HTTP2Stream:
        if self.phase is not Phase.STREAMS:
            self._enter(Phase.STREAMS)
        stream = HTTP2Stream(
            self, stream_id, head, self._stream_receive_window, self._initial_send_window
        )
        stream.waiting_since = self.loop.time()
        if self._priorities:
            stream.urgency = self._priorities.pop(stream_id, stream.urgency)
        self.streams[stream_id] = stream
        self._begun.append(stream)
        if ended:
            stream.end_body()
        else:
            self._watched[stream] = None
        return stream

    def _refuse_head(self, stream_id: int, flags: int, fields: Any, error: MessageError) -> None:
        """Answer a request that never becomes an exchange, or reset its stream."""
        guarded(gen_log.info, "Malformed HTTP message from %s: %s", self.context, error)
        if self.server.observer is not None:
            values = dict(fields)
            line = b"%b %b HTTP/2.0" % (values.get(b":method", b""), values.get(b":path", b""))
            refused = _RefusedHead(self.context, self.loop.time())
            self.server.observer.exchange_failed(refused, None, error.status, line)
        if isinstance(error, MalformedHead):
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, str(error))
        fields = [(b":status", b"%d" % error.status), (b"content-length", b"0")]
        block = self.encoder.encode(fields)
        self.emit(frames.headers_frames(stream_id, block, True, self._frame_max))
        ended = bool(flags & END_STREAM)
        self._ended.add(stream_id, was_reset=not ended)
        if not ended:
            self.emit(frames.rst_stream_frame(stream_id, ErrorCode.NO_ERROR))
            self._guard.count_reset(self.loop.time())

    def _on_trailers(self, stream: HTTP2Stream, flags: int, fields: Any) -> None:
        """Take a second header section, which is dropped (RFC 9113 section 8.1)."""
        if stream.request_ended:
            raise StreamFault(stream.id, ErrorCode.STREAM_CLOSED, "HEADERS after END_STREAM")
        if stream.is_tunnel:
            # RFC 9113 section 8.5: only DATA and what manages the stream.
            raise StreamFault(stream.id, ErrorCode.PROTOCOL_ERROR, "HEADERS in a tunnel")
        if not flags & END_STREAM:
            raise StreamFault(stream.id, ErrorCode.PROTOCOL_ERROR, "trailers without END_STREAM")
        try:
            check_trailers(fields)
        except MalformedHead as e:
            raise StreamFault(stream.id, ErrorCode.PROTOCOL_ERROR, str(e)) from None
        stream.end_body()
        self._fed.append(stream)

    def _on_data(self, flags: int, stream_id: int, data: bytes, size: int) -> None:
        self._credit(size)
        ended = bool(flags & END_STREAM)
        if not data and not ended:
            self._guard.count_control_frame(self.loop.time())
        stream = self.streams.get(stream_id)
        if stream is None:
            self._check_begun(stream_id, frames.DATA)
            if not self._ended.was_reset(stream_id):
                raise StreamFault(stream_id, ErrorCode.STREAM_CLOSED, "DATA after END_STREAM")
        elif stream.request_ended:
            raise StreamFault(stream_id, ErrorCode.STREAM_CLOSED, "DATA after END_STREAM")
        else:
            stream.receive(data, size, ended)
            if not self._fed or self._fed[-1] is not stream:
                self._fed.append(stream)

    def _on_rst_stream(self, flags: int, stream_id: int, payload: bytes, size: int) -> None:
        self._check_begun(stream_id, frames.RST_STREAM)
        self._guard.count_reset(self.loop.time())
        stream = self.streams.get(stream_id)
        if stream is not None:
            stream.on_reset(None)

    def _on_goaway(self, flags: int, stream_id: int, payload: bytes, size: int) -> None:
        self._guard.count_control_frame(self.loop.time())
        self._peer_leaves = True
        self._end_if_unused()

    handlers: ClassVar = {
        **FrameReceiver.handlers,
        frames.DATA: _on_data,
        frames.HEADERS: _on_headers,
        frames.RST_STREAM: _on_rst_stream,
        frames.GOAWAY: _on_goaway,
    }

    # Ends of streams

    def forget(self, stream: HTTP2Stream) -> None:
        """Note that nothing more is sent or read on `stream`."""
        if self.streams.pop(stream.id, None) is None:
            return
        self._watched.pop(stream, None)
        self._ended.add(stream.id)
        if not self.streams and self.transport is not None and not self.phase.is_ending:
            self._enter(Phase.IDLE)
            self._end_if_unused()

    def note_reset(self, stream: HTTP2Stream) -> None:
        """Note that we have reset `stream`: what the client has sent meanwhile is no fault."""
        self._ended.add(stream.id, was_reset=True)

    def watch(self, stream: SendingStream) -> None:
        """Look at `stream` in each sweep, as long as it waits for the client."""
        assert isinstance(stream, HTTP2Stream)
        self._watched[stream] = None

    def _end_stream_with(self, fault: StreamFault) -> None:
        if fault.code is ErrorCode.REFUSED_STREAM and not self._settings_acknowledged:
            # It does not know the limit yet, and may have begun hundreds at once.
            self._guard.count_control_frame(self.loop.time())
        else:
            self._guard.count_reset(self.loop.time())
        if fault.code is not ErrorCode.REFUSED_STREAM:
            guarded(gen_log.info, "HTTP/2 error of %s: %s", self.context, fault)
        stream = self.streams.get(fault.stream_id)
        if stream is not None:
            stream.reset(fault.code)
        else:
            self.emit(frames.rst_stream_frame(fault.stream_id, fault.code))
            if fault.stream_id <= self._last_id:
                self._ended.add(fault.stream_id, was_reset=True)

    def _end_if_unused(self) -> None:
        """End the connection if nothing is open, and nothing is to come."""
        if self.streams or self.phase.is_ending or self.transport is None:
            return
        drained = self.draining and self.last_allowed_id != MAX_STREAM_ID
        if drained or self._peer_leaves or self.server.conn_params.no_keep_alive:
            self._end_idle()

    def _forget_details(self) -> None:
        """Keep little of what is over, for a connection that may be idle for long."""
        self._head = self._head_fields = None
        self._decoder.forget_blocks()
        self._ended.keep_resets()
