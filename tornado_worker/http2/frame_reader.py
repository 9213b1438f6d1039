"""Reads a client's frames: bytes in, whole frames out.

Sans-IO. Checks what one frame shows by itself (RFC 9113 sections 4 and 6, RFC 9218 section
7.1); what depends on streams, windows or earlier settings is the connection's. Knows neither
streams nor fields.
"""

from __future__ import annotations

from tornado_worker.http2.errors import ConnectionFault, ErrorCode, StreamFault
from tornado_worker.http2.frames import (
    ACK,
    CONTINUATION,
    DATA,
    DEFAULT_MAX_FRAME_SIZE,
    END_HEADERS,
    FRAME_HEADER,
    GOAWAY,
    HEADERS,
    MAX_STREAM_ID,
    NAMES,
    PADDED,
    PING,
    PRIORITY,
    PRIORITY_FLAG,
    PRIORITY_UPDATE,
    PUSH_PROMISE,
    RST_STREAM,
    SELF_DEPENDENT,
    SETTINGS,
    WINDOW_UPDATE,
    kind_name,
    parse_31_bits,
    wrong_size,
)

__all__ = ["FrameReader"]

# CONTINUATION frames of one block beyond those its size may need: clients need none, and
# frames without a byte are work for nothing (CVE-2024-27316 and its kin).
SPARE_CONTINUATIONS = 8

ON_STREAMS = frozenset({DATA, HEADERS, PRIORITY, RST_STREAM, PUSH_PROMISE, CONTINUATION})
ON_CONNECTION = frozenset({SETTINGS, PING, GOAWAY, PRIORITY_UPDATE})
# Kinds whose payload has one size (bytes). PRIORITY has one too, but breaks its stream only.
EXACT_SIZES = {RST_STREAM: 4, PING: 8, WINDOW_UPDATE: 4}
LEAST_SIZES = {GOAWAY: 8, PRIORITY_UPDATE: 4}

FRAME_HEADER_SIZE = FRAME_HEADER.size
_unpack_head = FRAME_HEADER.unpack_from


