"""The reader of frames: what it gives, what it refuses, what hostile frames cost.

Each case is fed whole, byte by byte, and with other frames before and behind it. hyperframe and
h2 write what it reads.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable
from typing import Any

import h2.config
import h2.connection
import hpack
import hyperframe.frame as hf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tornado_worker.http2.errors import ConnectionFault, ErrorCode, StreamFault
from tornado_worker.http2.frame_reader import FrameReader
from tornado_worker.http2.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
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
    frame,
    headers_frames,
)

Frame = tuple[int, int, int, bytes, int]

PING_BEFORE = frame(PING, 0, 0, b"bytes 01")
READ_BEFORE: Frame = (PING, 0, 0, b"bytes 01", 8)
SIZES = pytest.mark.parametrize("size", [0, 1, 5])


def read(
    data: bytes, size: int = 0, reader: FrameReader | None = None
) -> list[Frame | StreamFault | ConnectionFault]:
    """Feed `data` in pieces of `size`; return the frames and faults, the last of them fatal."""
    reader = FrameReader() if reader is None else reader
    size = size or max(len(data), 1)
    found: list[Frame | StreamFault | ConnectionFault] = []
    for start in range(0, len(data), size):
        reader.feed(data[start : start + size])
        while True:
            try:
                taken = reader.next_frame()
            except StreamFault as fault:
                found.append(fault)
            except ConnectionFault as fault:
                found.append(fault)
                return found
            else:
                if taken is None:
                    break
                found.append(taken)
    return found


# -- what is read ----------------------------------------------------------------

SELF_AND_WEIGHT = b"\0\0\0\x05\xff"
ROOT_AND_WEIGHT = b"\x80\0\0\0\x10"

GOOD: dict[str, tuple[bytes, Frame]] = {
    "data": (frame(DATA, 0, 5, b"hello"), (DATA, 0, 5, b"hello", 5)),
    "last data": (frame(DATA, END_STREAM, 5, b""), (DATA, END_STREAM, 5, b"", 0)),
    "padded data": (
        frame(DATA, PADDED, 5, b"\x03hello\0\0\0"),
        (DATA, PADDED, 5, b"hello", 9),
    ),
    "padding that is not zero": (
        frame(DATA, PADDED, 5, b"\x02helloxy"),
        (DATA, PADDED, 5, b"hello", 8),
    ),
    "padding only": (frame(DATA, PADDED, 5, b"\x03\0\0\0"), (DATA, PADDED, 5, b"", 4)),
    "no padding": (frame(DATA, PADDED, 5, b"\x00"), (DATA, PADDED, 5, b"", 1)),
    "largest data": (frame(DATA, 0, 5, b"x" * 16384), (DATA, 0, 5, b"x" * 16384, 16384)),
    "data on a reserved bit": (frame(DATA, 0, 2**31 + 5, b"a"), (DATA, 0, 5, b"a", 1)),
    "data with unknown flags": (frame(DATA, 0xD6, 5, b"a"), (DATA, 0xD6, 5, b"a", 1)),
    "headers": (
        frame(HEADERS, END_HEADERS | END_STREAM, 5, b"\x82"),
        (HEADERS, END_HEADERS | END_STREAM, 5, b"\x82", 1),
    ),
    "empty headers": (frame(HEADERS, END_HEADERS, 5, b""), (HEADERS, END_HEADERS, 5, b"", 0)),
    "headers with padding and priority": (
        frame(
            HEADERS,
            END_HEADERS | PADDED | PRIORITY_FLAG,
            5,
            b"\x02" + ROOT_AND_WEIGHT + b"\x82\x84\0\0",
        ),
        (HEADERS, END_HEADERS | PADDED | PRIORITY_FLAG, 5, b"\x82\x84", 10),
    ),
    "headers that depend on themselves": (
        frame(HEADERS, END_HEADERS | PRIORITY_FLAG, 5, SELF_AND_WEIGHT + b"\x82"),
        (HEADERS, END_HEADERS | PRIORITY_FLAG | SELF_DEPENDENT, 5, b"\x82", 6),
    ),
    "priority of headers only": (
        frame(HEADERS, END_HEADERS | PRIORITY_FLAG, 5, ROOT_AND_WEIGHT),
        (HEADERS, END_HEADERS | PRIORITY_FLAG, 5, b"", 5),
    ),
    "continued headers": (
        frame(HEADERS, END_STREAM | PADDED, 5, b"\x01a\0")
        + frame(CONTINUATION, 0, 5, b"b")
        + frame(CONTINUATION, 0, 5, b"")
        + frame(CONTINUATION, END_HEADERS, 5, b"c"),
        (HEADERS, END_STREAM | PADDED | END_HEADERS, 5, b"abc", 3),
    ),
    "priority": (frame(PRIORITY, 0, 5, ROOT_AND_WEIGHT), (PRIORITY, 0, 5, ROOT_AND_WEIGHT, 5)),
    "reset": (frame(RST_STREAM, 0, 5, b"\0\0\0\x08"), (RST_STREAM, 0, 5, b"\0\0\0\x08", 4)),
    "settings": (
        frame(SETTINGS, 0, 0, b"\0\x03\0\0\0\x64"),
        (SETTINGS, 0, 0, b"\0\x03\0\0\0\x64", 6),
    ),
    "no settings": (frame(SETTINGS, 0, 0, b""), (SETTINGS, 0, 0, b"", 0)),
    "settings ack": (frame(SETTINGS, ACK, 0, b""), (SETTINGS, ACK, 0, b"", 0)),
    "ping": (frame(PING, 0, 0, b"12345678"), (PING, 0, 0, b"12345678", 8)),
    "ping ack": (frame(PING, ACK, 0, b"12345678"), (PING, ACK, 0, b"12345678", 8)),
    "goaway": (frame(GOAWAY, 0, 0, bytes(8) + b"why"), (GOAWAY, 0, 0, bytes(8) + b"why", 11)),
    "window of a stream": (
        frame(WINDOW_UPDATE, 0, 5, b"\x80\0\0\x01"),
        (WINDOW_UPDATE, 0, 5, b"\x80\0\0\x01", 4),
    ),
    "window of the connection": (
        frame(WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff"),
        (WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff", 4),
    ),
    "priority update": (
        frame(PRIORITY_UPDATE, 0, 0, b"\0\0\0\x05u=1"),
        (PRIORITY_UPDATE, 0, 0, b"\0\0\0\x05u=1", 7),
    ),
    "unknown kind on a stream": (frame(0xBE, 0xFF, 5, b"abc"), (0xBE, 0xFF, 5, b"abc", 3)),
    "unknown kind on the connection": (frame(0x0A, 0, 0, b""), (0x0A, 0, 0, b"", 0)),
}


@SIZES
@pytest.mark.parametrize("name", GOOD)
def test_frame_is_read(name: str, size: int) -> None:
    data, expected = GOOD[name]
    reader = FrameReader()
    assert read(PING_BEFORE + data + PING_BEFORE, size, reader) == [
        READ_BEFORE,
        expected,
        READ_BEFORE,
    ]
    assert reader.waiting == 0


@pytest.mark.parametrize("name", GOOD)
def test_frame_that_is_not_whole_is_waited_for(name: str) -> None:
    data = GOOD[name][0]
    reader = FrameReader()
    assert read(data[:-1], 0, reader) == read(data[:-1], 1) == []
    # Of a block that has begun, padding is gone already.
    assert reader.waiting == len(data) - (3 if name == "continued headers" else 1)
    assert len(read(data[-1:], 0, reader)) == 1
    assert reader.waiting == 0


def test_frames_need_not_be_taken_when_they_come() -> None:
    reader = FrameReader()
    data = frame(DATA, 0, 5, b"x" * 300) + PING_BEFORE
    for start in range(0, 50 * len(data), 7):
        reader.feed((data * 50)[start : start + 7])
        if start % 700 == 0 and start > 2000:
            assert reader.next_frame() is not None
    frames = []
    while (taken := reader.next_frame()) is not None:
        frames.append(taken)
    assert frames[-2:] == [(DATA, 0, 5, b"x" * 300, 300), READ_BEFORE]
    assert reader.waiting == 0


def test_reader_that_has_read_all_keeps_nothing() -> None:
    reader = FrameReader()
    data = frame(DATA, 0, 5, b"x" * 9000)
    read(data, 0, reader)
    assert reader._data == b"" and not reader._more
    read(data * 3, 700, reader)
    assert reader._data == b"" and not reader._more


# -- what is refused ---------------------------------------------------------------

PROTOCOL, SIZE, CALM = (
    ErrorCode.PROTOCOL_ERROR,
    ErrorCode.FRAME_SIZE_ERROR,
    ErrorCode.ENHANCE_YOUR_CALM,
)
CONNECTION_FAULTS: dict[str, tuple[bytes, ErrorCode, str]] = {
    "data on stream 0": (
        frame(DATA, 0, 0, b"a"),
        PROTOCOL,
        "DATA frame on the wrong stream: expected a stream; got 0",
    ),
    "headers on stream 0": (
        frame(HEADERS, END_HEADERS, 0, b"\x82"),
        PROTOCOL,
        "HEADERS frame on the wrong stream: expected a stream; got 0",
    ),
    "headers on stream 0 by the reserved bit": (
        frame(HEADERS, END_HEADERS, 2**31, b"\x82"),
        PROTOCOL,
        "HEADERS frame on the wrong stream: expected a stream; got 0",
    ),
    "priority on stream 0": (
        frame(PRIORITY, 0, 0, ROOT_AND_WEIGHT),
        PROTOCOL,
        "PRIORITY frame on the wrong stream: expected a stream; got 0",
    ),
    "reset of stream 0": (
        frame(RST_STREAM, 0, 0, bytes(4)),
        PROTOCOL,
        "RST_STREAM frame on the wrong stream: expected a stream; got 0",
    ),
    "settings on a stream": (
        frame(SETTINGS, 0, 5, b""),
        PROTOCOL,
        "SETTINGS frame on the wrong stream: expected stream 0; got 5",
    ),
    "ping on a stream": (
        frame(PING, 0, 5, bytes(8)),
        PROTOCOL,
        "PING frame on the wrong stream: expected stream 0; got 5",
    ),
    "goaway on a stream": (
        frame(GOAWAY, 0, 5, bytes(8)),
        PROTOCOL,
        "GOAWAY frame on the wrong stream: expected stream 0; got 5",
    ),
    "priority update on a stream": (
        frame(PRIORITY_UPDATE, 0, 5, b"\0\0\0\x05u=1"),
        PROTOCOL,
        "PRIORITY_UPDATE frame on the wrong stream: expected stream 0; got 5",
    ),
    "priority update of stream 0": (
        frame(PRIORITY_UPDATE, 0, 0, b"\x80\0\0\0u=1"),
        PROTOCOL,
        "wrong stream in PRIORITY_UPDATE: expected 1 or more; got 0",
    ),
    "short priority update": (
        frame(PRIORITY_UPDATE, 0, 0, b"\0\0\x05"),
        SIZE,
        "wrong size of PRIORITY_UPDATE frame: expected at least 4; got 3",
    ),
    "too much padding of data": (
        frame(DATA, PADDED, 5, b"\x04abc"),
        PROTOCOL,
        "too much padding in DATA frame: expected at most 3 bytes; got 4",
    ),
    "too much padding of headers": (
        frame(HEADERS, PADDED | END_HEADERS, 5, b"\xff\x82"),
        PROTOCOL,
        "too much padding in HEADERS frame: expected at most 1 bytes; got 255",
    ),
    "padding over priority fields": (
        frame(HEADERS, PADDED | PRIORITY_FLAG | END_HEADERS, 5, b"\x03" + ROOT_AND_WEIGHT),
        SIZE,
        "wrong size of HEADERS frame: expected at least 5 bytes of priority fields; got 2",
    ),
    "padded data without length": (
        frame(DATA, PADDED, 5, b""),
        SIZE,
        "wrong size of DATA frame: expected at least 1 with PADDED; got 0",
    ),
    "padded headers without length": (
        frame(HEADERS, PADDED | END_HEADERS, 5, b""),
        SIZE,
        "wrong size of HEADERS frame: expected at least 1 with PADDED; got 0",
    ),
    "short priority fields": (
        frame(HEADERS, PRIORITY_FLAG | END_HEADERS, 5, b"\0\0\0\0"),
        SIZE,
        "wrong size of HEADERS frame: expected at least 5 bytes of priority fields; got 4",
    ),
    "large data": (
        frame(DATA, 0, 5, bytes(16385)),
        SIZE,
        "wrong size of DATA frame: expected at most 16384; got 16385",
    ),
    "large headers": (
        frame(HEADERS, END_HEADERS, 5, bytes(16385)),
        SIZE,
        "wrong size of HEADERS frame: expected at most 16384; got 16385",
    ),
    "large frame of unknown kind": (
        frame(0xBE, 0, 5, bytes(16385)),
        SIZE,
        "wrong size of kind 0xbe frame: expected at most 16384; got 16385",
    ),
    "short reset": (
        frame(RST_STREAM, 0, 5, bytes(3)),
        SIZE,
        "wrong size of RST_STREAM frame: expected 4; got 3",
    ),
    "long reset": (
        frame(RST_STREAM, 0, 5, bytes(5)),
        SIZE,
        "wrong size of RST_STREAM frame: expected 4; got 5",
    ),
    "short ping": (
        frame(PING, 0, 0, bytes(7)),
        SIZE,
        "wrong size of PING frame: expected 8; got 7",
    ),
    "long ping": (
        frame(PING, ACK, 0, bytes(9)),
        SIZE,
        "wrong size of PING frame: expected 8; got 9",
    ),
    "short goaway": (
        frame(GOAWAY, 0, 0, bytes(7)),
        SIZE,
        "wrong size of GOAWAY frame: expected at least 8; got 7",
    ),
    "short window update": (
        frame(WINDOW_UPDATE, 0, 0, b"\0\0\x01"),
        SIZE,
        "wrong size of WINDOW_UPDATE frame: expected 4; got 3",
    ),
    "long window update of a stream": (
        frame(WINDOW_UPDATE, 0, 5, b"\0\0\0\0\x01"),
        SIZE,
        "wrong size of WINDOW_UPDATE frame: expected 4; got 5",
    ),
    "window update of 0": (
        frame(WINDOW_UPDATE, 0, 0, b"\x80\0\0\0"),
        PROTOCOL,
        "wrong increment of window: expected 1 or more; got 0",
    ),
    "settings cut off": (
        frame(SETTINGS, 0, 0, b"\0\x03\0\0\0"),
        SIZE,
        "wrong size of SETTINGS frame: expected a multiple of 6; got 5",
    ),
    "settings ack with settings": (
        frame(SETTINGS, ACK, 0, b"\0\x03\0\0\0\x64"),
        SIZE,
        "wrong size of SETTINGS frame: expected 0 with ACK; got 6",
    ),
    "push promise": (
        frame(PUSH_PROMISE, END_HEADERS, 5, b"\0\0\0\x02\x82"),
        PROTOCOL,
        "unexpected PUSH_PROMISE frame",
    ),
    "continuation of nothing": (
        frame(CONTINUATION, END_HEADERS, 5, b"\x82"),
        PROTOCOL,
        "unexpected CONTINUATION frame",
    ),
    "continuation on stream 0": (
        frame(CONTINUATION, END_HEADERS, 0, b"\x82"),
        PROTOCOL,
        "unexpected CONTINUATION frame",
    ),
    "continuation of another stream": (
        frame(HEADERS, 0, 5, b"a") + frame(CONTINUATION, END_HEADERS, 7, b"b"),
        PROTOCOL,
        "expected CONTINUATION on stream 5; got CONTINUATION on stream 7",
    ),
    "headers within headers": (
        frame(HEADERS, 0, 5, b"a") + frame(HEADERS, END_HEADERS, 5, b"b"),
        PROTOCOL,
        "expected CONTINUATION on stream 5; got HEADERS on stream 5",
    ),
    "data within headers": (
        frame(HEADERS, END_STREAM, 5, b"a") + frame(DATA, 0, 7, b""),
        PROTOCOL,
        "expected CONTINUATION on stream 5; got DATA on stream 7",
    ),
    "ping within headers": (
        frame(HEADERS, 0, 5, b"a") + frame(CONTINUATION, 0, 5, b"b") + PING_BEFORE,
        PROTOCOL,
        "expected CONTINUATION on stream 5; got PING on stream 0",
    ),
    "unknown kind within headers": (
        frame(HEADERS, 0, 5, b"a") + frame(0xBE, 0, 5, b""),
        PROTOCOL,
        "expected CONTINUATION on stream 5; got kind 0xbe on stream 5",
    ),
    "too large a block": (
        frame(HEADERS, 0, 5, b"a" * 16384)
        + frame(CONTINUATION, 0, 5, b"a" * 16384) * 3
        + frame(CONTINUATION, END_HEADERS, 5, b"a"),
        CALM,
        "field block too large: expected at most 65536 bytes; got 65537",
    ),
    "many empty continuations": (
        frame(HEADERS, 0, 5, b"a") + frame(CONTINUATION, 0, 5, b"") * 5000,
        CALM,
        "too many CONTINUATION frames: expected at most 12 in a field block",
    ),
}


@SIZES
@pytest.mark.parametrize("name", CONNECTION_FAULTS)
def test_malformed_frame_is_a_fault_of_the_connection(name: str, size: int) -> None:
    data, code, reason = CONNECTION_FAULTS[name]
    before, fault = read(PING_BEFORE + data + PING_BEFORE, size)
    assert before == READ_BEFORE
    assert isinstance(fault, ConnectionFault)
    assert (fault.code, fault.reason) == (code, reason)
    assert str(fault) == f"{code.name}: {reason}"


STREAM_FAULTS: dict[str, tuple[bytes, ErrorCode, str]] = {
    "window update of 0": (
        frame(WINDOW_UPDATE, 0, 5, bytes(4)),
        PROTOCOL,
        "wrong increment of window: expected 1 or more; got 0",
    ),
    "short priority": (
        frame(PRIORITY, 0, 5, bytes(4)),
        SIZE,
        "wrong size of PRIORITY frame: expected 5; got 4",
    ),
    "long priority": (
        frame(PRIORITY, 0, 5, bytes(6)),
        SIZE,
        "wrong size of PRIORITY frame: expected 5; got 6",
    ),
    "priority that depends on itself": (
        frame(PRIORITY, 0, 5, b"\x80" + SELF_AND_WEIGHT[1:]),
        PROTOCOL,
        "a stream cannot depend on itself",
    ),
}


@SIZES
@pytest.mark.parametrize("name", STREAM_FAULTS)
def test_stream_fault_leaves_the_frames_behind_it(name: str, size: int) -> None:
    data, code, reason = STREAM_FAULTS[name]
    before, fault, behind = read(PING_BEFORE + data + PING_BEFORE, size)
    assert before == behind == READ_BEFORE
    assert isinstance(fault, StreamFault)
    assert (fault.stream_id, fault.code, fault.reason) == (5, code, reason)
    assert str(fault) == f"stream 5: {code.name}: {reason}"


@pytest.mark.parametrize("kind", [DATA, HEADERS, SETTINGS, GOAWAY, 0xBE])
def test_frame_too_large_is_refused_before_its_payload_comes(kind: int) -> None:
    head = struct.pack(">LBL", (2**24 - 1) << 8 | kind, 0, 5 * (kind < SETTINGS))
    (fault,) = read(head)
    assert isinstance(fault, ConnectionFault)
    assert fault.code is ErrorCode.FRAME_SIZE_ERROR


def test_larger_frames_are_read_where_that_was_said() -> None:
    data = frame(DATA, 0, 5, b"x" * 20_000)
    reader = FrameReader(max_frame_size=20_000)
    assert read(data, 3000, reader) == [(DATA, 0, 5, b"x" * 20_000, 20_000)]
    (fault,) = read(frame(DATA, 0, 5, b"x" * 20_001), 0, FrameReader(max_frame_size=20_000))
    assert isinstance(fault, ConnectionFault)


@SIZES
@pytest.mark.parametrize("flags", [0, END_HEADERS])
def test_block_above_its_limit_is_refused_in_one_frame_too(flags: int, size: int) -> None:
    data = frame(HEADERS, flags, 5, b"a" * 301)
    (fault,) = read(data, size, FrameReader(max_block_size=300))
    assert isinstance(fault, ConnectionFault)
    assert fault.code is ErrorCode.ENHANCE_YOUR_CALM
    assert fault.reason == "field block too large: expected at most 300 bytes; got 301"


@SIZES
def test_blocks_at_their_limit_are_read_one_after_the_other(size: int) -> None:
    data = headers_frames(5, b"a" * 65_536, False, 16_384)
    expected: Frame = (HEADERS, END_HEADERS, 5, b"a" * 65_536, 65_536)
    assert read(data * 3, size and size * 1000) == [expected] * 3


@pytest.mark.parametrize("max_block_size", [1000, 65_536, 1_000_000])
def test_continuations_are_counted_and_not_more_of_them_kept(max_block_size: int) -> None:
    most = 8 + max_block_size // 16_384
    few = frame(HEADERS, 0, 5, b"") + frame(CONTINUATION, 0, 5, b"") * (most - 1)
    end = frame(CONTINUATION, END_HEADERS, 5, b"z")
    assert read(few + end, 0, FrameReader(max_block_size=max_block_size)) == [
        (HEADERS, END_HEADERS, 5, b"z", 1)
    ]
    reader = FrameReader(max_block_size=max_block_size)
    (fault,) = read(few + frame(CONTINUATION, 0, 5, b""), 0, reader)
    assert isinstance(fault, ConnectionFault)
    assert fault.code is ErrorCode.ENHANCE_YOUR_CALM


def test_block_that_has_begun_counts_as_waiting() -> None:
    """Or a connection that sent an empty HEADERS frame would seem to be idle."""
    reader = FrameReader()
    assert read(frame(HEADERS, 0, 5, b""), 0, reader) == []
    assert reader.waiting == 9
    assert read(frame(CONTINUATION, 0, 5, b"abc") + b"\0\0", 0, reader) == []
    assert reader.waiting == 9 + 12 + 2


# -- what it costs -----------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 4000])
def test_large_frame_in_small_parts_costs_no_more_than_its_bytes(size: int) -> None:
    """Joined anew for each part, this would copy a million megabytes."""
    data = frame(DATA, 0, 5, bytes(2**21)) + PING_BEFORE
    assert len(read(data, size, FrameReader(max_frame_size=2**21))) == 2


@pytest.mark.parametrize("take_early", [True, False])
def test_many_small_frames_cost_no_more_than_their_bytes(take_early: bool) -> None:
    reader = FrameReader()
    data = frame(DATA, 0, 5, b"") * 200_000
    for start in range(0, len(data), 1000):
        reader.feed(data[start : start + 1000])
        if take_early:
            assert reader.next_frame() is not None
    count = 200 * 9 if take_early else 0
    while reader.next_frame() is not None:
        count += 1
    assert count == 200_000


# -- other implementations ---------------------------------------------------------

IDS = st.integers(1, 2**31 - 1)
BYTES = st.binary(max_size=200)
PAD = st.integers(0, 255)
U32 = st.integers(0, 2**32 - 1)


def headers_of_hyperframe(
    stream: int, parts: list[bytes], pad: int | None, weight: int | None, end: bool
) -> tuple[bytes, Frame]:
    first = hf.HeadersFrame(stream, parts[0], pad_length=pad or 0)
    flags = END_HEADERS
    if end:
        first.flags.add("END_STREAM")
        flags |= END_STREAM
    if pad is not None:
        first.flags.add("PADDED")
        flags |= PADDED
    if weight is not None:
        first.flags.add("PRIORITY")
        first.depends_on = 0
        first.stream_weight = weight
        flags |= PRIORITY_FLAG
    frames: list[hf.Frame] = [first]
    frames += [hf.ContinuationFrame(stream, part) for part in parts[1:]]
    frames[-1].flags.add("END_HEADERS")
    wire = b"".join(one.serialize() for one in frames)
    block = b"".join(parts)
    size = len(block) if len(parts) > 1 else len(wire) - 9
    return wire, (HEADERS, flags, stream, block, size)


def data_of_hyperframe(stream: int, data: bytes, pad: int | None, end: bool) -> tuple[bytes, Frame]:
    one = hf.DataFrame(stream, data, pad_length=pad or 0)
    flags = 0
    if end:
        one.flags.add("END_STREAM")
        flags |= END_STREAM
    if pad is not None:
        one.flags.add("PADDED")
        flags |= PADDED
    return one.serialize(), (DATA, flags, stream, data, one.flow_controlled_length)


def plain(make: Callable[..., hf.Frame]) -> Callable[..., tuple[bytes, Frame]]:
    """Expect the payload as hyperframe wrote it."""

    def build(*arguments: object) -> tuple[bytes, Frame]:
        one = make(*arguments)
        wire = one.serialize()
        flags = wire[4]
        return wire, (wire[3], flags, one.stream_id, wire[9:], len(wire) - 9)

    return build


MAYBE_PAD = st.none() | PAD
MADE_BY_HYPERFRAME = st.one_of(
    st.builds(data_of_hyperframe, IDS, BYTES, MAYBE_PAD, st.booleans()),
    st.builds(
        headers_of_hyperframe,
        IDS,
        st.lists(BYTES, min_size=1, max_size=6),
        MAYBE_PAD,
        st.none() | st.integers(0, 255),
        st.booleans(),
    ),
    st.builds(plain(lambda i, code: hf.RstStreamFrame(i, error_code=code)), IDS, U32),
    st.builds(
        plain(lambda pairs: hf.SettingsFrame(0, settings=pairs)),
        st.dictionaries(st.integers(0, 65535), U32, max_size=8),
    ),
    st.builds(plain(lambda: hf.SettingsFrame(0, flags=["ACK"]))),
    st.builds(
        plain(lambda data, ack: hf.PingFrame(0, data, flags=["ACK"] if ack else [])),
        st.binary(min_size=8, max_size=8),
        st.booleans(),
    ),
    st.builds(plain(lambda last, code, text: hf.GoAwayFrame(0, last, code, text)), IDS, U32, BYTES),
    st.builds(
        plain(lambda i, n: hf.WindowUpdateFrame(i, n)), st.just(0) | IDS, st.integers(1, 2**31 - 1)
    ),
)


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[start:end] for start, end in itertools.pairwise(at)]


@settings(deadline=None)
@given(st.lists(MADE_BY_HYPERFRAME, max_size=8), st.lists(st.integers(0, 2**16), max_size=12))
def test_what_hyperframe_writes_is_read(made: list[tuple[bytes, Frame]], cuts: list[int]) -> None:
    data = b"".join(wire for wire, _ in made)
    expected = [taken for _, taken in made]
    assert read(data) == expected
    assert read(data, 1) == expected
    reader = FrameReader()
    found = []
    for piece in pieces_of(data, cuts):
        found += read(piece, 0, reader)
    assert found == expected
    assert reader.waiting == 0


ANY_FRAME = st.builds(
    frame,
    st.sampled_from([*range(10), 0x10, 0xBE]),
    st.sampled_from([0, 1, 4, 5, 8, 9, 0x20, 0x2C, 0x2D, 0xFF]),
    st.sampled_from([0, 1, 2, 5, 2**31 - 1, 2**31]),
    st.binary(max_size=12) | st.sampled_from([bytes(n) for n in (0, 4, 5, 6, 8, 12)]),
)


def check_parts(data: bytes, size: int) -> None:
    """The same bytes are the same frames and faults, whatever parts they come in."""
    whole = read(data)
    parts = read(data, size)
    assert [str(found) for found in parts] == [str(found) for found in whole]
    for taken in whole:
        if isinstance(taken, tuple):
            assert taken[0] != CONTINUATION
            assert taken[4] >= len(taken[3])


def check_with_hyperframe(data: bytes) -> None:
    """Of frames that we read, hyperframe sees the same, and refuses no DATA and HEADERS."""
    reader = FrameReader()
    reader.feed(data)
    at = 0
    while True:
        try:
            taken = reader.next_frame()
        except StreamFault:
            taken = (-1, 0, 0, b"", 0)
        except ConnectionFault:
            return
        if taken is None:
            return
        kind, _, stream, payload, _ = taken
        theirs: list[Any] = []
        while not theirs or (kind == HEADERS and "END_HEADERS" not in theirs[-1].flags):
            one, length = hf.Frame.parse_frame_header(memoryview(data[at : at + 9]))
            # Of others it checks more, or less; and it refuses HEADERS of nothing but padding.
            if kind == DATA or (kind == HEADERS and payload):
                one.parse_body(memoryview(data[at + 9 : at + 9 + length]))
            at += 9 + length
            theirs.append(one)
        assert kind < 0 or theirs[0].type in (kind, None)
        assert kind < 0 or theirs[0].stream_id == stream
        if kind == DATA or (kind == HEADERS and payload):
            assert b"".join(one.data for one in theirs) == payload


@settings(deadline=None)
@given(
    st.lists(ANY_FRAME, max_size=12).map(b"".join) | st.binary(max_size=100),
    st.integers(1, 9),
)
def test_any_bytes_are_frames_or_faults_whatever_parts_they_come_in(data: bytes, size: int) -> None:
    check_parts(data, size)
    check_with_hyperframe(data)


def test_what_h2_writes_is_read() -> None:
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    client.initiate_connection()
    fields = [(":method", "POST"), (":path", "/"), (":scheme", "https"), (":authority", "a")]
    client.send_headers(1, [*fields, ("x", "~" * 20_000)])
    client.send_data(1, b"body", end_stream=True, pad_length=7)
    client.ping(b"12345678")
    client.reset_stream(1, 8)
    client.close_connection(2, b"bye")
    data = client.data_to_send().removeprefix(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    for size in (0, 1, 100):
        frames = [taken for taken in read(data, size) if isinstance(taken, tuple)]
        kinds = [taken[0] for taken in frames]
        assert kinds == [SETTINGS, HEADERS, DATA, PING, RST_STREAM, GOAWAY]
        decoded = hpack.Decoder().decode(frames[1][3], raw=True)
        assert (b"x", b"~" * 20_000) in list(decoded)
        assert frames[2] == (DATA, END_STREAM | PADDED, 1, b"body", 12)
