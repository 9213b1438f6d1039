"""One HTTP/2 connection as a client sees it: every frame from the server is checked.

Against RFC 9113: the order of frames, windows, sizes, stream states, the form of fields and
the lengths of bodies. Has HPACK from the package `hpack` and shares no code with the server.
"""

from __future__ import annotations

import collections
import socket
import struct
from dataclasses import dataclass, field
from typing import NamedTuple

import hpack

from helpers.http2_fields import Field, check_response_fields, check_trailers
from helpers.http2_frames import (
    DEFAULT_FRAME_SIZE,
    DEFAULT_WINDOW,
    HEAD,
    LARGEST_WINDOW,
    PAIR,
    Code,
    Flag,
    Frame,
    GoAway,
    Kind,
    Setting,
    frame_bytes,
)
from helpers.waiting import DEADLINE_S

__all__ = ["Http2Connection", "Response", "Stream"]


class Response(NamedTuple):
    status: int
    fields: list[Field]
    body: bytes
    trailers: list[Field] | None

    def values(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.fields if key == name]


@dataclass
class Stream:
    """What the server has sent on a stream, and what either side may still send."""

    method: bytes
    credit: int
    """How much DATA the server may send."""
    window: int
    """How much DATA the server takes."""
    fields: list[Field] | None = None
    interim: list[list[Field]] = field(default_factory=list)
    trailers: list[Field] | None = None
    data: bytearray = field(default_factory=bytearray)
    ended: bool = False
    reset: int | None = None
    unreturned: int = 0

    @property
    def closed(self) -> bool:
        return self.ended or self.reset is not None


