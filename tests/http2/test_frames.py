"""Frames as they are written, and payloads as they are parsed; hyperframe and h2 read them too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import h2.config
import h2.connection
import h2.events
import hpack
import hyperframe.frame as hf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tornado_worker.http2 import frames
from tornado_worker.http2.errors import ConnectionFault, ErrorCode
from tornado_worker.http2.frame_reader import FrameReader
from tornado_worker.http2.frames import (
    SETTINGS_ACK,
    data_frame,
    frame,
    goaway_frame,
    headers_frames,
    parse_31_bits,
    parse_priority_update,
    parse_settings,
    ping_ack,
    rst_stream_frame,
    settings_frame,
    window_update_frame,
)

# -- written -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (data_frame(5, b"hello", False), b"\0\0\x05\0\0\0\0\0\x05hello"),
        (data_frame(5, b"", True), b"\0\0\0\0\x01\0\0\0\x05"),
        (headers_frames(5, b"ab", False, 16384), b"\0\0\x02\x01\x04\0\0\0\x05ab"),
        (headers_frames(5, b"ab", True, 16384), b"\0\0\x02\x01\x05\0\0\0\x05ab"),
        (headers_frames(5, b"", True, 16384), b"\0\0\0\x01\x05\0\0\0\x05"),
        (
            headers_frames(5, b"abcde", True, 2),
            b"\0\0\x02\x01\x01\0\0\0\x05ab\0\0\x02\x09\0\0\0\0\x05cd\0\0\x01\x09\x04\0\0\0\x05e",
        ),
        (
            headers_frames(5, b"abcd", False, 2),
            b"\0\0\x02\x01\0\0\0\0\x05ab\0\0\x02\x09\x04\0\0\0\x05cd",
        ),
        (rst_stream_frame(5, ErrorCode.CANCEL), b"\0\0\x04\x03\0\0\0\0\x05\0\0\0\x08"),
        (settings_frame([]), b"\0\0\0\x04\0\0\0\0\0"),
        (
            settings_frame([(3, 100), (8, 1)]),
            b"\0\0\x0c\x04\0\0\0\0\0\0\x03\0\0\0\x64\0\x08\0\0\0\x01",
        ),
        (SETTINGS_ACK, b"\0\0\0\x04\x01\0\0\0\0"),
        (frame(frames.PING, 0, 0, b"12345678"), b"\0\0\x08\x06\0\0\0\0\x0012345678"),
        (ping_ack(b"12345678"), b"\0\0\x08\x06\x01\0\0\0\x0012345678"),
        (
            goaway_frame(2**31 - 1, 0),
            b"\0\0\x08\x07\0\0\0\0\0\x7f\xff\xff\xff\0\0\0\0",
        ),
        (
            goaway_frame(5, ErrorCode.ENHANCE_YOUR_CALM, b"why"),
            b"\0\0\x0b\x07\0\0\0\0\0\0\0\0\x05\0\0\0\x0bwhy",
        ),
        (window_update_frame(0, 65535), b"\0\0\x04\x08\0\0\0\0\0\0\0\xff\xff"),
        (frame(0x10, 0, 0, b"\0\0\0\x05u=1"), b"\0\0\x07\x10\0\0\0\0\0\0\0\0\x05u=1"),
    ],
)
def test_frames_are_written_as_the_rfc_says(written: bytes, expected: bytes) -> None:
    assert written == expected


def read_by_hyperframe(data: bytes) -> list[Any]:
    found = []
    while data:
        one, length = hf.Frame.parse_frame_header(memoryview(data[:9]), strict=True)
        one.parse_body(memoryview(data[9 : 9 + length]))
        found.append(one)
        data = data[9 + length :]
    return found


IDS = st.integers(1, 2**31 - 1)
U31 = st.integers(0, 2**31 - 1)
U32 = st.integers(0, 2**32 - 1)


@settings(deadline=None)
@given(IDS, st.binary(max_size=300), st.booleans())
def test_hyperframe_reads_our_data(stream: int, data: bytes, end: bool) -> None:
    assert data_frame(stream, memoryview(data), end) == data_frame(stream, data, end)
    (one,) = read_by_hyperframe(data_frame(stream, data, end))
    assert isinstance(one, hf.DataFrame)
    assert (one.stream_id, one.data, "END_STREAM" in one.flags) == (stream, data, end)


@settings(deadline=None)
@given(IDS, st.binary(max_size=300), st.booleans(), st.integers(1, 310))
def test_hyperframe_reads_our_headers(stream: int, block: bytes, end: bool, largest: int) -> None:
    written = headers_frames(stream, block, end, largest)
    first, *others = read_by_hyperframe(written)
    assert isinstance(first, hf.HeadersFrame)
    assert all(isinstance(one, hf.ContinuationFrame) for one in others)
    assert ("END_STREAM" in first.flags) is end
    assert ["END_HEADERS" in one.flags for one in (first, *others)] == [False] * len(others) + [
        True
    ]
    assert {one.stream_id for one in (first, *others)} == {stream}
    assert b"".join(one.data for one in (first, *others)) == block
    assert max(one.body_len for one in (first, *others)) <= largest
    if len(others) < 12:
        reader = FrameReader()
        reader.feed(written)
        taken = reader.next_frame()
        assert taken is not None
        assert taken[:4] == (1, 0x5 if end else 0x4, stream, block)


@settings(deadline=None)
@given(IDS, U31, U32, st.binary(max_size=30), st.dictionaries(st.integers(0, 65535), U32))
def test_hyperframe_reads_our_control_frames(
    stream: int, number: int, code: int, text: bytes, pairs: dict[int, int]
) -> None:
    reset, goaway, window, values, ack = read_by_hyperframe(
        rst_stream_frame(stream, code)
        + goaway_frame(number, code, text)
        + window_update_frame(stream, max(number, 1))
        + settings_frame(pairs.items())
        + SETTINGS_ACK
    )
    assert (reset.stream_id, reset.error_code) == (stream, code)
    assert (goaway.last_stream_id, goaway.error_code, goaway.additional_data) == (
        number,
        code,
        text,
    )
    assert (window.stream_id, window.window_increment) == (stream, max(number, 1))
    assert values.settings == pairs
    assert ack.flags == {"ACK"}


def test_h2_takes_our_answer() -> None:
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    client.initiate_connection()
    client.send_headers(
        1,
        [(":method", "GET"), (":path", "/"), (":scheme", "https"), (":authority", "a")],
        end_stream=True,
    )
    data = client.data_to_send()
    assert data.startswith(frames.PREFACE)
    block = hpack.Encoder().encode([(":status", "200"), ("x", "~" * 30_000)])
    events: list[Any] = client.receive_data(
        settings_frame([(frames.SETTINGS_MAX_CONCURRENT_STREAMS, 100)])
        + SETTINGS_ACK
        + window_update_frame(0, 1000)
        + frame(frames.PING, 0, 0, b"12345678")
        + headers_frames(1, block, False, 16384)
        + data_frame(1, b"hello", False)
        + data_frame(1, b"", True)
        + goaway_frame(1, 0, b"bye")
    )
    assert [type(event).__name__ for event in events] == [
        "RemoteSettingsChanged",
        "SettingsAcknowledged",
        "WindowUpdated",
        "PingReceived",
        "ResponseReceived",
        "DataReceived",
        "DataReceived",
        "StreamEnded",
        "ConnectionTerminated",
    ]
    assert events[5].data == b"hello"


# -- parsed ------------------------------------------------------------------------


def test_settings_are_parsed_in_their_order_with_unknown_and_repeated_ones() -> None:
    pairs = [(4, 2**31 - 1), (0xFFFF, 2**32 - 1), (4, 0), (1, 2**32 - 1), (3, 0), (6, 2**32 - 1)]
    pairs += [(2, 0), (2, 1), (5, 16_384), (5, 2**24 - 1), (8, 0), (8, 1), (9, 0), (9, 1)]
    assert parse_settings(settings_frame(pairs)[9:]) == pairs
    assert parse_settings(b"") == []


@pytest.mark.parametrize(
    ("identifier", "value", "code", "expected"),
    [
        (frames.SETTINGS_ENABLE_PUSH, 2, "PROTOCOL_ERROR", "0 to 1"),
        (frames.SETTINGS_INITIAL_WINDOW_SIZE, 2**31, "FLOW_CONTROL_ERROR", "0 to 2147483647"),
        (frames.SETTINGS_MAX_FRAME_SIZE, 16_383, "PROTOCOL_ERROR", "16384 to 16777215"),
        (frames.SETTINGS_MAX_FRAME_SIZE, 2**24, "PROTOCOL_ERROR", "16384 to 16777215"),
        (frames.SETTINGS_ENABLE_CONNECT_PROTOCOL, 2, "PROTOCOL_ERROR", "0 to 1"),
        (frames.SETTINGS_NO_RFC7540_PRIORITIES, 2, "PROTOCOL_ERROR", "0 to 1"),
    ],
)
def test_setting_out_of_its_bounds_is_a_fault(
    identifier: int, value: int, code: str, expected: str
) -> None:
    with pytest.raises(ConnectionFault) as caught:
        parse_settings(settings_frame([(0xABCD, 5), (identifier, value)])[9:])
    assert caught.value.code is ErrorCode[code]
    assert caught.value.reason == (
        f"wrong value of setting 0x{identifier:x}: expected {expected}; got {value}"
    )


def test_settings_cut_off_are_a_fault() -> None:
    """The field HTTP2-Settings brings them without a frame."""
    with pytest.raises(ConnectionFault, match=r"FRAME_SIZE_ERROR: .* a multiple of 6; got 7"):
        parse_settings(bytes(7))


@pytest.mark.parametrize(
    ("parse", "payload", "expected"),
    [
        (parse_31_bits, b"\x80\0\0\x07", 7),
        (parse_31_bits, b"\xff\xff\xff\xff", 2**31 - 1),
        (parse_priority_update, b"\x80\0\0\x05u=1, i", (5, b"u=1, i")),
        (parse_priority_update, b"\0\0\0\x05", (5, b"")),
    ],
)
def test_payload_is_parsed(
    parse: Callable[[bytes], object], payload: bytes, expected: object
) -> None:
    assert parse(payload) == expected


def test_error_codes_are_those_of_the_rfc() -> None:
    assert list(ErrorCode) == list(range(14))
    assert ErrorCode(13).name == "HTTP_1_1_REQUIRED"