class FrameReader:
    """The frames of one client, from behind the preface.

    `feed` what arrives, then take `next_frame` until it is None. After a ConnectionFault the
    reader is of no use; a StreamFault's frame has been consumed, and the next one follows.
    """

    __slots__ = (
        "_at",
        "_block",
        "_block_flags",
        "_block_size",
        "_block_stream",
        "_data",
        "_max_block_size",
        "_max_continuations",
        "_max_frame_size",
        "_more",
        "_need",
        "_size",
    )

    def __init__(
        self, max_frame_size: int = DEFAULT_MAX_FRAME_SIZE, max_block_size: int = 65_536
    ) -> None:
        self._max_frame_size = max_frame_size
        self._max_block_size = max_block_size
        self._max_continuations = SPARE_CONTINUATIONS + max_block_size // DEFAULT_MAX_FRAME_SIZE
        # `_data[_at:]` and then `_more` are unread, `_size` bytes in all. They are joined
        # when `_need` bytes have come, so that bytes that come one by one cost linear work.
        self._data = b""
        self._at = 0
        self._more = bytearray()
        self._size = 0
        self._need = FRAME_HEADER_SIZE
        # Of a field block that is not complete: its stream, HEADERS' flags, fragments.
        self._block_stream = 0
        self._block_flags = 0
        self._block: list[bytes] = []
        self._block_size = 0

    @property
    def waiting(self) -> int:
        """The bytes that were fed and not returned, an incomplete block's frames included."""
        return self._size + self._block_size + FRAME_HEADER_SIZE * len(self._block)

    def feed(self, data: bytes) -> None:
        """Keep what arrived; nothing is parsed here."""
        size = self._size
        if not size:
            self._data = data
            self._at = 0
        elif size < self._need <= size + len(data):
            self._data = b"".join((self._data[self._at :], self._more, data))
            self._at = 0
            self._more.clear()
        else:
            self._more += data
        self._size = size + len(data)

    def next_frame(self) -> tuple[int, int, int, bytes, int] | None:
        """Return kind, flags, stream, payload and size; None if more bytes are needed.

        DATA comes without its padding, and `size` is what flow control counts. HEADERS comes
        with the whole field block, without padding and priority fields. CONTINUATION never
        comes; unknown kinds do, and are to be ignored. Of a HEADERS frame nothing is a
        StreamFault: its block must be decoded first, or later ones cannot be.
        """
        while self._size >= self._need:
            data, at = self._data, self._at
            if len(data) - at < self._need:
                data, at = self._join(), 0
            length_and_kind, flags, stream_id = _unpack_head(data, at)
            kind = length_and_kind & 0xFF
            stream_id &= MAX_STREAM_ID
            need = self._need
            if need == FRAME_HEADER_SIZE:
                length = length_and_kind >> 8
                # The frames that most requests consist of need no more than this.
                if (
                    kind > HEADERS
                    or not stream_id
                    or length > self._max_frame_size
                    or self._block_stream
                ):
                    self._check_head(kind, flags, stream_id, length)
                need += length
                if self._size < need:
                    self._need = need
                    return None
                if len(data) - at < need:
                    data, at = self._join(), 0
            payload = data[at + FRAME_HEADER_SIZE : at + need]
            self._size -= need
            if self._size:
                self._at = at + need
            else:
                self._data = b""  # an idle connection must not hold on to what was read last
            self._need = FRAME_HEADER_SIZE
            if kind == DATA:
                if flags & PADDED:
                    payload = _without_padding(kind, payload)
                return kind, flags, stream_id, payload, need - FRAME_HEADER_SIZE
            if kind == HEADERS:
                if flags & (PADDED | PRIORITY_FLAG):
                    flags, payload = _strip_headers(flags, stream_id, payload)
                if flags & END_HEADERS and len(payload) <= self._max_block_size:
                    return kind, flags, stream_id, payload, need - FRAME_HEADER_SIZE
                self._block_stream = stream_id
                self._block_flags = flags
            if kind in (HEADERS, CONTINUATION):
                block = self._add_to_block(flags, payload)
                if block is not None:
                    flags, self._block_flags = self._block_flags | END_HEADERS, 0
                    return HEADERS, flags, stream_id, block, len(block)
            else:
                _check_payload(kind, stream_id, payload)
                return kind, flags, stream_id, payload, need - FRAME_HEADER_SIZE
        return None

    def _join(self) -> bytes:
        """Return what is unread in one piece."""
        self._data = b"".join((self._data[self._at :], self._more))
        self._at = 0
        self._more.clear()
        return self._data

    def _add_to_block(self, flags: int, fragment: bytes) -> bytes | None:
        """Return the block if this fragment completes it."""
        self._block.append(fragment)
        self._block_size += len(fragment)
        if self._block_size > self._max_block_size:
            raise ConnectionFault(
                ErrorCode.ENHANCE_YOUR_CALM,
                f"field block too large: expected at most {self._max_block_size} bytes; "
                f"got {self._block_size}",
            )
        if not flags & END_HEADERS:
            if len(self._block) > self._max_continuations:
                raise ConnectionFault(
                    ErrorCode.ENHANCE_YOUR_CALM,
                    "too many CONTINUATION frames: "
                    f"expected at most {self._max_continuations} in a field block",
                )
            return None
        block = b"".join(self._block)
        self._block.clear()
        self._block_size = self._block_stream = 0
        return block

    def _check_head(self, kind: int, flags: int, stream_id: int, length: int) -> None:
        """Refuse what the first nine bytes show to be wrong, before a payload is waited for."""
        if length > self._max_frame_size:
            # Of DATA a stream error would do; but then its payload must be read and dropped.
            raise wrong_size(kind, f"at most {self._max_frame_size}", length)
        if self._block_stream:
            if kind != CONTINUATION or stream_id != self._block_stream:
                raise ConnectionFault(
                    ErrorCode.PROTOCOL_ERROR,
                    f"expected CONTINUATION on stream {self._block_stream}; "
                    f"got {kind_name(kind)} on stream {stream_id}",
                )
        elif kind <= HEADERS:
            if not stream_id:
                raise _wrong_stream(kind, stream_id)
        elif kind in (CONTINUATION, PUSH_PROMISE):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"unexpected {NAMES[kind]} frame")
        elif (kind in ON_CONNECTION) if stream_id else (kind in ON_STREAMS):
            raise _wrong_stream(kind, stream_id)
        elif length != EXACT_SIZES.get(kind, length):
            raise wrong_size(kind, str(EXACT_SIZES[kind]), length)
        elif length < LEAST_SIZES.get(kind, 0):
            raise wrong_size(kind, f"at least {LEAST_SIZES[kind]}", length)
        elif kind == SETTINGS:
            if flags & ACK and length:
                raise wrong_size(kind, "0 with ACK", length)
            if length % 6:
                raise wrong_size(kind, "a multiple of 6", length)


