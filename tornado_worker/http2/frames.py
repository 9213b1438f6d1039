"""The form of frames: kinds, flags, settings; payloads parsed and frames written.

Sans-IO (RFC 9113 sections 4 and 6, RFC 8441, RFC 9218 section 7.1). frame_reader.py finds the
frames in what arrives, and checks them. Knows neither streams nor fields.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from tornado_worker.http2.errors import ConnectionFault, ErrorCode

__all__ = [
    "ACK",
    "CONTINUATION",
    "DATA",
    "DEFAULT_MAX_FRAME_SIZE",
    "DEFAULT_WINDOW_SIZE",
    "END_HEADERS",
    "END_STREAM",
    "FRAME_HEADER",
    "GOAWAY",
    "HEADERS",
    "MAX_STREAM_ID",
    "MAX_WINDOW_SIZE",
    "NAMES",
    "PADDED",
    "PING",
    "PREFACE",
    "PRIORITY",
    "PRIORITY_FLAG",
    "PRIORITY_UPDATE",
    "PUSH_PROMISE",
    "RST_STREAM",
    "SELF_DEPENDENT",
    "SETTINGS",
    "SETTINGS_ACK",
    "SETTINGS_ENABLE_CONNECT_PROTOCOL",
    "SETTINGS_ENABLE_PUSH",
    "SETTINGS_HEADER_TABLE_SIZE",
    "SETTINGS_INITIAL_WINDOW_SIZE",
    "SETTINGS_MAX_CONCURRENT_STREAMS",
    "SETTINGS_MAX_FRAME_SIZE",
    "SETTINGS_MAX_HEADER_LIST_SIZE",
    "SETTINGS_NO_RFC7540_PRIORITIES",
    "WINDOW_UPDATE",
    "data_frame",
    "frame",
    "goaway_frame",
    "headers_frames",
    "kind_name",
    "parse_31_bits",
    "parse_priority_update",
    "parse_settings",
    "ping_ack",
    "rst_stream_frame",
    "settings_frame",
    "window_update_frame",
    "wrong_size",
]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

# Kinds (RFC 9113 section 6, RFC 9218 section 7.1).
DATA = 0x0
HEADERS = 0x1
PRIORITY = 0x2
RST_STREAM = 0x3
SETTINGS = 0x4
PUSH_PROMISE = 0x5
PING = 0x6
GOAWAY = 0x7
WINDOW_UPDATE = 0x8
CONTINUATION = 0x9
PRIORITY_UPDATE = 0x10

# Flags. SELF_DEPENDENT is no flag of the wire: a reader sets it where the priority fields of
# HEADERS name the stream itself.
END_STREAM = 0x1
ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
PRIORITY_FLAG = 0x20
SELF_DEPENDENT = 0x100

# Settings (RFC 9113 section 6.5.2, RFC 8441 section 3, RFC 9218 section 2.1).
SETTINGS_HEADER_TABLE_SIZE = 0x1
SETTINGS_ENABLE_PUSH = 0x2
SETTINGS_MAX_CONCURRENT_STREAMS = 0x3
SETTINGS_INITIAL_WINDOW_SIZE = 0x4
SETTINGS_MAX_FRAME_SIZE = 0x5
SETTINGS_MAX_HEADER_LIST_SIZE = 0x6
SETTINGS_ENABLE_CONNECT_PROTOCOL = 0x8
SETTINGS_NO_RFC7540_PRIORITIES = 0x9

DEFAULT_WINDOW_SIZE = 65_535
MAX_WINDOW_SIZE = 2**31 - 1
DEFAULT_MAX_FRAME_SIZE = 16_384
MAX_FRAME_SIZE_BOUND = 2**24 - 1
MAX_STREAM_ID = 2**31 - 1

# The bounds of settings that have any: lowest, highest, what others are.
SETTING_BOUNDS = {
    SETTINGS_ENABLE_PUSH: (0, 1, ErrorCode.PROTOCOL_ERROR),
    SETTINGS_INITIAL_WINDOW_SIZE: (0, MAX_WINDOW_SIZE, ErrorCode.FLOW_CONTROL_ERROR),
    SETTINGS_MAX_FRAME_SIZE: (
        DEFAULT_MAX_FRAME_SIZE,
        MAX_FRAME_SIZE_BOUND,
        ErrorCode.PROTOCOL_ERROR,
    ),
    SETTINGS_ENABLE_CONNECT_PROTOCOL: (0, 1, ErrorCode.PROTOCOL_ERROR),
    SETTINGS_NO_RFC7540_PRIORITIES: (0, 1, ErrorCode.PROTOCOL_ERROR),
}

NAMES = {
    DATA: "DATA",
    HEADERS: "HEADERS",
    PRIORITY: "PRIORITY",
    RST_STREAM: "RST_STREAM",
    SETTINGS: "SETTINGS",
    PUSH_PROMISE: "PUSH_PROMISE",
    PING: "PING",
    GOAWAY: "GOAWAY",
    WINDOW_UPDATE: "WINDOW_UPDATE",
    CONTINUATION: "CONTINUATION",
    PRIORITY_UPDATE: "PRIORITY_UPDATE",
}

# Length (24 bits) and kind in one number, flags, stream.
FRAME_HEADER = struct.Struct(">LBL")
_SETTING = struct.Struct(">HL")
_NUMBER = struct.Struct(">L")
_TWO_NUMBERS = struct.Struct(">LL")
_pack_head = FRAME_HEADER.pack


def kind_name(kind: int) -> str:
    return NAMES.get(kind, f"kind 0x{kind:x}")


def wrong_size(kind: int, expected: str, got: int) -> ConnectionFault:
    return ConnectionFault(
        ErrorCode.FRAME_SIZE_ERROR,
        f"wrong size of {kind_name(kind)} frame: expected {expected}; got {got}",
    )


def parse_settings(payload: bytes) -> list[tuple[int, int]]:
    """Return identifiers and values in their order, unknown ones too.

    Raises ConnectionFault for a value out of its bounds. The payload may come of the field
    HTTP2-Settings as well.
    """
    if len(payload) % _SETTING.size:
        raise wrong_size(SETTINGS, "a multiple of 6", len(payload))
    pairs = list(_SETTING.iter_unpack(payload))
    for identifier, value in pairs:
        bounds = SETTING_BOUNDS.get(identifier)
        if bounds is not None and not bounds[0] <= value <= bounds[1]:
            raise ConnectionFault(
                bounds[2],
                f"wrong value of setting 0x{identifier:x}: "
                f"expected {bounds[0]} to {bounds[1]}; got {value}",
            )
    return pairs


def parse_31_bits(payload: bytes) -> int:
    """Return the number at the beginning: a stream, or the increment of a window."""
    number: int = _NUMBER.unpack_from(payload)[0]
    return number & MAX_STREAM_ID  # the first bit is reserved


def parse_priority_update(payload: bytes) -> tuple[int, bytes]:
    """Return the stream that is meant, and its `priority` as that field would say it."""
    return parse_31_bits(payload), payload[4:]


def frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    """Return a frame of any kind."""
    return _pack_head(len(payload) << 8 | kind, flags, stream_id) + payload


def data_frame(stream_id: int, data: bytes | memoryview, end_stream: bool) -> bytes:
    """Return one DATA frame; `data` is at most as long as the peer's largest frame."""
    return _pack_head(len(data) << 8, end_stream, stream_id) + data