class Http2Connection:
    """Reads frames, checks them and keeps books of streams and windows.

    `auto_credit`: give back at once what a response takes of the windows. `received` has come
    from the socket before.
    """

    def __init__(self, sock: socket.socket, received: bytes = b"") -> None:
        self.sock = sock
        self.auto_credit = True
        self.encoder = hpack.Encoder()
        self.decoder = hpack.Decoder()
        self.decoder.max_header_list_size = 1 << 20
        self._buffer = bytearray(received)
        self.closed = False
        self.frames: list[Frame] = []
        self.streams: dict[int, Stream] = {}
        self.highest_stream_id = 0
        self.goaways: list[GoAway] = []
        self.server_settings: dict[int, int] = {}
        self.settings_acks = 0
        self.unacknowledged: collections.deque[list[tuple[int, int]]] = collections.deque()
        self.initial_credit = DEFAULT_WINDOW  # of streams, as acknowledged
        self.largest_frame = DEFAULT_FRAME_SIZE
        self.credit = DEFAULT_WINDOW
        self.window = DEFAULT_WINDOW
        self._unreturned = 0
        self.ping_answers: list[bytes] = []

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def send_frame(
        self, kind: int, flags: int = 0, stream_id: int = 0, payload: bytes = b""
    ) -> None:
        self.send(frame_bytes(kind, flags, stream_id, payload))

    def give_credit(self, stream_id: int, increment: int) -> None:
        if stream_id == 0:
            self.credit += increment
        elif stream_id in self.streams:
            self.streams[stream_id].credit += increment
        self.send_frame(Kind.WINDOW_UPDATE, 0, stream_id, struct.pack(">L", increment))

    def take(self) -> Frame | None:
        """Read, check and note the next frame; None at the end of the connection."""
        head = self._read(9)
        if head is None:
            return None
        high, low, kind, flags, stream_id = HEAD.unpack(head)
        size = high << 8 | low
        assert size <= self.largest_frame, f"frame of {size} bytes"
        assert not stream_id >> 31, "the reserved bit is set"
        payload = self._read(size) if size else b""
        assert payload is not None, "the connection ended within a frame"
        frame = Frame(kind, flags, stream_id, payload)
        assert self.frames or kind == Kind.SETTINGS, "the first frame is not SETTINGS (3.4)"
        self.frames.append(frame)
        take = {
            Kind.DATA: self._take_data,
            Kind.HEADERS: self._take_headers,
            Kind.RST_STREAM: self._take_reset,
            Kind.SETTINGS: self._take_settings,
            Kind.PING: self._take_ping,
            Kind.GOAWAY: self._take_goaway,
            Kind.WINDOW_UPDATE: self._take_window_update,
        }.get(kind)
        assert take is not None, f"frame of kind {kind:#x} from a server"
        take(frame)
        return frame

    def _read(self, size: int) -> bytes | None:
        while len(self._buffer) < size:
            if self.closed:
                return None
            try:
                data = self.sock.recv(1 << 18)
            except TimeoutError:
                raise AssertionError(f"nothing for {DEADLINE_S:g} s; {self.summary()}") from None
            except ConnectionError:
                # Behind a GOAWAY, the server may close with bytes of ours unread.
                data = b""
            if not data:
                self.closed = True
                assert not self._buffer, "the connection ended within a frame"
                return None
            self._buffer += data
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def _stream(self, frame: Frame) -> Stream:
        assert frame.stream_id in self.streams, f"frame on a stream that is not ours: {frame}"
        stream = self.streams[frame.stream_id]
        allowed = (Kind.RST_STREAM, Kind.WINDOW_UPDATE) if stream.reset is None else ()
        assert not stream.closed or frame.kind in allowed, f"frame on a closed stream: {frame}"
        return stream

    def _unpadded(self, frame: Frame) -> bytes:
        if not frame.flags & Flag.PADDED:
            return frame.payload
        assert frame.payload[0] < len(frame.payload)
        return frame.payload[1 : len(frame.payload) - frame.payload[0]]

    def _take_data(self, frame: Frame) -> None:
        stream = self._stream(frame)
        size = len(frame.payload)
        assert stream.fields is not None, "DATA before HEADERS (8.1)"
        # An empty frame may be sent whatever the windows are (6.9.1).
        assert size == 0 or size <= self.credit, f"{size} bytes; connection window {self.credit}"
        assert size == 0 or size <= stream.credit, f"{size} bytes; stream window {stream.credit}"
        self.credit -= size
        stream.credit -= size
        stream.data += self._unpadded(frame)
        if frame.flags & Flag.END_STREAM:
            self._end(stream)
        if not self.auto_credit:
            return
        self._unreturned += size
        stream.unreturned += size
        if self._unreturned > 16384:
            self.give_credit(0, self._unreturned)
            self._unreturned = 0
        if stream.unreturned > 16384 and not stream.ended:
            self.give_credit(frame.stream_id, stream.unreturned)
            stream.unreturned = 0

    def _take_headers(self, frame: Frame) -> None:
        stream = self._stream(frame)
        block = self._unpadded(frame)[5 if frame.flags & Flag.PRIORITY else 0 :]
        ended = frame.flags & Flag.END_HEADERS
        while not ended:
            head = self._read(9)
            assert head is not None
            high, low, kind, flags, stream_id = HEAD.unpack(head)
            assert (kind, stream_id) == (Kind.CONTINUATION, frame.stream_id)
            part = self._read(high << 8 | low)
            assert part is not None
            self.frames.append(Frame(kind, flags, stream_id, part))
            block += part
            ended = flags & Flag.END_HEADERS
        fields = [
            (bytes(name), bytes(value)) for name, value in self.decoder.decode(block, raw=True)
        ]
        if stream.fields is not None:
            check_trailers(fields)
            assert frame.flags & Flag.END_STREAM, "trailers without END_STREAM (8.1)"
            stream.trailers = fields
        elif check_response_fields(fields) < 200:
            assert not frame.flags & Flag.END_STREAM, "an interim response ends the stream (8.1)"
            stream.interim.append(fields)
        else:
            stream.fields = fields
        if frame.flags & Flag.END_STREAM:
            self._end(stream)

    def _end(self, stream: Stream) -> None:
        stream.ended = True
        response = self.response_on(stream)
        lengths = response.values(b"content-length")
        assert len(lengths) <= 1, lengths
        if stream.method == b"HEAD" or response.status in (204, 304):
            assert not response.body, "a response that has no body has one (8.1.1)"
        elif lengths:
            assert int(lengths[0]) == len(response.body), "content-length is wrong (8.1.1)"

    def _take_reset(self, frame: Frame) -> None:
        stream = self._stream(frame)
        (stream.reset,) = struct.unpack(">L", frame.payload)

    def _take_settings(self, frame: Frame) -> None:
        assert frame.stream_id == 0
        if frame.flags & Flag.ACK:
            assert not frame.payload
            assert self.unacknowledged, "acknowledges settings that were not sent"
            self.settings_acks += 1
            for key, value in self.unacknowledged.popleft():
                if key == Setting.INITIAL_WINDOW_SIZE:
                    for stream in self.streams.values():
                        stream.credit += value - self.initial_credit
                    self.initial_credit = value
                elif key == Setting.HEADER_TABLE_SIZE:
                    self.decoder.max_allowed_table_size = value
            return
        for i in range(0, len(frame.payload), 6):
            key, value = PAIR.unpack_from(frame.payload, i)
            if key == Setting.INITIAL_WINDOW_SIZE:
                before = self.server_settings.get(key, DEFAULT_WINDOW)
                for stream in self.streams.values():
                    stream.window += value - before
            self.server_settings[key] = value
        self.send_frame(Kind.SETTINGS, Flag.ACK)

    def _take_ping(self, frame: Frame) -> None:
        assert (frame.stream_id, len(frame.payload)) == (0, 8)
        if frame.flags & Flag.ACK:
            self.ping_answers.append(frame.payload)
        else:
            self.send_frame(Kind.PING, Flag.ACK, payload=frame.payload)

    def _take_goaway(self, frame: Frame) -> None:
        assert frame.stream_id == 0
        last_stream_id, code = struct.unpack_from(">LL", frame.payload)
        goaway = GoAway(last_stream_id, code, frame.payload[8:])
        if self.goaways:
            assert goaway.last_stream_id <= self.goaways[-1].last_stream_id, "increased (6.8)"
        if goaway.code != Code.NO_ERROR:
            assert goaway.last_stream_id <= self.highest_stream_id, "never opened (5.4.1)"
        self.goaways.append(goaway)

    def _take_window_update(self, frame: Frame) -> None:
        (increment,) = struct.unpack(">L", frame.payload)
        assert 0 < increment <= LARGEST_WINDOW
        if frame.stream_id:
            stream = self._stream(frame)
            stream.window += increment
            assert stream.window <= LARGEST_WINDOW
        else:
            self.window += increment
            assert self.window <= LARGEST_WINDOW

    def response_on(self, stream: Stream) -> Response:
        assert stream.fields is not None
        return Response(
            int(stream.fields[0][1]), stream.fields, bytes(stream.data), stream.trailers
        )

    def summary(self) -> str:
        last = ", ".join(
            f"{Kind(f.kind).name if f.kind in Kind._value2member_map_ else f.kind}"
            f" {f.flags:#x} on {f.stream_id} ({len(f.payload)})"
            for f in self.frames[-8:]
        )
        return f"last frames: {last or 'none'}; {self.goaways or 'no GOAWAY'}"
