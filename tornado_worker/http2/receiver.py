"""The receiving side of an HTTP/2 connection: frames in, a share of them in each turn.

Finds the preface and the frames, heeds what is about the connection as a whole (settings,
windows, PING, priorities), and hands the frames of streams to `HTTP2Connection`, which
builds on it. May know frames and HPACK; never heads or exchanges.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

from tornado_worker.connection.flow import PIECE_MAX, WRITE_SHARE
from tornado_worker.connection.isolation import IsolatedLoop
from tornado_worker.http2 import frames
from tornado_worker.http2.errors import ConnectionFault, ErrorCode, StreamFault
from tornado_worker.http2.floods import FloodGuard
from tornado_worker.http2.frame_reader import FrameReader
from tornado_worker.http2.frames import ACK, MAX_WINDOW_SIZE, PREFACE
from tornado_worker.http2.interfaces import HTTP2Server
from tornado_worker.http2.priority import read_urgency
from tornado_worker.http2.sender import FrameSender, SendingStream

__all__ = ["FrameReceiver", "Handler", "ReceivingStream"]

# Bytes of bodies that a client may send on all streams together. It gets them back at once:
# one slow upload must not starve the others. Each stream's own window bounds what waits.
_RECEIVE_WINDOW = 1024 * 1024
# What a connection may read in one turn of the loop: frames, where one that begins a request
# counts as many, and one more for so many bytes of its head, which may stand for a field each;
# and bytes.
_FRAMES_SHARE = 256
_REQUEST_COST = 16
_HEAD_PIECE = 32
_BYTES_SHARE = 256 * 1024
# Frames that wait for a turn, beyond which the socket is left alone (bytes).
_WAITING_MAX = 64 * 1024
# Heads and control frames that the client does not take, beyond which it is not read (bytes).
_UNTAKEN_MAX = 256 * 1024
# Priorities that came before their streams.
_PRIORITIES_MAX = 100

#: Takes a frame: the connection, its flags, stream, payload, and size as flow control counts.
Handler = Callable[[Any, int, int, bytes, int], None]


class ReceivingStream(SendingStream, Protocol):
    """One stream, as `FrameReceiver` knows it."""

    def count_acknowledged(self, difference: int) -> None:
        """The peer knows our SETTINGS: its window is by `difference` bytes larger."""


class FrameReceiver(FrameSender):
    """A connection as its client sends on it."""

    __slots__ = (
        "_frames",
        "_guard",
        "_last_id",
        "_preface",
        "_priorities",
        "_receive_window",
        "_settings_acknowledged",
        "_settings_received",
        "_stream_receive_window",
        "_waits_for_reader",
        "_waits_for_turn",
        "_waits_since",
        "_withheld",
    )

    def __init__(self, server: HTTP2Server, loop: IsolatedLoop, addresses: tuple[Any, Any]) -> None:
        super().__init__(server, loop, addresses)
        options = server.http2
        self._frames = FrameReader(options.http2_max_frame_size, options.header_list_max)
        # What the client's preface lacks.
        self._preface = PREFACE
        self._settings_received = False
        # The latest stream that the client has begun.
        self._last_id = 0
        self._priorities: dict[int, int] = {}
        self._guard = FloodGuard()
        self._receive_window = frames.DEFAULT_WINDOW_SIZE
        # A smaller window than the default binds the client only when it knows.
        self._stream_receive_window = max(
            options.http2_initial_window_size, frames.DEFAULT_WINDOW_SIZE
        )
        self._settings_acknowledged = False
        # Whether frames wait for another turn; since when the latest frame is incomplete.
        self._waits_for_turn = False
        # Whether they wait until the client takes what was sent.
        self._waits_for_reader = False
        self._waits_since: float | None = None
        # What an upgrade keeps of the client's window until its preface comes.
        self._withheld = 0

    # For HTTP2Connection

    def open_streams(self) -> Mapping[int, ReceivingStream]:
        """Return the streams that both sides have not ended, by id."""
        raise NotImplementedError  # pragma: no cover (abstract)

    def _begin_streams(self) -> None:
        """Begin the requests whose heads have come in this turn."""
        raise NotImplementedError  # pragma: no cover (abstract)

    def _deliver_bodies(self) -> None:
        """Hand over what has come of bodies in this turn."""
        raise NotImplementedError  # pragma: no cover (abstract)

    def _end_with(self, fault: ConnectionFault) -> None:
        """Tell the client what it did wrong, and close (RFC 9113 section 5.4.1)."""
        raise NotImplementedError  # pragma: no cover (abstract)

    def _end_stream_with(self, fault: StreamFault) -> None:
        """Tell the client what it did wrong on one stream (RFC 9113 section 5.4.2)."""
        raise NotImplementedError  # pragma: no cover (abstract)

    # Reading

    def _send_preface(self) -> None:
        options = self.server.http2
        self.emit(
            frames.settings_frame(
                (
                    (
                        frames.SETTINGS_MAX_CONCURRENT_STREAMS,
                        options.http2_max_concurrent_streams,
                    ),
                    (frames.SETTINGS_INITIAL_WINDOW_SIZE, options.http2_initial_window_size),
                    (frames.SETTINGS_MAX_FRAME_SIZE, options.http2_max_frame_size),
                    (
                        frames.SETTINGS_MAX_HEADER_LIST_SIZE,
                        options.header_list_max,
                    ),
                    (frames.SETTINGS_ENABLE_CONNECT_PROTOCOL, 1),
                    (frames.SETTINGS_NO_RFC7540_PRIORITIES, 1),
                )
            )
        )
        self._credit(0)

    def data_received(self, data: bytes) -> None:
        if self.phase.is_ending:
            return  # read and forget, so that unread bytes make no reset of our last frames
        if len(data) >= PIECE_MAX:
            self.read_pieces(True)
        if self._preface:
            data = self._read_preface(data)
            if not data:
                return
        self._frames.feed(data)
        if self._waits_for_turn:
            if self._frames.waiting > _WAITING_MAX:
                self._inbox.pause()
            return
        if self.write_share > 0:
            self.write_share = WRITE_SHARE
        self._read_frames()

    def _read_preface(self, data: bytes) -> bytes:
        """Return what follows the preface (RFC 9113 section 3.4)."""
        expected = self._preface
        if not data.startswith(expected) and not expected.startswith(data):
            self._end_with(ConnectionFault(ErrorCode.PROTOCOL_ERROR, "wrong connection preface"))
            return b""
        self._preface = expected[len(data) :]
        return data[len(expected) :]

    def _read_frames(self) -> None:
        """Take the frames that have come, as many as fit in a turn."""
        share = _FRAMES_SHARE
        size_share = _BYTES_SHARE
        next_frame = self._frames.next_frame
        handlers = self.handlers
        try:
            while share > 0 and size_share > 0:
                try:
                    frame = next_frame()
                    if frame is None:
                        break
                    kind, flags, stream_id, payload, size = frame
                    if not self._settings_received and kind != frames.SETTINGS:
                        raise ConnectionFault(
                            ErrorCode.PROTOCOL_ERROR,
                            "wrong first frame: expected SETTINGS; got " + frames.kind_name(kind),
                        )
                    share -= _REQUEST_COST + size // _HEAD_PIECE if kind == frames.HEADERS else 1
                    size_share -= size
                    handler = handlers.get(kind)
                    if handler is None:
                        # A kind that nobody knows is ignored (RFC 9113 section 5.5).
                        self._guard.count_control_frame(self.loop.time())
                    else:
                        handler(self, flags, stream_id, payload, size)
                except StreamFault as fault:
                    self._end_stream_with(fault)
                if self.phase.is_ending or self.transport is None:
                    return
        except ConnectionFault as fault:
            self._end_with(fault)
            return
        self._begin_streams()
        self._deliver_bodies()
        if self.phase.is_ending or self.transport is None:
            return
        if self._writing_paused and self.transport.get_write_buffer_size() > _UNTAKEN_MAX:
            self._waits_for_turn = self._waits_for_reader = True
            self._inbox.pause()
        elif share <= 0 or size_share <= 0:
            self._waits_for_turn = True
            self._inbox.pause()
            self.server.turns.wait(self._on_turn)
        elif not self._frames.waiting:
            self._waits_since = None
        elif self._waits_since is None or share < _FRAMES_SHARE:
            # The latest frame: an upload whose reads end within frames goes on as it should.
            self._waits_since = self.loop.time()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._waits_for_reader:
            self._waits_for_reader = False
            self.server.turns.wait(self._on_turn)

    def _on_turn(self) -> None:
        if self.transport is None or self.phase.is_ending:
            return
        self._waits_for_turn = False
        self._waits_since = None
        self._read_frames()
        if not self._waits_for_turn and not self.phase.is_ending:
            self._inbox.resume()

    def _credit(self, size: int) -> None:
        """Count `size` bytes of bodies against the connection's window, and open it again."""
        self._receive_window -= size
        if self._receive_window < 0:
            raise ConnectionFault(
                ErrorCode.FLOW_CONTROL_ERROR, "more than the connection's window allows"
            )
        if self._receive_window <= _RECEIVE_WINDOW // 2:
            self.emit(frames.window_update_frame(0, _RECEIVE_WINDOW - self._receive_window))
            self._receive_window = _RECEIVE_WINDOW

    def _check_begun(self, stream_id: int, kind: int) -> None:
        """RFC 9113 section 5.1: on an idle stream nothing comes before HEADERS."""
        if stream_id > self._last_id or not stream_id & 1:
            raise ConnectionFault(
                ErrorCode.PROTOCOL_ERROR, f"{frames.kind_name(kind)} on idle stream {stream_id}"
            )

    def _on_settings(self, flags: int, stream_id: int, payload: bytes, size: int) -> None:
        self._settings_received = True
        self._guard.count_control_frame(self.loop.time())
        if flags & ACK:
            if not self._settings_acknowledged:
                self._settings_acknowledged = True
                window = self.server.http2.http2_initial_window_size
                difference = window - self._stream_receive_window
                self._stream_receive_window = window
                for stream in self.open_streams().values():
                    stream.count_acknowledged(difference)
            return
        self.apply_settings(dict(frames.parse_settings(payload)))
        # Before what they allow: the client counts from here.
        self.emit(frames.SETTINGS_ACK)
        self.send_window += self._withheld
        self._withheld = 0
        self._go_on()

    def apply_settings(self, settings: dict[int, int]) -> None:
        """Heed the client's settings, of one name the last. Raises ConnectionFault."""
        for name, value in settings.items():
            if name == frames.SETTINGS_INITIAL_WINDOW_SIZE:
                difference = value - self._initial_send_window
                self._initial_send_window = value
                for stream in self.open_streams().values():
                    stream.send_window += difference
                    if stream.send_window > MAX_WINDOW_SIZE:
                        raise ConnectionFault(
                            ErrorCode.FLOW_CONTROL_ERROR, "settings make a window too large"
                        )
                    self.make_ready(stream)
            elif name == frames.SETTINGS_HEADER_TABLE_SIZE:
                self.encoder.set_max_table_size(value)
            elif name == frames.SETTINGS_MAX_FRAME_SIZE:
                # Larger ones would let one stream keep the others waiting.
                self._frame_max = min(value, frames.DEFAULT_MAX_FRAME_SIZE)

    def _on_ping(self, flags: int, stream_id: int, payload: bytes, size: int) -> None:
        self._guard.count_control_frame(self.loop.time())
        if not flags & ACK:
            self.emit(frames.ping_ack(payload))

    def _on_window_update(self, flags: int, stream_id: int, payload: bytes, size: int) -> None:
        increment = frames.parse_31_bits(payload)
        if not stream_id:
            self.send_window += increment
            self._window_opened_at = self.loop.time()
            if self.send_window > MAX_WINDOW_SIZE:
                raise ConnectionFault(
                    ErrorCode.FLOW_CONTROL_ERROR, "the connection's window is too large"
                )
        else:
            self._check_begun(stream_id, frames.WINDOW_UPDATE)
            stream = self.open_streams().get(stream_id)
            if stream is None:
                return
            stream.send_window += increment
            if stream.send_window > MAX_WINDOW_SIZE:
                raise StreamFault(
                    stream_id, ErrorCode.FLOW_CONTROL_ERROR, "the stream's window is too large"
                )
            stream.waiting_since = self.loop.time()
            self.make_ready(stream)
        self._go_on()

    def _on_priority(self, flags: int, stream_id: int, payload: bytes, size: int) -> None:
        # RFC 9113 section 5.3: the scheme of RFC 7540 is not used; our SETTINGS say so.
        self._guard.count_control_frame(self.loop.time())

    def _on_priority_update(self, flags: int, stream_id: int, payload: bytes, size: int) -> None:
        self._guard.count_control_frame(self.loop.time())
        prioritized, value = frames.parse_priority_update(payload)
        if not prioritized & 1:
            raise ConnectionFault(
                ErrorCode.PROTOCOL_ERROR, f"PRIORITY_UPDATE for stream {prioritized}"
            )
        urgency = read_urgency(value)
        stream = self.open_streams().get(prioritized)
        if stream is not None:
            self.set_urgency(stream, urgency)
        elif prioritized > self._last_id and len(self._priorities) < _PRIORITIES_MAX:
            self._priorities[prioritized] = urgency

    #: The methods for frames, by kind; `HTTP2Connection` adds those of streams.
    handlers: ClassVar[Mapping[int, Handler]] = {
        frames.PRIORITY: _on_priority,
        frames.SETTINGS: _on_settings,
        frames.PING: _on_ping,
        frames.WINDOW_UPDATE: _on_window_update,
        frames.PRIORITY_UPDATE: _on_priority_update,
    }