def _wrong_stream(kind: int, stream_id: int) -> ConnectionFault:
    expected = "stream 0" if stream_id else "a stream"
    return ConnectionFault(
        ErrorCode.PROTOCOL_ERROR,
        f"{NAMES[kind]} frame on the wrong stream: expected {expected}; got {stream_id}",
    )


def _without_padding(kind: int, payload: bytes) -> bytes:
    """RFC 9113 section 6.1: the first byte is the number of bytes to drop at the end."""
    if not payload:
        raise wrong_size(kind, "at least 1 with PADDED", 0)
    padding = payload[0]
    if padding >= len(payload):
        raise ConnectionFault(
            ErrorCode.PROTOCOL_ERROR,
            f"too much padding in {NAMES[kind]} frame: expected at most {len(payload) - 1} bytes; "
            f"got {padding}",
        )
    return payload[1 : len(payload) - padding]


def _strip_headers(flags: int, stream_id: int, payload: bytes) -> tuple[int, bytes]:
    """Return flags and fragment of a HEADERS frame without padding and priority fields."""
    if flags & PADDED:
        payload = _without_padding(HEADERS, payload)
    if flags & PRIORITY_FLAG:
        # RFC 9113 section 6.2: these fields are obsolete, and ignored.
        if len(payload) < 5:
            raise wrong_size(HEADERS, "at least 5 bytes of priority fields", len(payload))
        if parse_31_bits(payload) == stream_id:
            flags |= SELF_DEPENDENT
        payload = payload[5:]
    return flags, payload


def _check_payload(kind: int, stream_id: int, payload: bytes) -> None:
    """Refuse values that a frame of this kind never has."""
    if kind == WINDOW_UPDATE:
        if not parse_31_bits(payload):
            reason = "wrong increment of window: expected 1 or more; got 0"
            if stream_id:
                raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, reason)
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, reason)
    elif kind == PRIORITY:
        if len(payload) != 5:
            raise StreamFault(
                stream_id,
                ErrorCode.FRAME_SIZE_ERROR,
                f"wrong size of PRIORITY frame: expected 5; got {len(payload)}",
            )
        if parse_31_bits(payload) == stream_id:
            # RFC 7540 section 5.3.1; RFC 9113 leaves it to us.
            raise StreamFault(
                stream_id, ErrorCode.PROTOCOL_ERROR, "a stream cannot depend on itself"
            )
    elif kind == PRIORITY_UPDATE and not parse_31_bits(payload):
        raise ConnectionFault(
            ErrorCode.PROTOCOL_ERROR, "wrong stream in PRIORITY_UPDATE: expected 1 or more; got 0"
        )