def headers_frames(stream_id: int, block: bytes, end_stream: bool, max_frame_size: int) -> bytes:
    """Return HEADERS, and the CONTINUATIONs that a long block needs."""
    if len(block) <= max_frame_size:
        flags = END_HEADERS | END_STREAM if end_stream else END_HEADERS
        return _pack_head(len(block) << 8 | HEADERS, flags, stream_id) + block
    starts = range(0, len(block), max_frame_size)
    return b"".join(
        frame(
            CONTINUATION if start else HEADERS,
            (0 if start else int(end_stream)) | (END_HEADERS if start == starts[-1] else 0),
            stream_id,
            block[start : start + max_frame_size],
        )
        for start in starts
    )


def rst_stream_frame(stream_id: int, code: int) -> bytes:
    return frame(RST_STREAM, 0, stream_id, _NUMBER.pack(code))


def settings_frame(pairs: Iterable[tuple[int, int]]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(*pair) for pair in pairs))


SETTINGS_ACK = frame(SETTINGS, ACK, 0, b"")


def ping_ack(payload: bytes) -> bytes:
    return frame(PING, ACK, 0, payload)


def goaway_frame(last_id: int, code: int, debug: bytes = b"") -> bytes:
    return frame(GOAWAY, 0, 0, _TWO_NUMBERS.pack(last_id, code) + debug)


def window_update_frame(stream_id: int, increment: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream_id, _NUMBER.pack(increment))
