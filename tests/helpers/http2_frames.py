"""HTTP/2 frames in numbers and bytes, for tests: RFC 9113 sections 4, 6 and 7.

Written from the RFCs, not from the server: the two must not be wrong together.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable
from typing import NamedTuple

__all__ = [
    "DEFAULT_FRAME_SIZE",
    "DEFAULT_WINDOW",
    "HEAD",
    "LARGEST_STREAM_ID",
    "LARGEST_WINDOW",
    "PAIR",
    "PREFACE",
    "Code",
    "Flag",
    "Frame",
    "GoAway",
    "Kind",
    "Setting",
    "frame_bytes",
    "in_ids",
    "settings_payload",
]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
LARGEST_WINDOW = 2**31 - 1
LARGEST_STREAM_ID = 2**31 - 1
DEFAULT_WINDOW = 65535
DEFAULT_FRAME_SIZE = 16384

HEAD = struct.Struct(">HBBBL")
PAIR = struct.Struct(">HL")


class Kind(enum.IntEnum):
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


class Flag(enum.IntFlag):
    NONE = 0
    END_STREAM = 0x1
    ACK = 0x1
    END_HEADERS = 0x4
    PADDED = 0x8
    PRIORITY = 0x20


class Code(enum.IntEnum):
    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB
    INADEQUATE_SECURITY = 0xC
    HTTP_1_1_REQUIRED = 0xD


class Setting(enum.IntEnum):
    HEADER_TABLE_SIZE = 0x1
    ENABLE_PUSH = 0x2
    MAX_CONCURRENT_STREAMS = 0x3
    INITIAL_WINDOW_SIZE = 0x4
    MAX_FRAME_SIZE = 0x5
    MAX_HEADER_LIST_SIZE = 0x6
    ENABLE_CONNECT_PROTOCOL = 0x8
    NO_RFC7540_PRIORITIES = 0x9


class Frame(NamedTuple):
    kind: int
    flags: int
    stream_id: int
    payload: bytes


class GoAway(NamedTuple):
    last_stream_id: int
    code: int
    debug: bytes


def frame_bytes(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    size = len(payload)
    return HEAD.pack(size >> 8, size & 0xFF, kind, flags, stream_id) + payload


def settings_payload(pairs: Iterable[tuple[int, int]]) -> bytes:
    return b"".join(PAIR.pack(*pair) for pair in pairs)


def in_ids(value: object) -> str | None:
    """Name a parameter for pytest: kinds and codes by their names, payloads by their length."""
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, bytes):
        return f"{len(value)} bytes" if len(value) > 3 else value.hex() or "empty"
    return None
